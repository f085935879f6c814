// Tier avx512gfni: that of avx512vbmi on CPUs of Intel (Ice Lake and Sapphire Rapids and later). Up to 8 tokens it has loops of
// its own; the rest is x86_avx512vnni.cpp's and x86_avx512vbmi.cpp's.
//
// Why: a core of these reads memory at full speed only if many lines are under way, and its prefetchers start anew in every page.
//   Several panels at a time are as many streams, each fetched far ahead: 16 GB/s where one stream gets 10 (benchmarks/kernels.md).
//   On Zen 4 one stream that is left alone reaches the memory's speed. So the choice goes by the maker of the CPU.
// Instructions: vgf2p8affineqb multiplies the bits of a byte by a matrix: one instruction shifts a code to bits 0 and 1 and drops the
//   others. Here it has a port beside vpdpbusd's, and two accumulators a token and panel are enough.
// Algebra and bounds: as in x86_avx512vnni.cpp, shifted.

#include "x86_vnni512.h"

namespace ternary {
extern const Kernels avx512vbmi_kernels;
extern const Kernels avx512gfni_kernels;

namespace {

constexpr int64_t few_tokens = 8;

// Panels side by side: as many as their sums fit in registers, as long as the memory limits.
constexpr int panels_beside(int tokens) { return tokens <= 2 ? 4 : tokens <= 4 ? 2 : 1; }

constexpr int64_t ahead_bytes(int panels) { return panels == 4 ? 2048 : 4096; }

template <int T, int P>
using Sums = __m512i[P][T][2];

template <int Field, int T, int P>
TERNARY_INLINE void add_field(const __m512i (&halves)[P][2], const int8_t * quads, int64_t stride, Sums<T, P> & sum_i32x16) {
    __m512i codes[P][2];
    TERNARY_UNROLL
    for (int p = 0; p < P; ++p) {
        codes[p][0] = Avx512Vnni::codes_by_matrix<Field>(halves[p][0]);
        codes[p][1] = Avx512Vnni::codes_by_matrix<Field>(halves[p][1]);
    }
    TERNARY_UNROLL
    for (int t = 0; t < T; ++t) {
        const __m512i quad = broadcast_quad512(quads + t * stride + Field * step_cols);
        TERNARY_UNROLL
        for (int p = 0; p < P; ++p) {
            add_products_i32(sum_i32x16[p][t][0], codes[p][0], quad);
            add_products_i32(sum_i32x16[p][t][1], codes[p][1], quad);
        }
    }
}

// Chunks [begin, end) of P panels; what lies `ahead` of each is fetched.
template <int T, int P>
TERNARY_INLINE void add_chunks(const uint8_t * panels, int64_t panel_stride, int64_t begin, int64_t end, int64_t ahead, const int8_t * q,
                               int64_t stride, Sums<T, P> & sum_i32x16) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
        __m512i halves[P][2];
        TERNARY_UNROLL
        for (int p = 0; p < P; ++p) {
            const uint8_t * at = panels + p * panel_stride + chunk * chunk_bytes;
            prefetch(at + ahead);
            prefetch(at + ahead + 64);
            halves[p][0] = load512(at);
            halves[p][1] = load512(at + 64);
        }
        const int8_t * quads = q + chunk * chunk_cols;
        add_field<0, T, P>(halves, quads, stride, sum_i32x16);
        add_field<1, T, P>(halves, quads, stride, sum_i32x16);
        add_field<2, T, P>(halves, quads, stride, sum_i32x16);
        add_field<3, T, P>(halves, quads, stride, sum_i32x16);
    }
}

// sums[P][T][32] of P neighbouring panels. Near its end each stream goes on in the panel that it will read next, P further.
template <int T, int P>
TERNARY_NOINLINE void tile_beside(const uint8_t * panels, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
    const int64_t panel_stride = chunks * chunk_bytes;
    Sums<T, P> sum_i32x16;
    TERNARY_UNROLL
    for (int p = 0; p < P; ++p) {
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            sum_i32x16[p][t][0] = sum_i32x16[p][t][1] = _mm512_setzero_si512();
        }
    }
    const int64_t within = chunks - min64(chunks, ahead_bytes(P) / chunk_bytes);
    int64_t begin = 0, end = within, ahead = ahead_bytes(P);
    for (int part = 0; part < 2; ++part) {
        add_chunks<T, P>(panels, panel_stride, begin, end, ahead, q, stride, sum_i32x16);
        begin = within;
        end = chunks;
        ahead = (P - 1) * panel_stride + ahead_bytes(P);
    }
    TERNARY_UNROLL
    for (int p = 0; p < P; ++p) {
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            _mm512_store_si512(sums + (p * T + t) * panel_rows, sum_i32x16[p][t][0]);
            _mm512_store_si512(sums + (p * T + t) * panel_rows + 16, sum_i32x16[p][t][1]);
        }
    }
}

