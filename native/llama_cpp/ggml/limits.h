// Loops that measure this machine's limits, for bitexport's benchmark.
#pragma once

#include "ggml-backend.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Runs the multiply-add instructions of the tier in use on registers alone, in the calling thread. Returns how many
// multiply-adds were done; 0 when the tier has no such instruction (scalar) or there is no tier.
GGML_BACKEND_API int64_t bitexport_multiply_adds(int64_t iterations);

// Reads `bytes` (a multiple of 1024) once, in the calling thread, as suits the tier in use. The result is meaningless.
GGML_BACKEND_API uint64_t bitexport_read_memory(const void * data, int64_t bytes);

#ifdef __cplusplus
}
#endif
