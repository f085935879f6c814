#include "amx.h"
#include "layout.h"

#include <algorithm>
#include <cstring>

#if defined(ATTENTION_X86)
#include <cpuid.h>
#endif

namespace attention {

#if defined(ATTENTION_X86)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
extern const Kernels amx_kernels;

// A tier says that there is AVX2 and that the system saves its registers, but nothing of these two. Not asked of
// __builtin_cpu_supports: Zig's runtime, which is in our wheels, knows no CPU.
static bool has_fma_and_f16c() {
    constexpr unsigned fma = 1u << 12, f16c = 1u << 29;
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (fma | f16c)) == (fma | f16c);
}
#elif defined(ATTENTION_ARM)
extern const Kernels neon_kernels;
#endif

const Kernels * kernels_for(const char * tier) {
#if defined(ATTENTION_X86)
    if (std::strcmp(tier, "scalar") == 0 || !has_fma_and_f16c()) {
        return nullptr;
    }
    if (std::strcmp(tier, "avx512amx") == 0 && amx::available()) {
        return &amx_kernels;
    }
    return std::strncmp(tier, "avx512", 6) == 0 ? &avx512_kernels : &avx2_kernels;
#elif defined(ATTENTION_ARM)
    return std::strcmp(tier, "scalar") == 0 ? nullptr : &neon_kernels;
#else
    (void) tier;
    return nullptr;
#endif
}

Pieces::Pieces(const Kernels & kernels, const Prompt & prompt, int64_t threads)
    : group_(prompt.heads / prompt.kv_heads), queries_(prompt.queries) {
    constexpr int64_t most_heads = 32, pieces_per_thread = 4;
    head_step_ = std::min(group_, most_heads);
    groups_per_kv_ = (group_ + head_step_ - 1) / head_step_;
    head_groups_ = groups_per_kv_ * prompt.kv_heads;
    const int64_t wanted = threads == 1 ? 1 : (threads * pieces_per_thread + head_groups_ - 1) / head_groups_;
    const int64_t rows = (queries_ + wanted - 1) / wanted * head_step_;
    const int64_t whole = (rows + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
    query_step_ = std::max<int64_t>(1, std::min(whole, kernels.most_rows(prompt.head_dim)) / head_step_);
    blocks_ = (queries_ + query_step_ - 1) / query_step_;
}

Piece Pieces::operator[](int64_t index) const {
    const int64_t block = blocks_ - 1 - index / head_groups_;
    const int64_t head_group = index % head_groups_;
    const int64_t end = (head_group / groups_per_kv_ + 1) * group_;  // of the heads that share a key-value head
    const int64_t begin = end - group_ + head_group % groups_per_kv_ * head_step_;
    return {begin, std::min(begin + head_step_, end), block * query_step_, std::min((block + 1) * query_step_, queries_)};
}

int64_t part_positions(int64_t positions) {
    constexpr int64_t least = 16;  // what a kernel takes at once
    const int64_t fair = (positions + most_parts - 1) / most_parts;
    return (fair + least - 1) / least * least;
}

size_t partial_floats(int64_t heads, int64_t head_dim) { return static_cast<size_t>(heads * head_floats(head_dim)); }

void combine(const float * partials, int64_t count, int64_t heads, int64_t head_dim, int64_t head_begin, int64_t head_end,
             float * out) {
    const int64_t stride = static_cast<int64_t>(partial_floats(heads, head_dim));
    for (int64_t head = head_begin; head < head_end; ++head) {
        const float * first = partials + head * head_floats(head_dim);
        float largest = no_score;
        for (int64_t i = 0; i < count; ++i) {
            largest = first[i * stride] > largest ? first[i * stride] : largest;
        }
        float * values = out + head * head_dim;
        std::memset(values, 0, static_cast<size_t>(head_dim) * sizeof(float));
        float sum = 0.0f;
        for (int64_t i = 0; i < count; ++i) {
            const float * partial = first + i * stride;
            if (partial[1] == 0.0f) {  // saw nothing: the largest score counts as 1, and scores that are NaN sum to NaN
                continue;
            }
            const float factor = exp_of_negative(partial[0] - largest);
            sum += factor * partial[1];
            for (int64_t d = 0; d < head_dim; ++d) {
                values[d] += factor * partial[header_floats + d];
            }
        }
        const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
        for (int64_t d = 0; d < head_dim; ++d) {
            values[d] *= inverse;
        }
    }
}

}  // namespace attention
