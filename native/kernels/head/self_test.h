// Whether the head's kernels can be trusted on this machine, as ternary/self_test.h asks of a tier of ternary kernels.
#pragma once

#include "head.h"

#include <string>

namespace head {

// A batch and a single token of every type, exactly compared with the scalar kernels, in under a millisecond. Empty, or what went
// wrong, as the end of "the head's kernels <name> ...".
std::string self_test(const Kernels & kernels);

}  // namespace head
