// Products with a mixture of experts (GGML_OP_MUL_MAT_ID): which rows of the activations go to which expert, and how threads
// share the work.
//
//   y[token][slot] = W[ids[token][slot]] x[token][slot % x.ne[1]]        x.ne[1]: 1 or a divisor of the number of slots
//
// The pairs (token, slot) are sorted by expert, and within an expert by token and slot; that order is the batch. A row of x
// is quantized once, into the place of the first pair that uses it, and copied to the others. So the rows of an expert are
// neighbours, and one call multiplies them with the expert's panels. The panels of all experts are shared out by what they
// cost, so that one token with a few experts keeps every thread busy, too.
//
// How another kind of weights uses it: a `Product` brings the arithmetic; its tensor_traits call, for GGML_OP_MUL_MAT_ID,
//
//   work_size:        size = experts_work_size(Product{...}, n_threads, op);
//   compute_forward:  multiply_experts(Product{...}, params, op);
//
// and its buffer type overrides RepackedBufferType::accepts_experts and repacks with repack_experts_in_threads, so that every
// expert has panels of its own. A Product has
//
//   Batch                                   a view of quantized rows
//   size_t  batch_bytes(rows)               memory for a batch
//   Batch   batch(memory, rows)             the view; memory is aligned to 64 bytes
//   Batch   part(batch, begin, count)       some of its rows
//   void    quantize(x, batch, row)         a row of floats into a row of the batch
//   void    copy(batch, from, to)           a row of the batch into another
//   int64_t panels()                        of one expert; all but the last have ternary::panel_rows rows
//   void    multiply(expert, panel_begin, panel_end, batch, y, y_stride)
//                                           y[i * y_stride + row - first row of panel_begin], for every row i of the batch
//   bool    observed()                      whether anybody observes
//   void    observe(name, batch)            then called with `<weight>#<expert>` for every expert that has rows
#pragma once

#include "ggml-cpu-impl.h"
#include "ggml.h"
#include "sharing.h"
#include "ternary/ternary.h"
#include "work_queue.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <string>

// The experts' rows of the batch. Every thread makes its own: sorting takes less time than a barrier.
class Routing {
  public:
    static size_t bytes(const ggml_tensor * op) {
        return sizeof(int32_t) * static_cast<size_t>(op->src[0]->ne[2] + 1 + 2 * ggml_nelements(op->src[2]));
    }

    // Aborts when an id is not that of an expert: the graph is wrong.
    Routing(const ggml_tensor * op, void * memory)
        : ids_(op->src[2]), experts_(op->src[0]->ne[2]), slots_(ids_->ne[0]), begin_(static_cast<int32_t *>(memory)),
          pairs_(begin_ + experts_ + 1), rows_(pairs_ + ggml_nelements(ids_)) {
        std::fill(begin_, begin_ + experts_ + 1, 0);
        const int64_t count = ggml_nelements(ids_);
        for (int64_t pair = 0; pair < count; ++pair) {
            const int32_t expert = id(pair);
            if (expert < 0 || expert >= experts_) {
                GGML_ABORT("bitexport: '%s' asks for expert %d of '%s', which has %d", op->name, static_cast<int>(expert),
                           op->src[0]->name, static_cast<int>(experts_));
            }
            ++begin_[expert + 1];
        }
        for (int64_t expert = 0; expert < experts_; ++expert) {
            begin_[expert + 1] += begin_[expert];
        }
        // each expert's begin moves up to its end, the next one's begin, and is moved back afterwards
        for (int64_t pair = 0; pair < count; ++pair) {
            const int32_t row = begin_[id(pair)]++;
            rows_[pair]       = row;
            pairs_[row]       = static_cast<int32_t>(pair);
        }
        std::copy_backward(begin_, begin_ + experts_, begin_ + experts_ + 1);
        begin_[0] = 0;
    }

    int64_t experts() const { return experts_; }
    int64_t begin(int64_t expert) const { return begin_[expert]; }
    int64_t count(int64_t expert) const { return begin_[expert + 1] - begin_[expert]; }

    int64_t row_of(int64_t token, int64_t slot) const { return rows_[token * slots_ + slot]; }
    int64_t token_of(int64_t row) const { return pairs_[row] / slots_; }
    int64_t slot_of(int64_t row) const { return pairs_[row] % slots_; }

