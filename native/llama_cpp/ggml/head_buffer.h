// The CPU buffer type that owns a k-quant output head, seen from ggml's side.
#pragma once

#include "ggml-backend.h"

#ifdef __cplusplus
extern "C" {
#endif

// The buffer type, or NULL when ggml's own kernels are to be used: the environment has BITEXPORT_HEAD=stock, or there are
// no kernels for this kind of CPU. llama.cpp offers every weight to it; it accepts `output.weight`, or `token_embd.weight`
// if that is also the head, of type Q4_K, Q5_K or Q6_K, and declines the rest.
// With any other value of BITEXPORT_HEAD, loading a model with such a head fails (std::runtime_error, which llama.cpp logs).
ggml_backend_buffer_type_t bitexport_head_buffer_type(void);

// What is wrong with BITEXPORT_HEAD; NULL if nothing is.
GGML_BACKEND_API const char * bitexport_head_error(void);

#ifdef __cplusplus
}
#endif
