// Which tiers this CPU can run, and the choice among them.

#include "ternary.h"

#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ternary {

#define TERNARY_TIER(name, needs) extern const Kernels name##_kernels;
#include "tiers.inc"
#undef TERNARY_TIER

#if defined(__x86_64__)
namespace {

constexpr bool bit(unsigned value, int index) { return (value >> index & 1u) != 0; }

// XCR0: the register state that the operating system saves. Instructions may be used only where theirs is.
uint64_t saved_state() {
    uint32_t low = 0;
    uint32_t high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<uint64_t>(high) << 32 | low;
}

}  // namespace

CpuFeatures cpu_features() {
    CpuFeatures cpu;
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !bit(ecx, 27)) {  // 27: OSXSAVE, xgetbv may be used
        return cpu;
    }
    const uint64_t state = saved_state();
    const bool os_avx = (state & 0x06) == 0x06;     // xmm, ymm
    const bool os_avx512 = (state & 0xe6) == 0xe6;  // and opmask, upper zmm, zmm16-31
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
        return cpu;
    }
    cpu.avx2 = os_avx && bit(ebx, 5);
    cpu.avx512f = os_avx512 && bit(ebx, 16);
    cpu.avx512bw = os_avx512 && bit(ebx, 30);
    cpu.avx512vl = os_avx512 && bit(ebx, 31);
    cpu.avx512vnni = os_avx512 && bit(ecx, 11);
    if (eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) {  // eax: the last subleaf there is
        cpu.avxvnni = os_avx && bit(eax, 4);
    }
    return cpu;
}
#else
CpuFeatures cpu_features() { return {}; }
#endif

const Kernels * kernels_for(Tier tier, const CpuFeatures & cpu) {
    (void) cpu;  // unused where only the scalar tier is built
    switch (tier) {
#define TERNARY_TIER(name, needs) \
    case Tier::name:              \
        return (needs) ? &name##_kernels : nullptr;
#include "tiers.inc"
#undef TERNARY_TIER
    }
    return nullptr;
}

Selection select_kernels(const CpuFeatures & cpu, const char * override_name) {
    Selection selection;
    const bool forced = override_name != nullptr && *override_name != '\0';
    bool known = false;
    std::string names;
#define TERNARY_TIER(name, needs)                                                \
    if (const Kernels * kernels = kernels_for(Tier::name, cpu)) {                \
        names += names.empty() ? #name : ", " #name;                             \
        if (!forced || std::strcmp(override_name, #name) == 0) {                 \
            selection.kernels = kernels;                                         \
        }                                                                        \
    }                                                                            \
    known = known || (forced && std::strcmp(override_name, #name) == 0);
#include "tiers.inc"
#undef TERNARY_TIER
    if (selection.kernels == nullptr) {
        selection.error = "kernel tier '" + std::string(override_name) + "' " +
                          (known ? "needs instructions that this CPU lacks" : "is unknown to this build") +
                          "; expected one of: " + names + "; name one of them, or none to get the fastest";
    }
    return selection;
}

}  // namespace ternary
