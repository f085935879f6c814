// What the tests of all kernels share: a failure counter, random numbers, threads.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

namespace kernel_test {

inline int failures = 0;

// Counts a failure and prints what failed; the first 20 only.
inline void check(bool ok, const std::string & what) {
    if (!ok && ++failures <= 20) {
        std::printf("FAILED: %s\n", what.c_str());
    }
}

inline int finish(const char * name) {
    std::printf("%s: %s (%d failures)\n", name, failures == 0 ? "passed" : "FAILED", failures);
    return failures == 0 ? 0 : 1;
}

// TERNARY_TEST_QUICK=1 leaves out the largest shapes: for sanitizers and emulators.
inline bool quick() {
    const char * value = std::getenv("TERNARY_TEST_QUICK");
    return value != nullptr && *value != '\0' && *value != '0';
}

struct Random {  // xorshift64*: the same numbers everywhere
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15ull + 1) {}
    uint32_t next() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return static_cast<uint32_t>(state * 0x2545f4914f6cdd1dull >> 32);
    }
    float uniform() { return static_cast<float>(next()) / 2147483648.0f - 1.0f; }
};

// Calls work(begin, end) for an even split of [0, count) over `threads` threads.
template <class Work>
void split(int64_t count, int threads, Work work) {
    std::vector<std::thread> workers;
    for (int t = 0; t < threads; ++t) {
        workers.emplace_back(work, t * count / threads, (t + 1) * count / threads);
    }
    for (std::thread & worker : workers) {
        worker.join();
    }
}

inline std::string str(int64_t value) { return std::to_string(value); }

}  // namespace kernel_test
