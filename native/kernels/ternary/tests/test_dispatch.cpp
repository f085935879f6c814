// Dispatch: what is offered matches the features given, and a bad override is an error that says what to do.

#include "support.h"

#include <cstdlib>

using namespace ternary;
using namespace ternary_test;

static CpuFeatures everything() {
    CpuFeatures cpu;
    cpu.avx2 = cpu.avxvnni = cpu.avx512f = cpu.avx512bw = cpu.avx512vl = cpu.avx512vnni = cpu.avx512vbmi = cpu.gfni = true;
    cpu.intel = cpu.amxint8 = true;
    cpu.neon = cpu.dotprod = cpu.i8mm = true;
    return cpu;
}

static bool contains(const std::string & text, const std::string & part) { return text.find(part) != std::string::npos; }

static void test_scalar_is_always_there() {
    check(kernels_for(Tier::scalar, CpuFeatures{}) != nullptr, "scalar runs on a CPU without features");
    const Selection best = select_kernels(CpuFeatures{}, nullptr);
    check(best.kernels != nullptr && best.kernels->tier == Tier::scalar, "a CPU without features gets scalar");
}

static void test_override() {
    for (const Kernels * kernels : tiers()) {
        const Selection selection = select_kernels(all_that_runs(), kernels->name);
        check(selection.kernels == kernels && selection.error.empty(), std::string("override ") + kernels->name);
    }
    const Selection best = select_kernels(cpu_features(), nullptr);
    check(select_kernels(all_that_runs(), nullptr).kernels == tiers().back(), "no override gives the last tier of the list that the CPU runs");
    check(select_kernels(cpu_features(), "").kernels == best.kernels, "an empty override is none");
}

static void test_unknown_override() {
    for (const char * name : {"avx9", "AVX2", "scalar ", "avx"}) {
        const Selection selection = select_kernels(cpu_features(), name);
        check(selection.kernels == nullptr, std::string("no kernels for the unknown tier '") + name + "'");
        check(contains(selection.error, name) && contains(selection.error, "unknown"), "error names the value: " + selection.error);
        check(contains(selection.error, "scalar"), "error lists what this CPU has: " + selection.error);
        check(!contains(selection.error, "\n"), "error is one line");
    }
}

static void test_layouts() {
    for (const Kernels * kernels : tiers()) {
        const std::string name = kernels->name;
        check(kernels->offers(Layout::two_bit) && kernels->offers(kernels->preferred), name + " offers what it prefers");
        check(kernels->offers(Layout::five_trit) == (kernels->pack_five_trits != nullptr), name + " packs what it multiplies");
        for (const char * none : {static_cast<const char *>(nullptr), ""}) {
            const LayoutSelection best = select_layout(*kernels, none);
            check(best.ok && best.layout == kernels->preferred, name + ": no override gives the layout it prefers");
        }
        for (const Layout layout : all_layouts) {
            const LayoutSelection selection = select_layout(*kernels, layout_name(layout));
            check(selection.ok == kernels->offers(layout), name + ": override " + layout_name(layout));
            check(selection.ok ? selection.layout == layout : contains(selection.error, "not offered by kernel tier " + name),
                  name + ": the layout named or an error: " + selection.error);
        }
        for (const char * unknown : {"3bit", "2BIT", "2bit ", "1.6"}) {
            const LayoutSelection selection = select_layout(*kernels, unknown);
            check(!selection.ok && contains(selection.error, std::string("'") + unknown + "'") && contains(selection.error, "unknown") &&
                      contains(selection.error, "2bit") && !contains(selection.error, "\n"),
                  name + ": error names the value and the choice: " + selection.error);
        }
    }
}

