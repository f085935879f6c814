// Threads that compute together: a barrier at which they spin briefly and then sleep, and a counter from which they take work.
//
// A thread that spins while the one it waits for has no processor burns what that one needs. A thread that sleeps needs
// several microseconds to wake up, more than most waits take. So each spins about as long as waking up takes.
#pragma once

#include "strength.h"

#include <atomic>
#include <cstdint>

namespace team {

// Seconds of spinning are counted from the first call.
class Patience {
  public:
    // True until the thread should sleep instead. Pauses the processor for a moment.
    bool spin();

  private:
    int     rounds_ = 0;
    int64_t begin_  = 0;  // nanoseconds
};

// How many of the threads that are wanted compute: all of them; at most one per processor; as many of those as are fastest.
enum class Choice { all, fitting, fastest };

class Team {
  public:
    // The number of threads, of those that are wanted, that should compute the next graph; `kind` tells different graphs apart.
    // They count as computing until end(). Called by one thread, while no other computes.
    int  begin(int wanted, uint64_t kind, Choice choice);
    void end();

    // Returns when so many threads have called it: all that compute, the same number until the graph ends.
    void barrier(int threads);

    // The first of the next `count` units of work; every thread gets others. Starts at 0 again after each barrier.
    int64_t claim(int64_t count) { return next_.fetch_add(count, std::memory_order_relaxed); }

  private:
    void wait(uint32_t seen);

    static constexpr int line_bytes = 64;

    alignas(line_bytes) std::atomic<uint32_t> arrived_{0};
    alignas(line_bytes) std::atomic<uint32_t> passed_{0};  // barriers
    std::atomic<uint32_t> sleepers_{0};
    alignas(line_bytes) std::atomic<int64_t> next_{0};

    alignas(line_bytes) std::atomic<int64_t> lost_{0};  // nanoseconds that threads waited and should have slept
    Strength strength_;
    int      threads_ = 0;
    int64_t  begin_   = 0;  // nanoseconds
};

}  // namespace team
