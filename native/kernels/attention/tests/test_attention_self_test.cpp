// The self-test of the attention kernels: it passes those of this machine, and finds planted ones that crash or compute wrongly.

#include "attention/self_test.h"
#include "support.h"

#include <csignal>

namespace {

using namespace attention_test;
using namespace kernel_test;

const attention::Kernels * right = nullptr;
bool wrong_prompt, crashes;

void attend(const attention::Token & token, int64_t begin, int64_t end, float * partial) {
    right->attend(token, begin, end, partial);
    if (!wrong_prompt) {
        crashes ? void(raise(SIGILL)) : void(partial[1] *= 1.1f);
    }
}

void prefill(const attention::Prompt & prompt, const attention::Piece & piece, void * scratch) {
    right->prefill(prompt, piece, scratch);
    if (wrong_prompt) {
        crashes ? void(raise(SIGILL)) : void(prompt.out[piece.query_begin * prompt.out_query_stride] += 0.01f);
    }
}

}  // namespace

int main() {
    for (const attention::Kernels * kernels : available()) {
        check(attention::self_test(*kernels).empty(), std::string(kernels->name) + " passes: " + attention::self_test(*kernels));
        right = kernels;
        for (const bool prompt : {false, true}) {
            wrong_prompt = prompt;
            crashes = false;
            attention::Kernels planted = *kernels;
            planted.attend = attend;
            planted.prefill = prefill;
            check(attention::self_test(planted).find("wrongly") != std::string::npos, "a wrong value is found");
            crashes = true;
            check(attention::self_test(planted).find("SIGILL") != std::string::npos, "a crash is found");
        }
    }
    return finish("attention_self_test");
}
