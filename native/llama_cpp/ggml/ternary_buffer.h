// The CPU buffer type that owns I2_S weights, seen from ggml's side.
#pragma once

#include "ggml-backend.h"
#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// The buffer type, or NULL when no kernel can run here (BITEXPORT_TIER asks for one that this CPU lacks, BITEXPORT_LAYOUT
// for a layout that the kernels lack).
// llama.cpp offers it every weight first; it accepts the I2_S matrices and declines the rest.
ggml_backend_buffer_type_t bitexport_ternary_buffer_type(void);

// True when the operation reads an I2_S tensor.
bool bitexport_uses_ternary(const struct ggml_tensor * op);

// Aborts with a message when the operation reads an I2_S tensor, or any that was repacked: called for operations that our
// buffer types did not accept, whose ordinary code would misread the codes.
void bitexport_refuse_ternary(const struct ggml_tensor * op);

// Name of the kernel tier in use ("avx2", ...) and of the layout of the weights in memory ("2bit", "1.6bit"); both NULL when
// BITEXPORT_TIER or BITEXPORT_LAYOUT cannot be honoured, and then one of the errors says why. An error is NULL otherwise.
GGML_BACKEND_API const char * bitexport_tier_name(void);
GGML_BACKEND_API const char * bitexport_tier_error(void);
GGML_BACKEND_API const char * bitexport_layout_name(void);
GGML_BACKEND_API const char * bitexport_layout_error(void);

// Bytes that a product reads of a matrix of this ggml type, in its layout in memory; 0 if ggml's own kernels compute the
// product, which read the bytes of the file (some of them in another order).
GGML_BACKEND_API size_t bitexport_bytes_read(int type, int64_t rows, int64_t cols);

// Observes what our products actually multiply. Called once per product, in the thread that called ggml, with the weight's
// name and its quantized activations: q is int8 [tokens][stride], of which cols are used; scales is [tokens][cols / group],
// one for every `group` columns (all of them for I2_S); an activation is q / scale. Infinite where a group is zero.
// The memory is valid during the call only. NULL removes the observer. Not to be called while another thread computes.
typedef void (*bitexport_observer)(const char * weight, const int8_t * q, int64_t stride, const float * scales, int64_t group,
                                   int64_t cols, int64_t tokens);
GGML_BACKEND_API void bitexport_observe(bitexport_observer observer);
bitexport_observer bitexport_current_observer(void);

#ifdef __cplusplus
}
#endif
