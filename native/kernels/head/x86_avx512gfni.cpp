// Tier avx512gfni: that of avx512vnni on CPUs of Intel, where several panels side by side are read faster than one (the reason is
// in ternary/x86_avx512gfni.cpp). For up to 4 tokens it has a loop of its own.
//
// Instructions, algebra and bounds: those of x86_avx512vnni.cpp.

#include "x86_vnni512.h"

namespace head {

extern const Kernels avx512gfni_kernels;

namespace {

constexpr int64_t few_tokens = 4;

// As many as their sums fit in registers.
constexpr int panels_beside(int tokens) { return tokens == 1 ? 4 : 2; }

template <int64_t Bytes>
HEAD_INLINE void prefetch_lines(const uint8_t * p) {
    HEAD_UNROLL
    for (int64_t at = 0; at < Bytes; at += line) {
        prefetch(p + at);
    }
}

// sums[P][T][32] += half a block of P panels; what lies `ahead` is fetched: the half that each panel's stream reads next.
template <class F, int T, int P>
HEAD_INLINE void add_half(const uint8_t * half, int64_t panel_stride, int64_t ahead, const Activations * activations, int64_t stride,
                          float * sums) {
    __m512i sum_i32x16[P][T];
    HEAD_UNROLL
    for (int p = 0; p < P; ++p) {
        HEAD_UNROLL
        for (int t = 0; t < T; ++t) {
            sum_i32x16[p][t] = _mm512_setzero_si512();
        }
        prefetch_lines<F::groups_at>(half + p * panel_stride + ahead);
    }
    for (int g = 0; g < F::groups; ++g) {
        HEAD_UNROLL
        for (int p = 0; p < P; ++p) {
            const uint8_t * of_panel = half + p * panel_stride;
            prefetch_lines<F::group_bytes>(of_panel + ahead + F::groups_at + g * F::group_bytes);
            Avx512Vnni::add_group<F, T>(of_panel, g, activations, stride, sum_i32x16[p]);
        }
    }
    HEAD_UNROLL
    for (int p = 0; p < P; ++p) {
        Avx512Vnni::add_scaled<T>(half + p * panel_stride, sum_i32x16[p], activations, stride, sums + p * T * panel_rows);
        if constexpr (F::has_mins) {
            Avx512Vnni::subtract_mins<F, T>(half + p * panel_stride, activations, stride, sums + p * T * panel_rows);
        }
    }
}

template <class F, int T, int P>
HEAD_NOINLINE void panels_sums(const uint8_t * panels, int64_t blocks, const Activations * activations, int64_t stride, float * sums) {
    const int64_t panel_stride = blocks * F::block_bytes;
    for (int i = 0; i < P * T * panel_rows; ++i) {
        sums[i] = 0.0f;
    }
    for (int64_t half = 0; half < 2 * blocks; ++half) {
        // the last half is followed by the panel that this stream reads next
        const int64_t ahead = F::half_bytes + (half + 1 < 2 * blocks ? 0 : (P - 1) * panel_stride);
        add_half<F, T, P>(panels + half * F::half_bytes, panel_stride, ahead, activations + half / 2, stride, sums + half % 2 * half_rows);
    }
}

template <class F, int T, int P>
int64_t panels_by(const uint8_t * packed, int64_t rows, int64_t cols, const Batch & batch, float * y, int64_t y_stride, int64_t panel,
                  int64_t panel_end) {
    alignas(64) float sums[P * T * panel_rows];
    const int64_t blocks = blocks_of(cols);
    for (; panel + P <= panel_end; panel += P) {
        panels_sums<F, T, P>(packed + panel * blocks * F::block_bytes, blocks, batch.blocks, token_blocks(cols), sums);
        for (int64_t row = panel * panel_rows; row < (panel + P) * panel_rows && row < rows; row += panel_rows) {
            const int64_t rows_here = rows - row < panel_rows ? rows - row : panel_rows;
            const float * of_panel = sums + (row / panel_rows - panel) * T * panel_rows;
            for (int token = 0; token < T; ++token) {
                for (int64_t r = 0; r < rows_here; ++r) {
                    y[token * y_stride + row + r] = of_panel[token * panel_rows + r];
                }
            }
        }
    }
    return panel;
}

template <class F, int T>
void matmul_few(const void * packed, int64_t rows, int64_t cols, const Batch & batch, float * y, int64_t y_stride, int64_t panel_begin,
                int64_t panel_end) {
    if (batch.tokens == T) {
        const uint8_t * panels = static_cast<const uint8_t *>(packed);
        const int64_t panel = panels_by<F, T, panels_beside(T)>(panels, rows, cols, batch, y, y_stride, panel_begin, panel_end);
        panels_by<F, T, 1>(panels, rows, cols, batch, y, y_stride, panel, panel_end);
    } else if constexpr (T > 1) {
        matmul_few<F, T - 1>(packed, rows, cols, batch, y, y_stride, panel_begin, panel_end);
    }
}

void matmul_side_by_side(Type type, const void * packed, int64_t rows, int64_t cols, const Batch & batch, float * y, int64_t y_stride,
                         int64_t panel_begin, int64_t panel_end) {
    if (batch.tokens > few_tokens) {
        return matmul<Avx512Vnni>(type, packed, rows, cols, batch, y, y_stride, panel_begin, panel_end);
    }
    switch (type) {
        case Type::q4_k: return matmul_few<Q4K, few_tokens>(packed, rows, cols, batch, y, y_stride, panel_begin, panel_end);
        case Type::q5_k: return matmul_few<Q5K, few_tokens>(packed, rows, cols, batch, y, y_stride, panel_begin, panel_end);
        case Type::q6_k: return matmul_few<Q6K, few_tokens>(packed, rows, cols, batch, y, y_stride, panel_begin, panel_end);
    }
}

}  // namespace

const Kernels avx512gfni_kernels = {"avx512gfni", matmul_side_by_side};

}  // namespace head
