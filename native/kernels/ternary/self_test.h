// Whether a tier can be trusted on this machine: a CPU, or a virtual one, may advertise instructions that it cannot execute.
#pragma once

#include "ternary.h"

#include <string>

namespace ternary {

// Calls work(context) in the calling thread. False if that raised SIGILL: then it was left where it stood, without unwinding.
//
// It installs a handler for the time of the call and puts the process's own back; a SIGILL of any other thread meanwhile goes
// to that one. (A child process would be safer from what `work` does, but bitexport is loaded into processes that belong to
// others, of many threads and many gigabytes: fork copies their page tables and may find any lock held, and its child is seen
// by their handler of SIGCHLD. A helper program would have to be found and started, which takes longer than the test.)
bool runs_without_sigill(void (*work)(void *), void * context);

// Every function of the tier on small problems, exactly compared with the scalar tier, in under a millisecond. Empty, or what
// went wrong, as the end of "<tier> ...". What select_kernels takes.
std::string self_test(const Kernels & kernels);

}  // namespace ternary
