// A persistent pool: without one, ggml starts and ends its threads in every evaluation of a graph, that is, for every token.
#pragma once

#include "ggml-cpu.h"

#ifdef __cplusplus
extern "C" {
#endif

// A pool of this many threads, including the caller's; NULL if the system cannot start them or count is below 1. Free it
// with ggml_threadpool_free once no context uses it.
GGML_BACKEND_API struct ggml_threadpool * bitexport_new_threads(int count);

#ifdef __cplusplus
}
#endif
