// The CPU buffer type that owns a k-quant output head, seen from ggml's side.
#pragma once

#include "ggml-backend.h"

#ifdef __cplusplus
extern "C" {
#endif

// The buffer type, or NULL when ggml's own kernels are to be used: the environment has BITEXPORT_HEAD=stock, or there are
// no kernels for this kind of CPU. llama.cpp offers every weight to it; it takes `output.weight`, or `token_embd.weight`
// where that serves as the head, of type Q4_K, Q5_K or Q6_K, and leaves the rest.
// With any other value of BITEXPORT_HEAD no model that has such a head loads (std::runtime_error, which llama.cpp logs).
ggml_backend_buffer_type_t bitexport_head_buffer_type(void);

// What is wrong with BITEXPORT_HEAD; NULL when nothing is.
GGML_BACKEND_API const char * bitexport_head_error(void);

#ifdef __cplusplus
}
#endif
