// Releases pages of a mapped model file that will not be read soon.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

// Removes the complete pages within [data, data + size) of a file mapping from this process's memory. They stay in the
// system's page cache, and reading them again brings them back; so this is safe for a tied embedding, too, of which only
// the rows of the prompt's tokens are read again. Only for shared or untouched private file mappings: other memory would
// lose its content. If the system refuses (locked pages), nothing happens.
inline void bitexport_forget_pages(const void * data, size_t size) {
#if defined(__linux__)
    const uintptr_t page  = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const uintptr_t end   = (reinterpret_cast<uintptr_t>(data) + size) / page * page;
    if (begin < end) {
        madvise(reinterpret_cast<void *>(begin), end - begin, MADV_DONTNEED);
    }
#else
    (void) data;
    (void) size;
#endif
}