  private:
    int32_t id(int64_t pair) const {
        const char * data = static_cast<const char *>(ids_->data);
        return *reinterpret_cast<const int32_t *>(data + pair / slots_ * ids_->nb[1] + pair % slots_ * ids_->nb[0]);
    }

    const ggml_tensor * ids_;
    int64_t             experts_, slots_;
    int32_t *           begin_;  // [experts + 1]: each expert's first row of the batch
    int32_t *           pairs_;  // [rows]: token * slots + slot
    int32_t *           rows_;   // [pairs]: the inverse
};

namespace experts {

constexpr size_t line_bytes = 64;

// Outputs of one call for several rows, which then go to their places: in the first-level cache, and enough rows that a
// panel's codes are read rarely.
constexpr int64_t rows_at_once = 64;
constexpr int64_t outputs      = rows_at_once * 4 * ternary::panel_rows;

// What a panel costs beside its rows, in rows: its bytes come from memory. An estimate; only the balance depends on it.
constexpr int64_t panel_cost = 4;

inline size_t lines(size_t bytes) {
    return (bytes + line_bytes - 1) / line_bytes * line_bytes;
}

inline size_t routing_bytes(const ggml_tensor * op) {
    return lines(Routing::bytes(op));
}

inline size_t thread_bytes(const ggml_tensor * op) {
    return routing_bytes(op) + outputs * sizeof(float);
}

inline int64_t rows(const ggml_tensor * op) {
    return ggml_nelements(op->src[2]);
}

inline float * output_row(const ggml_tensor * op, const Routing & routing, int64_t row) {
    return reinterpret_cast<float *>(static_cast<char *>(op->data) + routing.slot_of(row) * op->nb[1] +
                                     routing.token_of(row) * op->nb[2]);
}

// The panels of one expert that belong to the part `share` of the cost of all.
inline Share panels_of(const Share & share, int64_t cost_before, int64_t cost, int64_t panels) {
    const auto panel_at = [&](int64_t bound) {
        return std::clamp<int64_t>((bound - cost_before + cost - 1) / cost, 0, panels);
    };
    Share part(0, 0, 1);
    part.begin = share.begin <= cost_before ? 0 : panel_at(share.begin);
    part.end   = share.end <= cost_before ? 0 : panel_at(share.end);
    return part;
}

// All rows of x into the batch; returns when the thread's copy is complete.
template <class Product>
void quantize(const Product & product, const typename Product::Batch & batch, const Routing & routing,
              const ggml_compute_params * params, const ggml_tensor * op) {
    const ggml_tensor * x      = op->src[1];
    const int64_t       slots  = op->src[2]->ne[0];
    const auto          one    = [&](int64_t index) {
        const int64_t token = index / x->ne[1], first = index % x->ne[1];
        const int64_t row   = routing.row_of(token, first);
        product.quantize(activation_row(x, index), batch, row);
        for (int64_t slot = first + x->ne[1]; slot < slots; slot += x->ne[1]) {
            product.copy(batch, row, routing.row_of(token, slot));
        }
    };
    if (each_quantizes(x->ne[2])) {
        for (int64_t index = 0; index < ggml_nrows(x); ++index) {
            one(index);
        }
        return;
    }
    WorkQueue queue(params, ggml_nrows(x));
    for (int64_t begin, end; queue.next(begin, end);) {
        for (int64_t index = begin; index < end; ++index) {
            one(index);
        }
    }
    ggml_barrier(params->threadpool);
}

// Some panels of one expert for all its rows.
template <class Product>
void multiply(const Product & product, const typename Product::Batch & batch, const Routing & routing, int64_t expert,
              const Share & panels, float * scratch, const ggml_tensor * op) {
    const int64_t first = routing.begin(expert), count = routing.count(expert);
    if (count == 1) {  // straight to its place
        product.multiply(expert, panels.begin, panels.end, product.part(batch, first, 1),
                         output_row(op, routing, first) + panels.begin * ternary::panel_rows, op->ne[0]);
        return;
    }
    for (int64_t begin = 0; begin < count; begin += rows_at_once) {
        const int64_t rows_here = std::min(rows_at_once, count - begin);
        const int64_t step      = outputs / (rows_here * ternary::panel_rows);
        for (int64_t panel = panels.begin; panel < panels.end; panel += step) {
            const int64_t panel_end = std::min(panel + step, panels.end);
            const int64_t column    = panel * ternary::panel_rows;
            const int64_t columns   = std::min(panel_end * ternary::panel_rows, op->ne[0]) - column;
            product.multiply(expert, panel, panel_end, product.part(batch, first + begin, rows_here), scratch, columns);
            for (int64_t row = 0; row < rows_here; ++row) {
                std::memcpy(output_row(op, routing, first + begin + row) + column, scratch + row * columns,
                            columns * sizeof(float));
            }
        }
    }
}

}  // namespace experts

