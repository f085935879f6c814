// Threads that stay: ggml without a pool starts and ends its threads in every evaluation of a graph, that is for every token.
#pragma once

#include "ggml-cpu.h"

#ifdef __cplusplus
extern "C" {
#endif

// A pool of this many threads, the caller's among them; NULL when the system gives no more, or count is below 1. End it with
// ggml_threadpool_free, once no context uses it.
GGML_BACKEND_API struct ggml_threadpool * bitexport_new_threads(int count);

#ifdef __cplusplus
}
#endif
