// Tier scalar: the reference that every other tier is compared with, straight from layout.h.
//
// Bounds: |scale| <= 128, |code - 32| <= 32, |q| <= 127, 256 columns: |I| <= 2^27. For q5_k I <= 63 * 31 * 127 * 256 < 2^26
// and |J| <= 63 * 127 * 256 < 2^21.

#include "matmul.h"

#include <cstring>

namespace head {
extern const Kernels scalar_kernels;

namespace {

inline float float_at(const uint8_t * p) {
    float value;
    memcpy(&value, p, sizeof value);
    return value;
}

struct Scalar {
    static constexpr int tile_tokens = 1;

    template <class F>
    static int32_t code(const uint8_t * group, int step, int64_t byte) {
        const uint8_t * p = group + byte;
        if constexpr (F::bits == 6) {
            return step < 3 ? p[step * line] & 63 : p[0] >> 6 | p[line] >> 6 << 2 | p[2 * line] >> 6 << 4;
        }
        const int low = p[step / 2 * line] >> (step % 2 * 4) & 15;
        return F::bits == 5 ? low | (p[4 * line] >> step & 1) << 4 : low;
    }

    template <class F, int T>
    static void tile(const uint8_t * block, const Activations * activations, int64_t, float * sums) {
        for (int64_t row = 0; row < panel_rows; ++row) {
            const uint8_t * half = block + row / half_rows * F::half_bytes;
            const int64_t lane = row % half_rows;
            int32_t integer = 0, min_integer = 0;
            for (int g = 0; g < F::groups; ++g) {
                const uint8_t * group = half + F::groups_at + g * F::group_bytes;
                const int64_t at = g * half_rows + lane;
                int32_t dot = 0, sum = 0;
                for (int i = 0; i < F::steps * step_cols; ++i) {
                    const int32_t q = activations->q[g * F::steps * step_cols + i];
                    dot += (code<F>(group, i / step_cols, 4 * lane + i % step_cols) - F::offset) * q;
                    sum += q;
                }
                integer += static_cast<int8_t>(half[F::scales_at + at]) * dot;
                if constexpr (F::has_mins) {
                    min_integer += half[F::mins_at + at] * sum;
                }
            }
            const float a = activations->a;
            sums[row] += static_cast<float>(integer) * (float_at(half + 4 * lane) * a);
            if constexpr (F::has_mins) {
                sums[row] -= static_cast<float>(min_integer) * (float_at(half + F::dmin_at + 4 * lane) * a);
            }
        }
    }
};

}  // namespace

const Kernels scalar_kernels = {"scalar", matmul<Scalar>};

}  // namespace head
