// Tier avx512vnni256: the kernel of avxvnni, with the EVEX encoding of vpdpbusd that AVX-512 VL and VNNI bring.
// It can be forced like any other tier but is never chosen by itself: a CPU that has it also has avx512vnni. It is there
// so that avxvnni's source runs in tests and benchmarks on AVX-512 machines; x86_vnni256.h has it.

#include "x86_vnni256.h"

namespace ternary {
extern const Kernels avx512vnni256_kernels;

namespace {

struct Evex {
    static TERNARY_INLINE void dot(__m256i & sum_i32x8, __m256i codes_u8x32, __m256i quad_s8x32) {
        __asm__("%{evex%} vpdpbusd %2, %1, %0" : "+x"(sum_i32x8) : "x"(codes_u8x32), "x"(quad_s8x32));
    }
};

using Avx512Vnni256 = Vnni256<Evex>;

}  // namespace

const Kernels avx512vnni256_kernels = {Tier::avx512vnni256, "avx512vnni256", quantize_token<Avx512Vnni256>,
                                       {matmul_f32<Avx512Vnni256>, matmul_i32<Avx512Vnni256>},
                                       {quantize_groups<Avx512Vnni256>, matmul_grouped<GroupedX86<Avx512Vnni256>>}};

}  // namespace ternary
