// Matrix products of weights with a scale for every group of a row, by activations quantized in groups, on plain memory.
//
// The kinds are ggml's types of the same name: a weight is (code - 1) * scale, with 2-bit codes and float16 scales. A code of
// 3, twice the scale, is legal in q2_0 and tq2_0; tq1_0 cannot express it. In memory all three have 2 bits per weight and the
// scales, as they are in the file: grouped_layout.h.
//
//   y = 0; for every group g of activations, in order:
//       y = y + (float) sum_col((code[row][col] - 1) * q[token][col]) * (scale[row][of g] * step[token][g])
//
// The integer sum is exact for every input. The float part is two multiplications, a conversion and an addition, each rounded
// once, never fused; so every tier, every split over threads and every number of tokens gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ternary {

enum class Grouped {
    q2_0,   // 64 weights per scale; activations as in ggml's Q8_0, 32 per step of float16 precision
    tq1_0,  // 256 weights per scale; activations as in ggml's Q8_K, 256 per float32 step
    tq2_0,  // the same, and in memory the same as tq1_0
};

constexpr Grouped all_grouped[] = {Grouped::q2_0, Grouped::tq1_0, Grouped::tq2_0};

constexpr int64_t weight_group(Grouped kind) { return kind == Grouped::q2_0 ? 64 : 256; }
constexpr int64_t activation_group(Grouped kind) { return kind == Grouped::q2_0 ? 32 : 256; }

// cols is a multiple of weight_group(kind) everywhere below; there is no upper limit.
size_t grouped_packed_bytes(Grouped kind, int64_t rows, int64_t cols);

struct GroupedRepackResult {
    bool ok = true;
    int64_t bad_element = -1;  // !ok: flattened index of the first weight whose scale is not finite, in these panels
};

// Fills panels [panel_begin, panel_end) (of panel_rows rows: ternary.h) of packed from the tensor's bytes in the file.
GroupedRepackResult repack_grouped(Grouped kind, const uint8_t * source, int64_t rows, int64_t cols, void * packed,
                                   int64_t panel_begin, int64_t panel_end);

// A batch of quantized tokens, to read. An activation is q * step.
struct GroupedTokens {
    const int8_t * q;     // [tokens][stride]
    int64_t stride;       // bytes between tokens
    const float * step;   // [tokens][groups]; NaN where a group was not finite
    const int32_t * minus_sum;  // [tokens][groups], minus the sum of q: with it a sum of codes becomes one of codes - 1
    int64_t groups;       // cols / activation_group(kind)
    int64_t tokens;
};

// The same, to write.
struct GroupedBuffer {
    int8_t * q;
    int64_t stride;
    float * step;
    int32_t * minus_sum;
    int64_t groups;
    int64_t tokens;

    operator GroupedTokens() const { return {q, stride, step, minus_sum, groups, tokens}; }
};

// One work buffer for a batch: bytes needed, and the view of it. buffer is best 64-byte aligned.
size_t grouped_quantized_bytes(Grouped kind, int64_t cols, int64_t tokens);
GroupedBuffer grouped_buffer(Grouped kind, void * buffer, int64_t cols, int64_t tokens);

// Of one tier. Stateless: may run in any number of threads.
struct GroupedKernels {
    // One token, for each group: q[i] = round_half_to_even(x[i] * (127 / max|x|)), minus_sum = minus the sum of q, and
    // step = max|x| / 127, rounded to float16 (q2_0), or 1 / (127 / max|x|) (tq1_0, tq2_0), as ggml does on x86. (ggml's Q8_K turns the signs of q and
    // step so that the largest value becomes -127: the same products.) All zero where max|x| is below 1.5e-36. A NaN or an
    // infinity in a group: q and minus_sum are 0 and step is NaN, hence every output of the token is NaN.
    void (*quantize_token)(Grouped kind, const float * x, int64_t cols, int8_t * q, float * step, int32_t * minus_sum);

    // Rows of panels [panel_begin, panel_end): y[token * y_stride + row], y_stride in floats.
    void (*matmul)(Grouped kind, const void * packed, int64_t rows, int64_t cols, const GroupedTokens & tokens, float * y,
                   int64_t y_stride, int64_t panel_begin, int64_t panel_end);
};

}  // namespace ternary
