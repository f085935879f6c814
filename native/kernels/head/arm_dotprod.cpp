// Tier dotprod: sdot by element multiplies 16 codes with four activations, all signed bytes, and adds four products to each of
// 4 int32 lanes.

#include "arm.h"

namespace head {
extern const Kernels dotprod_kernels;

namespace {

struct Dotprod {
    template <int Step>
    static HEAD_INLINE void add_products(int32x4_t & sums, uint8x16_t codes, int8x16_t q) {
        sums = vdotq_laneq_s32(sums, vreinterpretq_s8_u8(codes), q, Step);
    }
};

}  // namespace

const Kernels dotprod_kernels = {"dotprod", matmul<Arm<Dotprod>>};

}  // namespace head
