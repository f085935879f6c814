// How our buffer types share work between threads, and find a token's activations.
#pragma once

#include "ggml-cpu-impl.h"
#include "ggml.h"
#include "work_queue.h"

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

// Part `index` of `count` of the half-open range [0, total).
struct Share {
    int64_t begin, end;
    Share(int64_t total, int64_t index, int64_t count)
        : begin(total * index / count), end(total * (index + 1) / count) {}
};

// The fewest panels that a thread takes at once, unless fewer are left: their products take far longer than taking them.
constexpr int64_t panels_at_once = 4;

// Row `index` of the float32 matrices x, counted through all of them.
inline const float * activation_row(const ggml_tensor * x, int64_t index) {
    const int64_t i1 = index % x->ne[1];
    const int64_t i2 = index / x->ne[1] % x->ne[2];
    const int64_t i3 = index / x->ne[1] / x->ne[2];
    return reinterpret_cast<const float *>(static_cast<const char *>(x->data) + i1 * x->nb[1] + i2 * x->nb[2] +
                                           i3 * x->nb[3]);
}

// Quantizing one token takes less time than a barrier, so each thread makes its own copy. Several tokens are divided.
inline bool each_quantizes(int64_t tokens) {
    return tokens == 1;
}

// The number of copies of the quantized tokens, and the index of the one that this thread writes and reads.
inline int64_t quantized_copies(int64_t tokens, int64_t threads) {
    return each_quantizes(tokens) ? threads : 1;
}
inline int64_t own_copy(int64_t tokens, const ggml_compute_params * params) {
    return each_quantizes(tokens) ? params->ith : 0;
}

// Calls quantize(token) for this thread's share of the tokens; returns when its copy is complete.
template <class Quantize>
void quantize_tokens(int64_t tokens, const ggml_compute_params * params, const Quantize & quantize) {
    if (each_quantizes(tokens)) {
        quantize(0);
        return;
    }
    WorkQueue queue(params, tokens);
    for (int64_t begin, end; queue.next(begin, end);) {
        for (int64_t token = begin; token < end; ++token) {
            quantize(token);
        }
    }
    ggml_barrier(params->threadpool);
}

// Calls work(panel_begin, panel_end) until all panels of a matrix are done, in at most one thread per processor; a small
// matrix gets only one. work does not throw.
template <class Work>
void repack_in_threads(int64_t panels, int64_t elements, const Work & work) {
    constexpr int64_t elements_per_thread = 1 << 20;
    const int64_t wanted = std::min<int64_t>(std::thread::hardware_concurrency(), elements / elements_per_thread);
    const int64_t count  = std::max<int64_t>(1, std::min(wanted, panels));
    const auto    part   = [&](int64_t index) {
        const Share own(panels, index, count);
        work(own.begin, own.end);
    };
    std::vector<std::thread> threads;
    for (int64_t index = 1; index < count; ++index) {
        try {
            threads.emplace_back(part, index);
        } catch (const std::system_error &) {
            part(index);  // no more threads available
        }
    }
    part(0);
    for (auto & thread : threads) {
        thread.join();
    }
}
