// Matrix products of an output head in a GGUF k-quant type with 8-bit activations, on plain memory.
//
//   y[token][row] = sum over blocks of 256 columns, in order, of
//                   float(I) * (d[row] * a[token])                                      q6_k
//                   float(I) * (d[row] * a[token]) - float(J) * (dmin[row] * a[token])  q4_k, q5_k
//
//   I = sum over sub-blocks of scale * sum(code * q),  J = sum over sub-blocks of min * sum(q)
//
// The values are those of the GGUF type, nothing is rounded again, and the activations q, a are ggml's Q8_K. I and J are
// exact integers; the float part is done in the order written, each operation rounded once. So every tier, every split
// over threads and every number of tokens gives the same bits.
//
// Nothing here starts threads, throws or allocates. A caller shares the work between threads by giving each a range of
// panels (repack, matmul) or of tokens (quantize).
#pragma once

#include <cstddef>
#include <cstdint>

namespace head {

// ---------------------------------------------------------------------------------------------------- weights

enum class Type { q4_k, q5_k, q6_k };

constexpr int64_t block_cols = 256;  // columns of a block: cols is a multiple of it
constexpr int64_t panel_rows = 32;

size_t row_bytes(Type type, int64_t cols);  // of a row in a GGUF file

// Packed weights are a sequence of panels of 32 whole rows; layout.h says what is inside. A multiple of 64 is the best
// address.
int64_t panel_count(int64_t rows);
size_t packed_bytes(Type type, int64_t rows, int64_t cols);

// Fills panels [panel_begin, panel_end) of packed from the rows of a GGUF tensor. Reads the source once.
void repack(Type type, const uint8_t * source, int64_t rows, int64_t cols, void * packed, int64_t panel_begin,
            int64_t panel_end);

// ---------------------------------------------------------------------------------------------------- activations

// 256 activations of one token, as ggml's block_q8_K rounds them, and the sums that the kernels want.
struct alignas(64) Activations {
    int8_t q[256];
    int32_t minus_32_sum16[16];  // -32 * sum of 16 q: what q6_k's codes, value + 32, are too large by
    int16_t sum16[16];           // sums of 16 q
    int16_t sum32[8];            // sums of 32 q
    float a;                     // value = q * a; NaN where a value was not finite, and then q is 0
};

int64_t token_blocks(int64_t cols);  // Activations from one token to the next: some are padding

// One token of cols floats into cols / 256 blocks. The value of largest magnitude becomes -127 or 127, the others are
// rounded half to even. Source of the rounding: quantize_row_q8_K_ref in ggml-quants.c.
void quantize(const float * x, int64_t cols, Activations * blocks);

// ---------------------------------------------------------------------------------------------------- kernels

struct Batch {
    const Activations * blocks;  // [tokens][token_blocks(cols)]
    int64_t tokens;
};

// One tier. The function is stateless and may run in any number of threads.
struct Kernels {
    const char * name;

    // Rows of panels [panel_begin, panel_end): y[token * y_stride + row], y_stride in floats.
    void (*matmul)(Type type, const void * packed, int64_t rows, int64_t cols, const Batch & batch, float * y,
                   int64_t y_stride, int64_t panel_begin, int64_t panel_end);
};

// The kernels that go with a tier of native/kernels/ternary, which checked that the CPU has it: its own, or those of the best
// tier that it includes. nullptr: there are none, and ggml's are to be used.
const Kernels * kernels_for(const char * ternary_tier);

}  // namespace head
