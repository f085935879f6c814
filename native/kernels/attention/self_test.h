// Whether the attention kernels can be trusted on this machine, as ternary/self_test.h asks of a tier of ternary kernels.
#pragma once

#include "attention.h"

#include <string>

namespace attention {

// A prompt and a single token, compared with double precision, in a few milliseconds at most. Empty, or what went wrong, as the end
// of "the attention kernels <name> ...".
std::string self_test(const Kernels & kernels);

}  // namespace attention