template <int T, int P, class Output>
int64_t panels_by(const uint8_t * packed, int64_t rows, int64_t cols, const QuantizedTokens & in, const Output & out, int64_t panel,
                  int64_t panel_end) {
    alignas(64) int32_t sums[P * T * panel_rows];
    for (; panel + P <= panel_end; panel += P) {
        tile_beside<T, P>(packed + panel * panel_bytes(cols), chunks_of(cols), in.q, in.stride, sums);
        for (int p = 0; p < P; ++p) {
            store_panel(sums + p * T * panel_rows, (panel + p) * panel_rows, rows, in, 0, T, out);
        }
    }
    return panel;
}

template <int T, class Output>
void matmul_few(const uint8_t * packed, int64_t rows, int64_t cols, const QuantizedTokens & in, const Output & out, int64_t panel,
                int64_t panel_end) {
    if (in.tokens == T) {
        constexpr int P = panels_beside(T);
        panel = panels_by<T, P>(packed, rows, cols, in, out, panel, panel_end);
        if constexpr (P > 2) {
            panel = panels_by<T, 2>(packed, rows, cols, in, out, panel, panel_end);
        }
        if constexpr (P > 1) {
            panels_by<T, 1>(packed, rows, cols, in, out, panel, panel_end);
        }
    } else if constexpr (T > 1) {
        matmul_few<T - 1>(packed, rows, cols, in, out, panel, panel_end);
    }
}

template <class Output>
void matmul_or_few(const void * packed, int64_t rows, int64_t cols, const QuantizedTokens & in, const Output & out, int64_t panel_begin,
                   int64_t panel_end) {
    if (in.tokens <= few_tokens) {
        matmul_few<few_tokens>(static_cast<const uint8_t *>(packed), rows, cols, in, out, panel_begin, panel_end);
    } else {
        matmul_any<Avx512Vnni, Layout::two_bit>(packed, rows, cols, in, out, panel_begin, panel_end);
    }
}

void matmul_f32_gfni(const void * packed, int64_t rows, int64_t cols, float weight_scale, const QuantizedTokens & in, float * y,
                     int64_t y_stride, int64_t panel_begin, int64_t panel_end) {
    matmul_or_few(packed, rows, cols, in, FloatOutput{y, y_stride, weight_scale}, panel_begin, panel_end);
}

void matmul_i32_gfni(const void * packed, int64_t rows, int64_t cols, const QuantizedTokens & in, int32_t * y, int64_t y_stride,
                     int64_t panel_begin, int64_t panel_end) {
    matmul_or_few(packed, rows, cols, in, Int32Output{y, y_stride}, panel_begin, panel_end);
}

// The layout five_trit of avx512vbmi, by way of functions: its table may be filled in after this one.
void five_trit_f32(const void * packed, int64_t rows, int64_t cols, float weight_scale, const QuantizedTokens & in, float * y,
                   int64_t y_stride, int64_t panel_begin, int64_t panel_end) {
    avx512vbmi_kernels.five_trit.matmul(packed, rows, cols, weight_scale, in, y, y_stride, panel_begin, panel_end);
}

void five_trit_i32(const void * packed, int64_t rows, int64_t cols, const QuantizedTokens & in, int32_t * y, int64_t y_stride,
                   int64_t panel_begin, int64_t panel_end) {
    avx512vbmi_kernels.five_trit.matmul_i32(packed, rows, cols, in, y, y_stride, panel_begin, panel_end);
}

void pack_five_trits(const uint8_t * two_bit, int64_t chunks, uint8_t * five_trit) {
    avx512vbmi_kernels.pack_five_trits(two_bit, chunks, five_trit);
}

}  // namespace

const Kernels avx512gfni_kernels = {Tier::avx512gfni,
                                    "avx512gfni",
                                    quantize_token<Avx512Vnni>,
                                    {matmul_f32_gfni, matmul_i32_gfni},
                                    {quantize_groups<Avx512Vnni>, matmul_grouped<GroupedAvx512Vnni>},
                                    {five_trit_f32, five_trit_i32},
                                    pack_five_trits,
                                    Layout::two_bit};

}  // namespace ternary
