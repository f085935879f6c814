// What the benchmarks of all kernels share: memory, threads and their time, the machine's own limits.
#pragma once

#include "peaks/peaks.h"
#include "ternary/ternary.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <thread>
#include <vector>

namespace kernel_bench {

// Large pages where there are any, as a loaded model has them.
struct Memory {
    static constexpr int64_t alignment = 2 << 20;
    uint8_t * data;
    int64_t bytes;
    explicit Memory(int64_t size) : bytes((size + alignment - 1) / alignment * alignment) {
        data = static_cast<uint8_t *>(std::aligned_alloc(alignment, bytes));
        if (data == nullptr) {
            std::fprintf(stderr, "error: no memory for %lld bytes\n", static_cast<long long>(bytes));
            std::exit(1);
        }
        ternary::prefer_large_pages(data, bytes);
    }
    ~Memory() { std::free(data); }
    Memory(const Memory &) = delete;
    Memory & operator=(const Memory &) = delete;
};

inline uint64_t next_random(uint64_t & state) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

inline double thread_seconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Runs work(thread) in all threads at once; CPU seconds of the slowest.
template <class Work>
double timed(int threads, Work work) {
    std::atomic<int> waiting{threads};
    std::vector<double> seconds(threads);
    auto body = [&](int thread) {
        --waiting;
        while (waiting.load() > 0) {
            std::this_thread::yield();
        }
        const double start = thread_seconds();
        work(thread);
        seconds[thread] = thread_seconds() - start;
    };
    std::vector<std::thread> others;
    for (int thread = 1; thread < threads; ++thread) {
        others.emplace_back(body, thread);
    }
    body(0);
    for (std::thread & other : others) {
        other.join();
    }
    return *std::max_element(seconds.begin(), seconds.end());
}

inline double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

// Multiply-adds per second of all threads together; 0 when the tier has no such instruction.
inline double peak_multiply_adds(const peaks::Loops & loops, int threads) {
    constexpr int64_t iterations = 2000000;
    const int64_t done = loops.multiply_adds(1000);
    if (done == 0) {
        return 0;
    }
    const double seconds = timed(threads, [&](int) { loops.multiply_adds(iterations); });
    return static_cast<double>(done) / 1000 * iterations * threads / seconds;
}

// Bytes per second of all threads together, each reading its part of the memory once.
inline double peak_read(const peaks::Loops & loops, const uint8_t * data, int64_t bytes, int threads) {
    const int64_t part = bytes / threads / 4096 * 4096;
    std::atomic<uint64_t> sink{0};
    const double seconds = timed(threads, [&](int thread) { sink += loops.read(data + thread * part, part); });
    return static_cast<double>(part) * threads / seconds;
}

}  // namespace kernel_bench
