// How many threads compute the next graph, when graphs of one kind follow each other, as in decoding.
//
// Beside a busy process a thread without a processor of its own holds up the others at every barrier: then one thread fewer may
// be faster. Nobody tells us how many processors are free, so this is tried out: if much time is lost in barriers, one thread
// fewer computes for a while, and from time to time one more; what was faster stays. On a quiet machine nothing is tried.
#pragma once

#include <cstdint>

namespace team {

class Strength {
  public:
    // Threads for the next graph, of those that are wanted and at most one per processor.
    int threads(int wanted, int processors, uint64_t kind);

    // Whether those are fewer than there could be. Then tell whether a processor seems to be idle, if that can be known.
    bool reduced() const { return usual_ < most_; }
    void seems_idle(bool idle) { window_.idle += idle; }

    // What that graph took, and the sum of what its threads waited while they should have slept, in nanoseconds.
    void finished(int64_t elapsed, int64_t lost);

  private:
    struct Window {
        int64_t graphs = 0, elapsed = 0, lost = 0, idle = 0;
    };

    void judge();

    int      most_    = 0;
    int      usual_   = 0;
    int      trial_   = 0;  // 0: none
    bool     repeats_ = false;
    uint64_t kind_    = 0;
    int64_t  last_    = 0;  // elapsed, of the last graph
    Window   window_;
    double   usual_time_ = 0;  // of a graph, in the last window
    int      pause_      = 1;  // windows between two trials
    int      since_      = 0;  // windows
    bool     idle_       = false;
};

}  // namespace team
