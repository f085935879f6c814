// Tier neon (ARMv8-A): smull makes 8 int16 products of signed bytes; of two such registers addp adds neighbours, and sadalp
// adds neighbours of these to 4 int32 lanes.
//
// Bound: 2 * 63 * 127 = 16002 fits int16.

#include "arm.h"

namespace head {
extern const Kernels neon_kernels;

namespace {

struct Neon {
    template <int Step>
    static HEAD_INLINE void add_products(int32x4_t & sums, uint8x16_t codes_u8x16, int8x16_t q_s8x16) {
        const int8x16_t codes = vreinterpretq_s8_u8(codes_u8x16);
        const int8x8_t q = vreinterpret_s8_s32(vdup_laneq_s32(vreinterpretq_s32_s8(q_s8x16), Step));
        const int16x8_t low = vmull_s8(vget_low_s8(codes), q), high = vmull_s8(vget_high_s8(codes), q);
        sums = vpadalq_s16(sums, vpaddq_s16(low, high));
    }
};

}  // namespace

const Kernels neon_kernels = {"neon", matmul<Arm<Neon>>};

}  // namespace head
