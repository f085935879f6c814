// The self-test of tiers: it passes those of this machine, and finds planted ones that crash or compute wrongly, in any of their
// functions. The process's own handler of SIGILL is the same before and after.

#include "support.h"
#include "ternary/self_test.h"

#include <pthread.h>
#include <csignal>
#include <cstring>
#include <thread>

using namespace ternary;
using namespace ternary_test;

// Work that crashes is left without unwinding, so what it had allocated stays: the sanitizer need not say so.
extern "C" const char * __lsan_default_suppressions();
extern "C" const char * __lsan_default_suppressions() { return "leak:runs_without_sigill\n"; }

static bool contains(const std::string & text, const std::string & part) { return text.find(part) != std::string::npos; }

static void illegal_instruction() {
#if defined(__x86_64__)
    __asm__ volatile("ud2");
#elif defined(__aarch64__)
    __asm__ volatile(".inst 0");
#else
    raise(SIGILL);
#endif
}

// Planted functions: the scalar tier's, which crash or leave one result wrong.
static bool crashes = false;

static void quantize_token(const float * x, int64_t cols, int8_t * q, float * scale, int32_t * sum) {
    scalar().quantize_token(x, cols, q, scale, sum);
    crashes ? illegal_instruction() : void(q[cols - 1] ^= 1);
}

static void quantize_groups(Grouped kind, const float * x, int64_t cols, int8_t * q, float * step, int32_t * minus_sum) {
    scalar().grouped.quantize_token(kind, x, cols, q, step, minus_sum);
    crashes ? illegal_instruction() : void(step[0] *= 2);
}

template <Layout layout, int64_t wrong_tokens>
static void matmul(const void * packed, int64_t rows, int64_t cols, float weight_scale, const QuantizedTokens & tokens, float * y,
                   int64_t y_stride, int64_t panel_begin, int64_t panel_end) {
    scalar().products(layout).matmul(packed, rows, cols, weight_scale, tokens, y, y_stride, panel_begin, panel_end);
    if ((tokens.tokens == 1) == (wrong_tokens == 1)) {
        crashes ? illegal_instruction() : void(y[(tokens.tokens - 1) * y_stride + rows - 1] *= 2);
    }
}

template <Grouped wrong>
static void matmul_grouped(Grouped kind, const void * packed, int64_t rows, int64_t cols, const GroupedTokens & tokens, float * y,
                           int64_t y_stride, int64_t panel_begin, int64_t panel_end) {
    scalar().grouped.matmul(kind, packed, rows, cols, tokens, y, y_stride, panel_begin, panel_end);
    if (kind == wrong) {
        crashes ? illegal_instruction() : void(y[0] *= 2);
    }
}

static void pack_five_trits(const uint8_t * two_bit, int64_t chunks, uint8_t * five_trit) {
    scalar().pack_five_trits(two_bit, chunks, five_trit);
    crashes ? illegal_instruction() : void(five_trit[0] ^= 0x40);
}

struct Planted {
    Kernels kernels;
    std::string part;
};

static std::vector<Planted> planted() {
    const Kernels good = scalar();
    std::vector<Planted> all(8, {good, ""});
    all[0].kernels.quantize_token = quantize_token;
    all[0].part = "quantized activations";
    all[1].kernels.grouped.quantize_token = quantize_groups;
    all[1].part = "quantized activations";
    all[2].kernels.two_bit.matmul = matmul<Layout::two_bit, 1>;
    all[3].kernels.two_bit.matmul = matmul<Layout::two_bit, 2>;
    all[4].kernels.five_trit.matmul = matmul<Layout::five_trit, 2>;
    all[5].kernels.pack_five_trits = pack_five_trits;
    for (int i = 2; i <= 5; ++i) {
        all[i].part = "products of I2_S weights";
    }
    all[6].kernels.grouped.matmul = matmul_grouped<Grouped::q2_0>;
    all[7].kernels.grouped.matmul = matmul_grouped<Grouped::tq2_0>;
    all[6].part = all[7].part = "products of grouped weights";
    return all;
}

