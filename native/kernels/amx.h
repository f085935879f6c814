// AMX, the tile registers of x86-64: whether this process may use them, and their shape in this thread. Linux gives a process
// the registers when it asks; a thread has them from its first tile configuration on.
//
// Only for files that are reached on x86-64.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace amx {

// True if the CPU has AMX with bfloat16 and 8-bit products and the system lets this process use it. Asks once; any thread may
// call it.
inline bool available() {
#if defined(__x86_64__) && defined(__linux__)
    static const bool granted = [] {
        unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
        if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx >> 27 & 1) == 0) {  // OSXSAVE
            return false;
        }
        uint32_t low = 0, high = 0;
        __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        constexpr unsigned tiles = 3u << 17;                                       // XCR0: configuration, data
        constexpr unsigned bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25;
        if ((low & tiles) != tiles || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) ||
            (edx & (bf16 | tile | int8)) != (bf16 | tile | int8)) {
            return false;
        }
        constexpr long request_permission = 0x1023, tile_data = 18;
        return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    }();
    return granted;
#else
    return false;
#endif
}

#if defined(__x86_64__)
// All eight tiles of this thread have 16 rows of 64 bytes while it lives, or the first six, for sums and left operands, `rows` of
// them: a product takes as long as these have rows. Another library in the thread may have had them in
// another shape, so it is made anew for every product and not kept.
class Tiles {
  public:
    explicit Tiles(int rows = 16) {
        alignas(64) uint8_t shape[64] = {1};  // palette; then 16 bytes a row, 16 rows
        for (int i = 0; i < 8; ++i) {
            shape[16 + 2 * i] = 64;
            shape[48 + i] = static_cast<uint8_t>(i < 6 ? rows : 16);
        }
        // Not the intrinsic, which GCC before 11.5, 12.4 and 13.3 believes to read eight bytes alone (GCC bug 114098).
        __asm__ volatile("ldtilecfg %0" : : "m"(shape));
    }
    ~Tiles() { __asm__ volatile("tilerelease"); }
    Tiles(const Tiles &) = delete;
    Tiles & operator=(const Tiles &) = delete;
};
#endif

}  // namespace amx
