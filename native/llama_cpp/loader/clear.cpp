#include "clear.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

#if defined(__linux__)
// Gives back the complete pages in [begin, end). True if they now read as zeros: an allocator may take its memory from a file,
// whose content would come back, and the system may refuse (locked pages).
bool give_back(uintptr_t begin, uintptr_t end) {
    auto * const first = reinterpret_cast<volatile uint8_t *>(begin);
    *first             = 1;
    return madvise(reinterpret_cast<void *>(begin), end - begin, MADV_DONTNEED) == 0 && *first == 0;
}
#endif

}  // namespace

void bitexport_clear_buffer(ggml_backend_buffer_t buffer) {
#if defined(__linux__)
    constexpr size_t small = 1 << 20;
    const size_t     size  = ggml_backend_buffer_get_size(buffer);
    if (size >= small && ggml_backend_buffer_get_type(buffer) == ggml_backend_cpu_buffer_type()) {
        const auto page  = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
        const auto start = reinterpret_cast<uintptr_t>(ggml_backend_buffer_get_base(buffer));
        const auto begin = (start + page - 1) / page * page;
        const auto end   = (start + size) / page * page;
        if (give_back(begin, end)) {
            std::memset(reinterpret_cast<void *>(start), 0, begin - start);
            std::memset(reinterpret_cast<void *>(end), 0, start + size - end);
            return;
        }
    }
#endif
    ggml_backend_buffer_clear(buffer, 0);
}
