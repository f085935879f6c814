// The CPU buffer type that owns I2_S weights, seen from ggml's side.
#pragma once

#include "ggml-backend.h"
#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// The buffer type, or NULL when no kernel can run here (BITEXPORT_TIER asks for one that this CPU lacks, BITEXPORT_LAYOUT
// for a layout that the kernels lack).
// llama.cpp offers it every weight first; it takes the I2_S matrices and leaves the rest.
ggml_backend_buffer_type_t bitexport_ternary_buffer_type(void);

// True when the operation reads an I2_S tensor.
bool bitexport_uses_ternary(const struct ggml_tensor * op);

// Aborts with a message when the operation reads an I2_S tensor: called for operations that our buffer type did not
// take, whose ordinary code would read the codes as something else.
void bitexport_refuse_ternary(const struct ggml_tensor * op);

// Called in each turn of the loop in which a thread waits for the others, with a count that starts at 0. Now and then it
// lets another thread run: with fewer free processors than threads, those that are waited for need the one that waits.
void bitexport_wait(int * spins);

// Name of the kernel tier in use ("avx2", ...) and of the layout of the weights in memory ("2bit", "1.6bit"); both NULL when
// BITEXPORT_TIER or BITEXPORT_LAYOUT cannot be honoured, and then one of the errors says why. An error is NULL otherwise.
GGML_BACKEND_API const char * bitexport_tier_name(void);
GGML_BACKEND_API const char * bitexport_tier_error(void);
GGML_BACKEND_API const char * bitexport_layout_name(void);
GGML_BACKEND_API const char * bitexport_layout_error(void);

// Bytes that a product reads of a matrix of this ggml type, in the layout that it has in memory; 0 when the product is not
// ours, and ggml's own kernels read what the file holds (some of them in another order).
GGML_BACKEND_API size_t bitexport_bytes_read(int type, int64_t rows, int64_t cols);

// Watches what the ternary products really multiply. Called once per product, in the thread that called ggml, with the
// weight's name and its quantized activations: q is int8 [tokens][stride], of which cols are used; scale is [tokens].
// The memory is valid during the call only. NULL ends the watching. Not for use while another thread computes.
typedef void (*bitexport_observer)(const char * weight, const int8_t * q, int64_t stride, const float * scale,
                                   int64_t cols, int64_t tokens);
GGML_BACKEND_API void bitexport_observe(bitexport_observer observer);

#ifdef __cplusplus
}
#endif
