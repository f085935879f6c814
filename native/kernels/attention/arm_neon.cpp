// NEON (ARMv8-A): four floats a vector, conversion from float16 included.

#include "attend.h"
#include "float_products.h"

#include <arm_neon.h>

namespace attention {
extern const Kernels neon_kernels;

namespace {

struct Neon {
    using Vector = float32x4_t;
    static constexpr int64_t width = 4;

    static Vector load(const float * p) { return vld1q_f32(p); }
    static void store(float * p, Vector v) { vst1q_f32(p, v); }
    static Vector zero() { return vdupq_n_f32(0.0f); }
    static Vector all(float x) { return vdupq_n_f32(x); }
    static Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
    static Vector add_product(Vector a, Vector b, Vector sum) { return vfmaq_f32(sum, a, b); }
    static Vector load_half(const uint16_t * p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
    static float float_of_half(uint16_t half) {
        return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0);
    }
    static void totals(Vector a, Vector b, Vector c, Vector d, float * out) {
        vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
    }

    // prefill: 24 sums, 3 parts of a row, an element for all lanes
    static constexpr int64_t tile_rows = 8, tile_vectors = 3;

    static Vector sub(Vector a, Vector b) { return vsubq_f32(a, b); }
    static Vector mul(Vector a, Vector b) { return vmulq_f32(a, b); }
    static Vector max(Vector a, Vector b) { return where_greater(a, b, a, b); }  // NEON's own prefers NaN
    static bool any_greater(Vector a, Vector b) { return vmaxvq_u32(vcgtq_f32(a, b)) != 0; }
    static Vector where_greater(Vector a, Vector b, Vector x, Vector y) { return vbslq_f32(vcgtq_f32(a, b), x, y); }
    static Vector shift_23(Vector a) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(a), 23)); }

    static void transpose(Vector (&v)[width]) {
        const float32x4x2_t first = vtrnq_f32(v[0], v[1]), second = vtrnq_f32(v[2], v[3]);
        v[0] = vcombine_f32(vget_low_f32(first.val[0]), vget_low_f32(second.val[0]));
        v[1] = vcombine_f32(vget_low_f32(first.val[1]), vget_low_f32(second.val[1]));
        v[2] = vcombine_f32(vget_high_f32(first.val[0]), vget_high_f32(second.val[0]));
        v[3] = vcombine_f32(vget_high_f32(first.val[1]), vget_high_f32(second.val[1]));
    }
};

}  // namespace

const Kernels neon_kernels = {
    "neon",
    attend<Neon>,
    Prefill<FloatProducts<Neon>>::run,
    Prefill<FloatProducts<Neon>>::scratch_bytes,
    Prefill<FloatProducts<Neon>>::most_rows,
    FloatProducts<Neon>::lanes,
};

}  // namespace attention
