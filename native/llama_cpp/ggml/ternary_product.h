// The product of one token with a ternary matrix, in steps, for fused.cpp; ternary_buffer.cpp has them.
#pragma once

#include "ggml.h"
#include "ternary/ternary.h"

// Whether the operation is a product (MUL_MAT) with a complete matrix in the CPU_TERNARY buffer.
bool bitexport_multiplies(const ggml_tensor * op);

// Whether the operation is a product of one token with such a matrix.
bool bitexport_multiplies_one_token(const ggml_tensor * op);

// What a thread needs beside the quantized token: the memory for cols float32 behind it.
class TokenMemory {
  public:
    // Bytes of one thread. Every product of one token asks ggml for so much work memory for each thread.
    static size_t bytes(int64_t cols);

    // `work` is ggml's work memory, `thread` the index of the thread.
    TokenMemory(void * work, int64_t cols, int thread);

    float *                  floats() const { return floats_; }
    ternary::QuantizedBuffer batch() const { return batch_; }

  private:
    ternary::QuantizedBuffer batch_;
    float *                  floats_;
};

// Quantizes x, as many float32 as the product's matrix has columns.
void bitexport_quantize_token(const float * x, int64_t cols, const ternary::QuantizedBuffer & batch);

// Panels of the product's matrix.
int64_t bitexport_panels(const ggml_tensor * op);

// Rows of these panels into op->data.
void bitexport_multiply_token(const ggml_tensor * op, const ternary::QuantizedBuffer & batch, int64_t panel_begin, int64_t panel_end);

// Calls the observer, if there is one, with the quantized token. For one of the threads.
void bitexport_observe_token(const ggml_tensor * op, const ternary::QuantizedBuffer & batch);
