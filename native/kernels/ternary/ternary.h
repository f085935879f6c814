// Matrix products of ternary weights with 8-bit activations, on plain memory.
//
//   y[token][row] = (float) sum_col(trit[row][col] * q[token][col]) * (weight_scale / scale[token])
//
// The integer sum is exact for every input (max_cols bounds it). The float part is one division, one conversion and one
// multiplication, in the order written above, each rounded once; so every tier, every split over threads and every
// number of tokens gives the same bits.
//
// Nothing here starts threads, throws or, but for the message of select_kernels, allocates.
// A caller shares the work between threads by giving each a range of panels (repack, matmul) or of tokens (quantize).
#pragma once

#include "grouped.h"

#include <cstddef>
#include <cstdint>
#include <string>

namespace ternary {

// ---------------------------------------------------------------------------------------------------- dispatch

// In rising order of preference. tiers.inc is the one list of them.
enum class Tier {
#define TERNARY_TIER(name, needs) name,
#include "tiers.inc"
#undef TERNARY_TIER
};

constexpr int tier_count = 0
#define TERNARY_TIER(name, needs) +1
#include "tiers.inc"
#undef TERNARY_TIER
    ;

// What the processor has and the operating system has switched on.
struct CpuFeatures {
    bool avx2 = false;
    bool avxvnni = false;
    bool avx512f = false;
    bool avx512bw = false;
    bool avx512vl = false;
    bool avx512vnni = false;
    bool avx512vbmi = false;
    bool gfni = false;
    bool intel = false;  // the maker: how a core reads memory fastest is not told by its instructions
    bool amxint8 = false;  // and the system lets this process use tiles
    bool neon = false;
    bool dotprod = false;
    bool i8mm = false;
};

CpuFeatures cpu_features();

// The same with everything else that a tier may ask for: each tier that these features allow runs here, if not at its best. For
// tests and benchmarks.
CpuFeatures all_that_runs();

// How packed weights lie in memory. All layouts give the same results, to the bit; layout.h defines them.
enum class Layout {
    two_bit,    // "2bit": every tier has it
    five_trit,  // "1.6bit": five trits a byte, a fifth less to read and more to unpack
};

constexpr Layout all_layouts[] = {Layout::two_bit, Layout::five_trit};

const char * layout_name(Layout layout);  // what select_layout takes

struct QuantizedTokens;

// The matrix products of one tier with one layout; both null where the tier does not offer the layout.
struct Products {
    // Rows of panels [panel_begin, panel_end): y[token * y_stride + row], y_stride in floats.
    void (*matmul)(const void * packed, int64_t rows, int64_t cols, float weight_scale, const QuantizedTokens & tokens,
                   float * y, int64_t y_stride, int64_t panel_begin, int64_t panel_end) = nullptr;

    // The exact integer sums instead, sum(trit * q): for tests.
    void (*matmul_i32)(const void * packed, int64_t rows, int64_t cols, const QuantizedTokens & tokens, int32_t * y,
                       int64_t y_stride, int64_t panel_begin, int64_t panel_end) = nullptr;
};

// One tier. The functions are stateless and may run in any number of threads.
struct Kernels {
    Tier tier;
    const char * name;  // "scalar", "avx2", ...: what select_kernels takes

    // One token: s = 127 / max(max|x|, 1e-5), q[i] = clamp(round_half_to_even(x[i] * s), -128, 127), all in float32.
    // x: cols floats. q: padded_cols(cols) bytes, zero behind cols. *scale = s. *sum = sum of q.
    // A NaN or an infinity in x: q and *sum are 0 and *scale is NaN, hence every output of the token is NaN.
    void (*quantize_token)(const float * x, int64_t cols, int8_t * q, float * scale, int32_t * sum);

    Products two_bit;
    GroupedKernels grouped;  // weights with a scale for every group

    // The rest only where the tier offers Layout::five_trit.
    Products five_trit = {};
    // `chunks` chunks of two_bit, all codes 0..2, into five_trit's: the columns of 5 into 4, those missing from the last hold code 1.
    void (*pack_five_trits)(const uint8_t * two_bit, int64_t chunks, uint8_t * five_trit) = nullptr;
    Layout preferred = Layout::two_bit;

