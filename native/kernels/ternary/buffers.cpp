// Sizes, and the work buffer of a batch of quantized tokens.

#include "layout.h"

namespace ternary {
namespace {

constexpr int64_t line_bytes = 64;

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// An odd number of cache lines: with a power of two, the tokens of a tile would all want the same set of the cache.
constexpr int64_t token_stride(int64_t cols) {
    const int64_t lines = padded_token_bytes(cols) / line_bytes;
    return (lines | 1) * line_bytes;
}

static_assert(sizeof(float) == 4 && sizeof(int32_t) == 4, "scale and sum are 4 bytes each");

}  // namespace

int64_t panel_count(int64_t rows) { return (rows + panel_rows - 1) / panel_rows; }

size_t packed_bytes(Layout layout, int64_t rows, int64_t cols) {
    return static_cast<size_t>(panel_count(rows) * panel_bytes(cols, layout));
}

int64_t padded_cols(int64_t cols) { return padded_token_bytes(cols); }

size_t quantized_bytes(int64_t cols, int64_t tokens) {
    return static_cast<size_t>(tokens * token_stride(cols) + 2 * round_up(tokens * 4, line_bytes));
}

QuantizedBuffer quantized_buffer(void * buffer, int64_t cols, int64_t tokens) {
    char * base = static_cast<char *>(buffer);
    char * scale = base + tokens * token_stride(cols);
    char * sum = scale + round_up(tokens * 4, line_bytes);
    return {reinterpret_cast<int8_t *>(base), token_stride(cols), reinterpret_cast<float *>(scale),
            reinterpret_cast<int32_t *>(sum), tokens};
}

void quantize(const Kernels & kernels, const float * x, int64_t x_stride, int64_t cols, const QuantizedBuffer & buffer,
              int64_t token_begin, int64_t token_end) {
    for (int64_t token = token_begin; token < token_end; ++token) {
        kernels.quantize_token(x + token * x_stride, cols, buffer.q + token * buffer.stride, buffer.scale + token,
                               buffer.sum + token);
    }
}

}  // namespace ternary
