// Tier dotprod: NEON with sdot (Cortex-A55, A75, A76, Neoverse N1, Apple M1 and later). arm_dot.h has the kernel.

#include "arm_dot.h"

namespace ternary {
extern const Kernels dotprod_kernels;

const Kernels dotprod_kernels = {Tier::dotprod, "dotprod", quantize_token<Dot>,
                                 {matmul_f32<Dot>, matmul_i32<Dot>},
                                 {quantize_groups<Dot>, matmul_grouped<GroupByGroup<Dot>>}};

}  // namespace ternary
