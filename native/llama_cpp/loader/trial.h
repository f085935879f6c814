// A trial of a model file, for a process that may die of it.
#pragma once

#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

// Loads a model, reads all its tokens, tokenizes some texts, and evaluates a few tokens in each kind of context that
// bitexport uses. With `vocab_only`, only the vocabulary is tried. Errors go to stderr, a line each.
// Returns 0 if everything worked, 1 if llama.cpp returned an error. A file may also make it abort, crash or hang.
LLAMA_API int bitexport_try_model(const char * path, int n_threads, bool vocab_only);

#ifdef __cplusplus
}
#endif
