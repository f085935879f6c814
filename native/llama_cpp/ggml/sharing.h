// How our two buffer types share work between threads, and find a token's activations.
#pragma once

#include "ggml-cpu-impl.h"
#include "ggml.h"

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

// Row `index` of the float32 matrices x, one behind the other.
inline const float * activation_row(const ggml_tensor * x, int64_t index) {
    const int64_t i1 = index % x->ne[1];
    const int64_t i2 = index / x->ne[1] % x->ne[2];
    const int64_t i3 = index / x->ne[1] / x->ne[2];
    return reinterpret_cast<const float *>(static_cast<const char *>(x->data) + i1 * x->nb[1] + i2 * x->nb[2] +
                                           i3 * x->nb[3]);
}

// One token is quantized faster than threads can meet, so that each thread makes its own copy. More are shared out.
inline bool each_quantizes(int64_t tokens) {
    return tokens == 1;
}

// Copies of the quantized tokens, and the one that this thread writes and reads.
inline int64_t quantized_copies(int64_t tokens, int64_t threads) {
    return each_quantizes(tokens) ? threads : 1;
}
inline int64_t own_copy(int64_t tokens, const ggml_compute_params * params) {
    return each_quantizes(tokens) ? params->ith : 0;
}

// Calls quantize(token) for what this thread has to do; returns when its copy is complete.
template <class Quantize>
void quantize_tokens(int64_t tokens, const ggml_compute_params * params, const Quantize & quantize) {
    const Share own = each_quantizes(tokens) ? Share(tokens, 0, 1) : Share(tokens, params->ith, params->nth);
    for (int64_t token = own.begin; token < own.end; ++token) {
        quantize(token);
    }
    if (!each_quantizes(tokens)) {
        ggml_barrier(params->threadpool);
    }
}

// Calls work(panel_begin, panel_end) until all panels of a matrix are done, in as many threads as there are processors; a
// small matrix is not worth a second one. work does not throw.
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
            part(index);  // no more threads to be had
        }
    }
    part(0);
    for (auto & thread : threads) {
        thread.join();
    }
}
