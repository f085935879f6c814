#include "strength.h"

#include <algorithm>

namespace team {

namespace {

// Enough graphs to compare two speeds, although the system lets threads run for some milliseconds at a time.
constexpr int64_t window_ns     = 60'000'000;
constexpr int64_t window_graphs = 2;

// A graph that takes longer hands out enough work between two barriers; and trials would take too long.
constexpr int64_t long_graph_ns = 250'000'000;

// Less time than this part is lost on a quiet machine, too, in operations that do not divide well.
constexpr double lost_part = 0.1;

// One thread fewer must be that much faster.
constexpr double gain = 0.95;

constexpr int shortest_pause = 1, longest_pause = 8;

}  // namespace

int Strength::threads(int wanted, int processors, uint64_t kind) {
    const int most = std::max(1, std::min(wanted, processors));
    if (most != most_) {
        *this  = Strength();
        most_  = most;
        usual_ = most;
    }
    repeats_ = kind == kind_ && last_ < long_graph_ns;
    if (kind != kind_) {
        kind_   = kind;
        window_ = Window();
        trial_  = 0;
    }
    return !repeats_ ? most_ : trial_ != 0 ? trial_ : usual_;
}

void Strength::finished(int64_t elapsed, int64_t lost) {
    last_ = elapsed;
    if (!repeats_) {
        return;
    }
    ++window_.graphs;
    window_.elapsed += elapsed;
    window_.lost += lost;
    if (window_.graphs >= window_graphs && window_.elapsed >= window_ns) {
        judge();
        window_ = Window();
    }
}

void Strength::judge() {
    const double time = static_cast<double>(window_.elapsed) / window_.graphs;
    if (trial_ != 0) {
        const bool better = time < usual_time_ * (trial_ < usual_ ? gain : 1.0);
        pause_            = better ? shortest_pause : std::min(2 * pause_, longest_pause);
        usual_            = better ? trial_ : usual_;
        usual_time_       = better ? time : usual_time_;
        trial_            = 0;
        since_            = 0;
        return;
    }
    usual_time_ = time;
    const bool idle = window_.idle == window_.graphs;
    if (idle && !idle_) {  // somebody has left
        pause_ = shortest_pause;
    }
    idle_ = idle;
    if (++since_ < pause_) {
        return;
    }
    const int  step    = std::max(1, most_ / 16);
    const bool waiting = window_.lost > lost_part * usual_ * window_.elapsed;
    if (waiting && usual_ > 1) {
        trial_ = std::max(1, usual_ - step);
    } else if (usual_ < most_) {
        trial_ = std::min(most_, usual_ + step);
    }
}

}  // namespace team