// Calls repack(expert, panel_begin, panel_end) until all panels of all experts are done, as repack_in_threads. It returns
// whether all elements were valid (ok), and the first in its expert that was not (bad_element).
// Returns the first such element, counted through all experts of `elements` each, or -1.
template <class Repack>
int64_t repack_experts_in_threads(int64_t experts, int64_t panels, int64_t elements, const Repack & repack) {
    std::mutex lock;
    int64_t    bad_element = -1;
    repack_in_threads(experts * panels, experts * elements, [&](int64_t begin, int64_t end) {
        for (int64_t expert = begin / panels; expert * panels < end; ++expert) {
            const int64_t before = expert * panels;
            const auto    result = repack(expert, std::max(begin - before, int64_t{0}), std::min(end - before, panels));
            if (!result.ok) {
                const std::lock_guard<std::mutex> guard(lock);
                const int64_t                     bad = expert * elements + result.bad_element;
                bad_element = bad_element < 0 ? bad : std::min(bad_element, bad);
            }
        }
    });
    return bad_element;
}

template <class Product>
size_t experts_work_size(const Product & product, int n_threads, const ggml_tensor * op) {
    const size_t copies = quantized_copies(op->src[1]->ne[2], n_threads);
    return experts::line_bytes + experts::thread_bytes(op) * n_threads +
           experts::lines(product.batch_bytes(experts::rows(op))) * copies;
}

template <class Product>
void multiply_experts(const Product & product, const ggml_compute_params * params, const ggml_tensor * op) {
    // ggml's work buffer has no guaranteed alignment
    auto * const  work   = reinterpret_cast<char *>(experts::lines(reinterpret_cast<uintptr_t>(params->wdata)));
    char * const  own    = work + params->ith * experts::thread_bytes(op);
    auto * const  output = reinterpret_cast<float *>(own + experts::routing_bytes(op));
    const int64_t rows   = experts::rows(op);
    const int64_t copy   = own_copy(op->src[1]->ne[2], params);
    char * const  memory = work + params->nth * experts::thread_bytes(op) + copy * experts::lines(product.batch_bytes(rows));

    const Routing routing(op, own);
    const auto    batch = product.batch(memory, rows);
    experts::quantize(product, batch, routing, params, op);

    if (params->ith == 0 && product.observed()) {
        for (int64_t expert = 0; expert < routing.experts(); ++expert) {
            if (routing.count(expert) > 0) {
                const std::string name = std::string(op->src[0]->name) + "#" + std::to_string(expert);
                product.observe(name.c_str(), product.part(batch, routing.begin(expert), routing.count(expert)));
            }
        }
    }

    const int64_t panels = product.panels();
    int64_t       total  = 0;
    for (int64_t expert = 0; expert < routing.experts(); ++expert) {
        total += routing.count(expert) > 0 ? panels * (experts::panel_cost + routing.count(expert)) : 0;
    }
    WorkQueue queue(params, total);
    Share     share(0, 0, 1);
    int64_t   expert = 0, before = 0;  // pieces come in order, so the search for their experts goes on where it ended
    while (queue.next(share.begin, share.end)) {
        for (; expert < routing.experts(); ++expert) {
            const int64_t rows_here = routing.count(expert);
            const int64_t cost      = rows_here > 0 ? experts::panel_cost + rows_here : 0;
            const Share   part      = cost > 0 ? experts::panels_of(share, before, cost, panels) : Share(0, 0, 1);
            if (part.begin < part.end) {
                experts::multiply(product, batch, routing, expert, part, output, op);
            }
            if (before + panels * cost >= share.end) {
                break;  // the next piece may begin in this expert
            }
            before += panels * cost;
        }
    }
}
