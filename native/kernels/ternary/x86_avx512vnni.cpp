// Tier avx512vnni: AVX-512 F/BW/VL and VNNI (Cascade Lake, Ice Lake, Zen 4 and later).
//
// Instructions: vpdpbusd zmm adds four products u8 * s8 to each of 16 int32 lanes: codes are its unsigned operand,
//   activations, four columns broadcast to every lane, its signed one. A lane is a row.
// Algebra: sum(trit * q) = sum(code * q) - sum(q). Where a code is masked but not shifted down it is worth 4^field
//   codes; those sums have accumulators of their own and are shifted back, exactly, at the end.
// Bounds, for max_cols = 65536: a sum over codes is at most 2 * 128 * 65536 = 2^24. Unshifted, field 3 adds up to
//   128 * 128 in a quarter of the columns: 2^28. Inside the instruction 4 * 255 * 128 fits without saturation.

#include "x86_vnni512.h"

namespace ternary {
extern const Kernels avx512vnni_kernels;

const Kernels avx512vnni_kernels = {Tier::avx512vnni, "avx512vnni", quantize_token<Avx512Vnni>,
                                    {matmul_f32<Avx512Vnni>, matmul_i32<Avx512Vnni>},
                                    {quantize_groups<Avx512Vnni>, matmul_grouped<GroupedAvx512Vnni>}};

}  // namespace ternary
