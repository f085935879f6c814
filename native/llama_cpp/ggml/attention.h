// Attention, computed by our kernels instead of ggml's.
#pragma once

#include "ggml-backend.h"
#include "traits.h"

// The traits for this operation when it is a flash attention that the kernels in native/kernels/attention compute: float32
// tokens, float16 keys and values, no ALiBi bias, no soft cap, no sinks. Otherwise nullptr, and ggml computes it; always
// nullptr with BITEXPORT_ATTENTION=stock.
ggml::cpu::tensor_traits * bitexport_attention_traits(const ggml_tensor * op);

extern "C" {
// What is wrong with BITEXPORT_ATTENTION; NULL if nothing is.
GGML_BACKEND_API const char * bitexport_attention_error(void);
}
