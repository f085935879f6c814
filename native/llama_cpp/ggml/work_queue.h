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
    // The range [0, total), in pieces of a multiple of `smallest`, which kernels may take at once: one piece for a single
    // thread, for several threads some for each, so that they end at about the same time.
    WorkQueue(const ggml_compute_params * params, int64_t total, int64_t smallest = 1)
        : team_(params->nth > 1 ? bitexport_team_of(params->threadpool) : nullptr), total_(total),
          piece_(params->nth > 1
                     ? std::max<int64_t>(1, total / (pieces_per_thread * params->nth * smallest)) * smallest
                     : total) {}

    // The next piece in [begin, end); false if there are no more.
    bool next(int64_t & begin, int64_t & end) {
        begin  = team_ != nullptr ? bitexport_claim(team_, piece_) : end_;
        end    = std::min(begin + piece_, total_);
        end_   = end;
        return begin < total_;
    }

  private:
    static constexpr int64_t pieces_per_thread = 8;

    bitexport_team * team_;
    int64_t          total_;
    int64_t          piece_;
    int64_t          end_ = 0;  // of the last piece
};
