// Memory for packed weights. On 2 MiB pages a stream of weights needs 512 times fewer translations: decode reads them up to
// 1.5 times as fast (benchmarks/kernels.md).

#include "ternary.h"

#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ternary {
namespace {

constexpr size_t large_page = 2 << 20;
constexpr size_t line_bytes = 64;

}  // namespace

void * allocate_weights(size_t bytes) {
    const size_t alignment = bytes < large_page ? line_bytes : large_page;
    const size_t size = (bytes + alignment - 1) / alignment * alignment;
    void * memory = std::aligned_alloc(alignment, size == 0 ? alignment : size);
#if defined(__linux__)
    if (memory != nullptr && alignment == large_page) {
        (void) madvise(memory, size, MADV_HUGEPAGE);  // a wish: without it the memory is as good, only slower
    }
#endif
    return memory;
}

void free_weights(void * memory) { std::free(memory); }

}  // namespace ternary