#if defined(__x86_64__) && !defined(TERNARY_SCALAR_ONLY)
static void test_missing_features() {
    const Selection none = select_kernels(CpuFeatures{}, "avx2");
    check(none.kernels == nullptr && contains(none.error, "avx2") && contains(none.error, "lacks"), "avx2 is refused: " + none.error);
    CpuFeatures cpu;
    const auto best = [&cpu] { return std::string(select_kernels(cpu, nullptr).kernels->name); };
    cpu.avx2 = true;
    check(best() == "avx2", "AVX2 alone: avx2, not " + best());
    cpu.avx512f = cpu.avx512bw = cpu.avx512vl = true;
    check(best() == "avx512bw", "AVX-512 without VNNI: avx512bw, not " + best());
    check(select_kernels(cpu, "avx512vnni").kernels == nullptr, "without VNNI avx512vnni is refused");
    check(select_kernels(cpu, "avx512vnni256").kernels == nullptr, "without VNNI avx512vnni256 is refused");
    check(select_kernels(cpu, "avxvnni").kernels == nullptr, "without AVX-VNNI avxvnni is refused");
    cpu.avx512vnni = true;
    check(best() == "avx512vnni", "AVX-512 VNNI: avx512vnni, not " + best());
    check(select_kernels(cpu, "avx512vbmi").kernels == nullptr, "without VBMI avx512vbmi is refused");
    cpu.avx512vbmi = true;
    check(best() == "avx512vnni", "VBMI without GFNI: avx512vnni, not " + best());
    cpu.gfni = true;
    check(best() == "avx512vbmi", "VBMI and GFNI of another maker: avx512vbmi, not " + best());
    check(select_kernels(cpu, "avx512gfni").kernels == nullptr, "of another maker avx512gfni is refused");
    cpu.intel = true;
    check(best() == "avx512gfni", "VBMI and GFNI of Intel: avx512gfni, not " + best());
    const Selection amx = select_kernels(cpu, "avx512amx");
    check(amx.kernels == nullptr && contains(amx.error, "avx512amx") && contains(amx.error, "lacks"), "avx512amx is refused: " + amx.error);
    check(select_kernels(everything(), nullptr).kernels->tier == Tier::avx512amx, "with everything the best is avx512amx");
    cpu = {};
    cpu.avx2 = cpu.avxvnni = true;
    check(best() == "avxvnni", "AVX-VNNI without AVX-512: avxvnni, not " + best());

    if (!__builtin_cpu_supports("sse2")) {
        return;  // every x86-64 has it, but Zig's runtime knows no CPU
    }
    const CpuFeatures here = cpu_features();
    check(here.avx2 == static_cast<bool>(__builtin_cpu_supports("avx2")), "avx2 as the compiler's runtime sees it");
#if !defined(__clang__)
    check(here.avxvnni == static_cast<bool>(__builtin_cpu_supports("avxvnni")), "avxvnni as the compiler's runtime sees it");
#endif
    check(here.avx512vnni == static_cast<bool>(__builtin_cpu_supports("avx512vnni")), "avx512vnni as the compiler's runtime sees it");
    check(here.intel == static_cast<bool>(__builtin_cpu_is("intel")), "the maker as the compiler's runtime sees it");
    check(here.gfni == static_cast<bool>(__builtin_cpu_supports("gfni")), "gfni as the compiler's runtime sees it");
    check(here.avx512vbmi == static_cast<bool>(__builtin_cpu_supports("avx512vbmi")), "avx512vbmi as the compiler's runtime sees it");
}
#endif

#if defined(__aarch64__) && !defined(TERNARY_SCALAR_ONLY)
static void test_missing_features() {
    CpuFeatures cpu;
    const auto best = [&cpu] { return std::string(select_kernels(cpu, nullptr).kernels->name); };
    cpu.neon = true;
    check(best() == "neon", "NEON alone: neon, not " + best());
    const Selection none = select_kernels(cpu, "dotprod");
    check(none.kernels == nullptr && contains(none.error, "lacks"), "dotprod is refused: " + none.error);
    cpu.dotprod = true;
    check(best() == "dotprod", "NEON with the dot product: dotprod, not " + best());
    check(select_kernels(cpu, "i8mm").kernels == nullptr, "without i8mm it is refused");
    cpu.i8mm = true;
    check(best() == "i8mm", "with all three: i8mm, not " + best());
    check(select_kernels(everything(), nullptr).kernels->tier == Tier::i8mm, "with everything the best is i8mm");
}
#endif

// Where an emulator plays a certain CPU, the environment says which tier must be chosen.
static void test_expected_tier() {
    const char * expected = std::getenv("TERNARY_EXPECTED_TIER");
    const std::string best = select_kernels(cpu_features(), nullptr).kernels->name;
    check(expected == nullptr || best == expected, "this CPU must get " + std::string(expected ? expected : "") + ", not " + best);
}

int main() {
    test_scalar_is_always_there();
    test_override();
    test_unknown_override();
    test_layouts();
    test_expected_tier();
#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(TERNARY_SCALAR_ONLY)
    test_missing_features();
#else
    check(select_kernels(everything(), nullptr).kernels->tier == Tier::scalar, "only scalar is built here");
#endif
    return finish("dispatch");
}
