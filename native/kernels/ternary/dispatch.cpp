// Which tiers this CPU can run, and the choice among them.

#include "amx.h"
#include "ternary.h"

#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
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
    cpu.intel = __get_cpuid(0, &eax, &ebx, &ecx, &edx) != 0 && ebx == signature_INTEL_ebx && edx == signature_INTEL_edx &&
                ecx == signature_INTEL_ecx;
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
    cpu.avx512vbmi = os_avx512 && bit(ecx, 1);
    cpu.gfni = bit(ecx, 8);
    cpu.amxint8 = amx::available();
    if (eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) {  // eax: the last subleaf there is
        cpu.avxvnni = os_avx && bit(eax, 4);
    }
    return cpu;
}
#elif defined(__aarch64__) && defined(__linux__)
CpuFeatures cpu_features() {
    // <asm/hwcap.h>, whose older versions lack the last one.
    constexpr unsigned long hwcap_asimd = 1ul << 1;
    constexpr unsigned long hwcap_asimddp = 1ul << 20;
    constexpr unsigned long hwcap2_i8mm = 1ul << 13;
    CpuFeatures cpu;
    cpu.neon = (getauxval(AT_HWCAP) & hwcap_asimd) != 0;
    cpu.dotprod = (getauxval(AT_HWCAP) & hwcap_asimddp) != 0;
    cpu.i8mm = (getauxval(AT_HWCAP2) & hwcap2_i8mm) != 0;
    return cpu;
}
#elif defined(__aarch64__) && defined(__APPLE__)
namespace {

// Not tested: nobody has run this on a Mac yet.
bool sysctl_says(const char * name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

}  // namespace

CpuFeatures cpu_features() {
    CpuFeatures cpu;
    cpu.neon = true;
    cpu.dotprod = sysctl_says("hw.optional.arm.FEAT_DotProd");
    cpu.i8mm = sysctl_says("hw.optional.arm.FEAT_I8MM");
    return cpu;
}
#else
CpuFeatures cpu_features() { return {}; }
#endif

CpuFeatures all_that_runs() {
    CpuFeatures cpu = cpu_features();
    cpu.intel = true;
    return cpu;
}

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

Selection select_kernels(const CpuFeatures & cpu, const char * override_name, SelfTest failure_of) {
    Selection selection;
    const bool forced = override_name != nullptr && *override_name != '\0';
    bool known = false;
    std::string names;
    const Kernels * candidates[tier_count];  // the best one last
    int count = 0;
#define TERNARY_TIER(name, needs)                                                \
    if (const Kernels * kernels = kernels_for(Tier::name, cpu)) {                \
        names += names.empty() ? #name : ", " #name;                             \
        if (!forced || std::strcmp(override_name, #name) == 0) {                 \
            candidates[count++] = kernels;                                       \
        }                                                                        \
    }                                                                            \
    known = known || (forced && std::strcmp(override_name, #name) == 0);
#include "tiers.inc"
#undef TERNARY_TIER
    std::string failure;
    while (count > 0 && selection.kernels == nullptr) {
        const Kernels & kernels = *candidates[--count];
        failure = failure_of == nullptr || kernels.tier == Tier::scalar ? "" : failure_of(kernels);
        if (failure.empty()) {
            selection.kernels = &kernels;
        } else if (!forced) {
            selection.warning += (selection.warning.empty() ? "" : "; ") + std::string("kernel tier ") + kernels.name +
                                 " is skipped: it " + failure;
        }
    }
    if (selection.kernels == nullptr) {
        selection.error = "kernel tier '" + std::string(override_name) + "' " +
                          (!failure.empty() ? failure : known ? "needs what this CPU lacks" : "is unknown to this build") +
                          "; expected one of: " + names + "; name one of them, or none to get the fastest";
    } else if (!selection.warning.empty()) {
        selection.warning += std::string("; using ") + selection.kernels->name;
    }
    return selection;
}

}  // namespace ternary
