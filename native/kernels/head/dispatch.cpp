// Which kernels go with which tier of native/kernels/ternary.

#include "head.h"

#include <cstring>

namespace head {

extern const Kernels scalar_kernels;
#if defined(__x86_64__) && !defined(TERNARY_SCALAR_ONLY)
extern const Kernels avx2_kernels;
extern const Kernels avx512vnni_kernels;
extern const Kernels avx512gfni_kernels;
extern const Kernels avx512amx_kernels;
#elif defined(__aarch64__) && !defined(TERNARY_SCALAR_ONLY)
extern const Kernels neon_kernels;
extern const Kernels dotprod_kernels;
#endif

const Kernels * kernels_for(const char * ternary_tier) {
    static const struct {
        const char * tier;
        const Kernels * kernels;
    } table[] = {
        {"scalar", &scalar_kernels},
#if defined(__x86_64__) && !defined(TERNARY_SCALAR_ONLY)
        {"avx2", &avx2_kernels},
        {"avx512bw", &avx2_kernels},  // these three have no kernels of their own
        {"avx512vnni256", &avx2_kernels},
        {"avxvnni", &avx2_kernels},
        {"avx512vnni", &avx512vnni_kernels},
        {"avx512vbmi", &avx512vnni_kernels},
        {"avx512gfni", &avx512gfni_kernels},
        {"avx512amx", &avx512amx_kernels},
#elif defined(__aarch64__) && !defined(TERNARY_SCALAR_ONLY)
        {"neon", &neon_kernels},
        {"dotprod", &dotprod_kernels},
        {"i8mm", &dotprod_kernels},  // it has none of its own
#endif
    };
    for (const auto & entry : table) {
        if (std::strcmp(entry.tier, ternary_tier) == 0) {
            return entry.kernels;
        }
    }
    return nullptr;
}

}  // namespace head
