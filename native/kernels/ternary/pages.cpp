// Large pages. On 2 MiB pages a stream of weights needs 512 times fewer address translations: decode reads them up to 1.5
// times as fast (benchmarks/kernels.md).

#include "ternary.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ternary {

void prefer_large_pages(void * memory, size_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t page = 2 << 20;
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
    const uintptr_t begin = (address + page - 1) / page * page;
    const uintptr_t end = (address + bytes) / page * page;
    if (begin < end) {
        (void) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);  // refused, it is only slower
    }
#else
    (void) memory;
    (void) bytes;
#endif
}

}  // namespace ternary
