// Tier avx512vnni: AVX-512 F/BW/VL and VNNI (Cascade Lake, Ice Lake, Zen 4 and later).
//
// Instructions: vpdpbusd zmm adds four products u8 * s8 to each of 16 int32 lanes: codes are its unsigned operand,
//   activations, four columns broadcast to every lane, its signed one. A lane is a row. A sub-block's sum is multiplied
//   by the rows' scales (vpmulld).
// Algebra: q6_k's value is code - 32: a sub-block's sum starts from -32 * sum(q) instead of 0. Mins: vpdpwssd takes two
//   sub-blocks' mins, int16, with their two sums of q.
// Bounds: a sub-block's sum stays below 2 * 32 * 63 * 127 < 2^19; the rest as in scalar.cpp. Inside vpdpbusd
//   4 * 63 * 127 fits without saturation.

#include "x86_vnni512.h"

namespace head {

extern const Kernels avx512vnni_kernels;

const Kernels avx512vnni_kernels = {"avx512vnni", matmul<Avx512Vnni>};

}  // namespace head
