// AVX-512 F, with FMA and F16C beside it: sixteen floats a vector.

#include "attend.h"
#include "float_products.h"
#include "x86_512.h"

namespace attention {
extern const Kernels avx512_kernels;

const Kernels avx512_kernels = {
    "avx512",
    attend<Avx512>,
    Prefill<FloatProducts<Avx512>>::run,
    Prefill<FloatProducts<Avx512>>::scratch_bytes,
    Prefill<FloatProducts<Avx512>>::most_rows,
    FloatProducts<Avx512>::lanes,
};

}  // namespace attention
