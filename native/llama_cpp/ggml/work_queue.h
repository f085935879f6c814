// Work of one operation, handed out in small pieces: a thread that is slow, or that lost its processor for a while, takes fewer
// of them, and the others need not wait for it to do its part.
//
// Between two barriers a pool has one queue; an operation of ggml ends with a barrier.
#pragma once

#include "ggml-cpu-impl.h"
#include "threads.h"

#include <algorithm>
#include <cstdint>

class WorkQueue {
  public:
    // The range [0, total), in one piece for a single thread; for several, in some pieces for each, so that they end at about
    // the same time. All pieces are multiples of `at_once`, which kernels may take together. With `share_first`, every thread
    // first gets half of its fair share in one piece: where memory is what limits, because a new piece interrupts the reading.
    WorkQueue(const ggml_compute_params * params, int64_t total, int64_t at_once = 1, bool share_first = false)
        : team_(params->nth > 1 ? bitexport_team_of(params->threadpool) : nullptr), total_(total) {
        const int64_t threads = params->nth;
        if (team_ == nullptr) {
            shares_ = 1;
            share_  = total;
            return;
        }
        share_  = share_first ? total / (2 * threads * at_once) * at_once : 0;
        shares_ = share_ == 0 ? 0 : threads;
        piece_  = std::max<int64_t>(1, total / (pieces_per_thread * threads * at_once)) * at_once;
    }

    // The next piece in [begin, end); false if there are no more.
    bool next(int64_t & begin, int64_t & end) {
        const int64_t index = team_ != nullptr ? bitexport_claim(team_, 1) : taken_++;
        begin               = begin_of(index);
        end                 = begin_of(index + 1);
        return begin < end;
    }

  private:
    static constexpr int64_t pieces_per_thread = 8;

    int64_t begin_of(int64_t index) const {
        const int64_t begin = index < shares_ ? index * share_ : shares_ * share_ + (index - shares_) * piece_;
        return std::min(begin, total_);
    }

    bitexport_team * team_;
    int64_t          total_;
    int64_t          shares_;  // the first pieces, as many as threads or none, of `share_` each
    int64_t          share_;
    int64_t          piece_ = 1;
    int64_t          taken_ = 0;  // by a single thread
};
