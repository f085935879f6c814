// Which levels of libggml-cpu (levels.cmake) this CPU can run. Compiled for the baseline of the architecture, and needs no other
// library.

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace {

#if defined(__x86_64__)
constexpr bool bit(uint32_t value, int index) { return (value >> index & 1u) != 0; }

constexpr bool all(uint64_t value, uint64_t bits) { return (value & bits) == bits; }

// Intel's manual, volume 2, CPUID; volume 1, 13.2 for XCR0, the state that the operating system saves.
const char * usable_levels() {
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !bit(ecx, 20) || !bit(ecx, 23)) {  // SSE4.2, POPCNT
        return "";
    }
    const bool osxsave = bit(ecx, 27), fma = bit(ecx, 12), avx = bit(ecx, 28), f16c = bit(ecx, 29);
    uint32_t saved = 0, high = 0;
    if (osxsave) {
        __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    }
    if (!all(saved, 0x6) || !fma || !avx || !f16c || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
        return "sse42";
    }
    const uint32_t subleaves = eax;
    if (!bit(ebx, 5) || !bit(ebx, 8)) {  // AVX2, BMI2
        return "sse42";
    }
    constexpr uint32_t f_dq_cd_bw_vl = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
    if (!all(saved, 0xe6) || !all(ebx, f_dq_cd_bw_vl)) {
        return "sse42 avx2";
    }
    if (!bit(ecx, 1) || !bit(ecx, 11)) {  // AVX512_VBMI, AVX512_VNNI
        return "sse42 avx2 avx512";
    }
    const bool amx = bit(edx, 24) && bit(edx, 25) && all(saved, 0x60000);  // AMX_TILE, AMX_INT8
    const bool bf16 = subleaves >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && bit(eax, 5);
    return amx && bf16 ? "sse42 avx2 avx512 avx512vnni amx" : "sse42 avx2 avx512 avx512vnni";
}
#elif defined(__aarch64__)
const char * usable_levels() {
    // <asm/hwcap.h>, whose older versions lack the last one.
    constexpr unsigned long hwcap_fphp = 1ul << 9, hwcap_asimdhp = 1ul << 10, hwcap_asimddp = 1ul << 20;
    constexpr unsigned long hwcap2_i8mm = 1ul << 13, hwcap2_bf16 = 1ul << 14;
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    constexpr unsigned long dotprod = hwcap_fphp | hwcap_asimdhp | hwcap_asimddp;
    if ((first & dotprod) != dotprod) {
        return "armv8";
    }
    constexpr unsigned long armv86 = hwcap2_i8mm | hwcap2_bf16;  // ARMv8.6 has both, and compilers assume so
    return (second & armv86) == armv86 ? "armv8 dotprod i8mm" : "armv8 dotprod";
}
#else
const char * usable_levels() { return ""; }
#endif

}  // namespace

// The names of the levels that this CPU can run, slowest first, separated by spaces; empty if none.
extern "C" __attribute__((visibility("default"))) const char * bitexport_usable_levels() { return usable_levels(); }
