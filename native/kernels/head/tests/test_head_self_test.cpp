// The self-test of the head's kernels: it passes those of this machine, and finds planted ones that crash or compute wrongly.

#include "head/self_test.h"
#include "ternary/tests/support.h"

#include <csignal>

namespace {

using namespace ternary_test;

head::Type wrong_type;
bool wrong_batch, crashes;

void planted(head::Type type, const void * packed, int64_t rows, int64_t cols, const head::Batch & batch, float * y, int64_t y_stride,
             int64_t panel_begin, int64_t panel_end) {
    head::kernels_for("scalar")->matmul(type, packed, rows, cols, batch, y, y_stride, panel_begin, panel_end);
    if (type == wrong_type && (batch.tokens > 1) == wrong_batch) {
        crashes ? void(raise(SIGILL)) : void(y[(batch.tokens - 1) * y_stride + rows - 1] *= 2);
    }
}

}  // namespace

int main() {
    for (const ternary::Kernels * tier : tiers()) {
        const head::Kernels * kernels = head::kernels_for(tier->name);
        check(kernels != nullptr && head::self_test(*kernels).empty(), std::string(tier->name) + " passes");
    }
    for (const head::Type type : {head::Type::q4_k, head::Type::q5_k, head::Type::q6_k}) {
        for (const bool batch : {false, true}) {
            wrong_type = type;
            wrong_batch = batch;
            crashes = false;
            const head::Kernels kernels{"planted", planted};
            check(head::self_test(kernels).find("wrongly") != std::string::npos, "one wrong value is found");
            crashes = true;
            check(head::self_test(kernels).find("SIGILL") != std::string::npos, "a crash is found");
        }
    }
    return finish("head_self_test");
}