    const Products & products(Layout layout) const { return layout == Layout::two_bit ? two_bit : five_trit; }
    bool offers(Layout layout) const { return products(layout).matmul != nullptr; }
};

// The kernels of a tier; nullptr when it was not built for this architecture or the features lack what it needs.
const Kernels * kernels_for(Tier tier, const CpuFeatures & features);

struct Selection {
    const Kernels * kernels = nullptr;  // nullptr: see error
    std::string error;                  // one line: the value, what this CPU has, what to do
    std::string warning;                // one line, if tiers were skipped: which, why, and what is used instead
};

// What is wrong with a tier on this machine; empty: nothing. self_test (self_test.h) is one.
using SelfTest = std::string (*)(const Kernels & kernels);

// override_name null or empty: the best tier that the features allow and that passes the test, if there is one (scalar takes
// none). Otherwise the tier of that name or an error.
Selection select_kernels(const CpuFeatures & features, const char * override_name, SelfTest failure_of = nullptr);

struct LayoutSelection {
    bool ok = false;
    Layout layout = Layout::two_bit;
    std::string error;  // one line, when not ok
};

// override_name null or empty: the layout that the tier prefers. Otherwise the layout of that name or an error.
LayoutSelection select_layout(const Kernels & kernels, const char * override_name);

// ---------------------------------------------------------------------------------------------------- weights

// Packed weights are a sequence of panels, each holding panel_rows whole rows. What is inside a panel is layout.h's
// business. Any address will do; a multiple of 64 is fastest. Only matmul reads them.
constexpr int64_t panel_rows = 32;

// Sums stay within int32 up to here in every tier (each kernel file states its own bound).
constexpr int64_t max_cols = 65536;

int64_t panel_count(int64_t rows);
size_t packed_bytes(Layout layout, int64_t rows, int64_t cols);  // 0 < rows, 0 < cols <= max_cols

// Asks the system to back this memory with large pages: worth up to half again the speed of decode. Call it on memory for
// packed weights that nobody has touched yet. Does nothing where there are none.
void prefer_large_pages(void * memory, size_t bytes);

struct RepackResult {
    bool ok = true;
    int64_t bad_element = -1;  // !ok: flattened index (row * cols + col) of the first code 3 in these panels
};

// Fills panels [panel_begin, panel_end) of packed from I2_S code bytes (rows * cols / 4 of them, without the 32-byte tail;
// rows * cols is a multiple of 128; blocks may straddle rows). The source is read once; source and packed don't overlap.
// The bytes depend on the layout only, not on the kernels, which must offer it.
RepackResult repack_i2_s(const Kernels & kernels, Layout layout, const uint8_t * codes, int64_t rows, int64_t cols, void * packed,
                         int64_t panel_begin, int64_t panel_end);

// ---------------------------------------------------------------------------------------------------- activations

// A batch of quantized tokens, to read. One batch serves every matrix with the same number of columns.
struct QuantizedTokens {
    const int8_t * q;      // [tokens][stride]
    int64_t stride;        // bytes between tokens, at least padded_cols(cols)
    const float * scale;   // [tokens], s; NaN for a token that was not finite
    const int32_t * sum;   // [tokens], sum of q
    int64_t tokens;
};

// The same, to write.
struct QuantizedBuffer {
    int8_t * q;
    int64_t stride;
    float * scale;
    int32_t * sum;
    int64_t tokens;

    operator QuantizedTokens() const { return {q, stride, scale, sum, tokens}; }
};

int64_t padded_cols(int64_t cols);  // a multiple of 64: the columns of whole chunks in every layout

// One work buffer for a batch: bytes needed, and the view of it. buffer is best 64-byte aligned. The stride is an odd
// number of cache lines, so that tokens spread over the cache's sets.
size_t quantized_bytes(int64_t cols, int64_t tokens);
QuantizedBuffer quantized_buffer(void * buffer, int64_t cols, int64_t tokens);

// Tokens [token_begin, token_end) of x (x_stride floats apart) into the buffer.
void quantize(const Kernels & kernels, const float * x, int64_t x_stride, int64_t cols, const QuantizedBuffer & buffer,
              int64_t token_begin, int64_t token_end);

}  // namespace ternary