static void test_tiers_here() {
    for (const Kernels * kernels : tiers()) {
        check(self_test(*kernels).empty(), std::string(kernels->name) + " " + self_test(*kernels));
    }
    const Selection best = select_kernels(cpu_features(), nullptr, self_test);
    check(best.kernels == tiers().back() && best.warning.empty(), "all tiers work here, so the best one is chosen: " + best.warning);
}

static void test_planted() {
    for (const Planted & plant : planted()) {
        crashes = false;
        check(contains(self_test(plant.kernels), plant.part), "a wrong result is found: " + plant.part + ": " + self_test(plant.kernels));
        crashes = true;
        for (int time = 0; time < 2; ++time) {
            check(contains(self_test(plant.kernels), "SIGILL"), "a crash is found: " + plant.part + ": " + self_test(plant.kernels));
        }
    }
}

static std::string fails_all(const Kernels &) { return "was planted"; }
static std::string fails_best(const Kernels & kernels) { return &kernels == tiers().back() ? "was planted" : ""; }

static void test_choice() {
    const std::vector<const Kernels *> here = tiers();
    if (here.size() == 1) {
        check(select_kernels(cpu_features(), nullptr, fails_all).kernels == here[0], "scalar takes no test");
        return;
    }
    const std::string best = here.back()->name;
    const Selection second = select_kernels(cpu_features(), nullptr, fails_best);
    check(second.kernels == here[here.size() - 2] && second.error.empty(), "the best tier fails: the next one");
    check(second.warning == "kernel tier " + best + " is skipped: it was planted; using " + second.kernels->name, "warning: " + second.warning);
    const Selection none = select_kernels(cpu_features(), nullptr, fails_all);
    check(none.kernels == &scalar() && contains(none.warning, best) && contains(none.warning, here[1]->name), "all fail: scalar; " + none.warning);
    const Selection forced = select_kernels(cpu_features(), best.c_str(), fails_best);
    check(forced.kernels == nullptr && contains(forced.error, "kernel tier '" + best + "' was planted; expected one of"),
          "a tier that is asked for and fails is an error: " + forced.error);
    check(select_kernels(cpu_features(), here[1]->name, fails_best).kernels != nullptr || here.size() == 2, "another tier may be forced");
}

static volatile sig_atomic_t caught = 0;
static void catch_sigill(int) { caught = caught + 1; }

static struct sigaction current_action() {
    struct sigaction action;
    sigaction(SIGILL, nullptr, &action);
    return action;
}

static void in_another_thread(void *) {
    std::thread([] { pthread_kill(pthread_self(), SIGILL); }).join();
    illegal_instruction();
}

static void test_handlers() {
    struct sigaction own = {};
    own.sa_handler = catch_sigill;
    sigaction(SIGILL, &own, nullptr);
    sigset_t blocked, before, after;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGILL);
    pthread_sigmask(SIG_BLOCK, &blocked, nullptr);  // must not end the process
    pthread_sigmask(SIG_BLOCK, nullptr, &before);
    check(!runs_without_sigill([](void *) { illegal_instruction(); }, nullptr), "an illegal instruction is found where SIGILL is blocked");
    pthread_sigmask(SIG_BLOCK, nullptr, &after);
    check(sigismember(&after, SIGILL) == 1 && sigismember(&before, SIGINT) == sigismember(&after, SIGINT), "the mask is as before");
    pthread_sigmask(SIG_UNBLOCK, &blocked, nullptr);
    check(current_action().sa_handler == catch_sigill, "the process's own handler is back after a crash");
    check(caught == 0, "and was not called");
    check(!runs_without_sigill(in_another_thread, nullptr), "an illegal instruction after another thread's signal is found");
    check(caught == 1, "the other thread's signal goes to the process's own handler");
    int done = 0;
    const bool ran = runs_without_sigill([](void * context) { *static_cast<int *>(context) = 7; }, &done);
    check(ran && done == 7, "work that raises nothing is done");
    raise(SIGILL);
    check(caught == 2 && current_action().sa_handler == catch_sigill, "the handler is back after success");
}

int main() {
    test_tiers_here();
    test_planted();
    test_choice();
    test_handlers();
    return finish("self_test");
}
