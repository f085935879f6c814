// Tier scalar: the reference, the fallback and the baseline. Built without auto-vectorization.
//
// Instructions: none special. Codes are bytes 0..2, activations int8, sums int32.
// Bound: |code * q| <= 2 * 128, so a sum over max_cols columns is at most 2^24 in magnitude.

#include "matmul.h"
#include "quantize.h"

#include <cmath>

namespace ternary {
extern const Kernels scalar_kernels;

namespace {

struct Scalar {
    static constexpr int tile_tokens = 4;

    template <int T>
    static void tile(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        for (int64_t i = 0; i < T * panel_rows; ++i) {
            sums[i] = 0;
        }
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            for (int64_t byte = 0; byte < chunk_bytes; ++byte) {
                const int64_t row = byte / step_cols;
                const int64_t col = chunk * chunk_cols + byte % step_cols;
                for (int64_t field = 0; field < fields; ++field) {
                    const int32_t code = (panel[chunk * chunk_bytes + byte] >> (2 * field)) & 3;
                    for (int64_t token = 0; token < T; ++token) {
                        sums[token * panel_rows + row] += code * q[token * stride + col + field * step_cols];
                    }
                }
            }
        }
    }

    static uint32_t max_abs_bits(const float * x, int64_t cols) {
        uint32_t result = 0;
        for (int64_t i = 0; i < cols; ++i) {
            const uint32_t bits = bits_of_float(x[i]) & float_sign_mask;
            result = bits > result ? bits : result;
        }
        return result;
    }

    static int32_t round_scaled(const float * x, int64_t cols, float scale, int8_t * q) {
        int32_t sum = 0;
        for (int64_t i = 0; i < cols; ++i) {
            const long rounded = lrintf(x[i] * scale);  // half to even: the default rounding mode
            q[i] = static_cast<int8_t>(rounded < -128 ? -128 : rounded > 127 ? 127 : rounded);
            sum += q[i];
        }
        return sum;
    }
};

}  // namespace

const Kernels scalar_kernels = {Tier::scalar, "scalar", quantize_token<Scalar>, matmul_f32<Scalar>, matmul_i32<Scalar>};

}  // namespace ternary
