// Tier avxvnni: AVX2 and AVX-VNNI, the VEX encoding of vpdpbusd (Alder Lake, Arrow Lake, Sierra Forest and later).
// x86_vnni256.h has the kernel, its algebra and its bounds, and tells how it is tested on CPUs without AVX-VNNI.

#include "x86_vnni256.h"

namespace ternary {
extern const Kernels avxvnni_kernels;

namespace {

struct Vex {
    static TERNARY_INLINE void dot(__m256i & sum_i32x8, __m256i codes_u8x32, __m256i quad_s8x32) {
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum_i32x8) : "x"(codes_u8x32), "x"(quad_s8x32));
    }
};

using AvxVnni = Vnni256<Vex>;

}  // namespace

const Kernels avxvnni_kernels = {Tier::avxvnni, "avxvnni", quantize_token<AvxVnni>,
                                 {matmul_f32<AvxVnni>, matmul_i32<AvxVnni>},
                                 {quantize_groups<AvxVnni>, matmul_grouped<GroupedX86<AvxVnni>>}};

}  // namespace ternary
