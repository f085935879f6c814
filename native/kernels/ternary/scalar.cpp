// Tier scalar: the reference, the fallback and the baseline. Built without auto-vectorization.
//
// Instructions: none special. Codes are bytes 0..2, activations int8, sums int32.
// Bound: |code * q| <= 2 * 128, so a sum over max_cols columns is at most 2^24 in magnitude. (In a group of 256 columns, where
//   codes may be 3, it is below 2^17 in every tier.)

#include "grouped_matmul.h"
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

// The definition of five_trit, unpacked by division.
struct ScalarFiveTrit {
    static constexpr int tile_tokens = 4;
    static constexpr int64_t expand_tokens = 0;

    template <int T>
    static void tile(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        for (int64_t i = 0; i < T * panel_rows; ++i) {
            sums[i] = 0;
        }
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            for (int64_t byte = 0; byte < chunk_bytes; ++byte) {
                int32_t codes[5];
                unpack(panel[chunk * chunk_bytes + byte], codes);
                const int64_t row = byte / step_cols;
                const int64_t col = chunk * five_trit_chunk_cols + byte % step_cols;
                for (int64_t field = 0; field < 5; ++field) {
                    for (int64_t token = 0; token < T; ++token) {
                        sums[token * panel_rows + row] += codes[field] * q[token * stride + col + field * step_cols];
                    }
                }
            }
        }
    }

    static void unpack(uint8_t byte, int32_t (&codes)[5]) {
        const int pair = byte & 63;
        const int m = 2 * (pair % five_trit_pairs) + (byte >> 6 & 1);
        int n = byte & 128 ? 80 - m : m;
        for (int field = 0; field < 4; ++field, n /= 3) {
            codes[field] = n % 3;
        }
        codes[4] = pair / five_trit_pairs;
    }

    static void pack(const uint8_t * two_bit, int64_t chunks, uint8_t * five_trit) {
        constexpr int weights[4] = {1, 3, 9, 27};
        const int64_t steps = chunks * fields;  // of four columns, in both layouts
        for (int64_t out = 0; out * 5 < steps; ++out) {
            for (int64_t byte = 0; byte < chunk_bytes; ++byte) {
                int n = 0;
                for (int64_t field = 0; field < 4; ++field) {
                    n += weights[field] * code_at(two_bit, steps, out * 5 + field, byte);
                }
                const int m = n > 40 ? 80 - n : n;
                const int pair = m / 2 + five_trit_pairs * code_at(two_bit, steps, out * 5 + 4, byte);
                five_trit[out * chunk_bytes + byte] = static_cast<uint8_t>(pair | m % 2 << 6 | (n > 40) << 7);
            }
        }
    }

    static int code_at(const uint8_t * two_bit, int64_t steps, int64_t step, int64_t byte) {
        return step < steps ? two_bit[step / fields * chunk_bytes + byte] >> (2 * (step % fields)) & 3 : 1;
    }
};

}  // namespace

const Kernels scalar_kernels = {Tier::scalar,
                                "scalar",
                                quantize_token<Scalar>,
                                {matmul_f32<Scalar>, matmul_i32<Scalar>},
                                {quantize_groups<Scalar>, matmul_grouped<GroupByGroup<Scalar>>},
                                {matmul_f32<ScalarFiveTrit, Layout::five_trit>, matmul_i32<ScalarFiveTrit, Layout::five_trit>},
                                ScalarFiveTrit::pack};

}  // namespace ternary
