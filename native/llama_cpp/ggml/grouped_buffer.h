// The CPU buffer type that owns Q2_0, TQ1_0 and TQ2_0 weights, seen from ggml's side.
#pragma once

#include "ggml-backend.h"

#ifdef __cplusplus
extern "C" {
#endif

// The buffer type, or NULL when ggml's own kernels are to be used: the environment has BITEXPORT_GROUPED=stock, or no kernel
// can run here. llama.cpp offers it every weight; it accepts the matrices of these types, an output head and the matrices of
// experts (MUL_MAT_ID) included, and declines the rest: an embedding that is looked up, other stacks of matrices.
// With any other value of BITEXPORT_GROUPED, loading a model with such a matrix fails (std::runtime_error, which llama.cpp logs).
ggml_backend_buffer_type_t bitexport_grouped_buffer_type(void);

// As bitexport_bytes_read, for these types alone; 0 for any other.
size_t bitexport_grouped_bytes_read(int type, int64_t rows, int64_t cols);

// What is wrong with BITEXPORT_GROUPED; NULL if nothing is.
GGML_BACKEND_API const char * bitexport_grouped_error(void);

#ifdef __cplusplus
}
#endif
