// Weights with a scale for every group, in ggml: a CPU buffer type that repacks Q2_0, TQ1_0 and TQ2_0 as they are loaded and
// multiplies with the kernels in native/kernels/ternary. ggml's own do not come near the memory's speed, nor that of the
// multiply-adds, and for Q2_0 it has nothing but a scalar loop on x86.
//
// The values are those of the file and the activations are rounded as ggml rounds them (Q8_0, Q8_K); only the order in which
// floats are added differs.

#include "grouped_buffer.h"

#include "experts.h"
#include "ggml-impl.h"
#include "repacked_buffer.h"
#include "sharing.h"
#include "stock_switch.h"
#include "ternary/ternary.h"
#include "ternary_buffer.h"
#include "work_queue.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

const StockSwitch & wanted() {
    static const StockSwitch value("BITEXPORT_GROUPED", "kernels");
    return value;
}

// Those of the tier that multiplies I2_S; nullptr if there is none.
const ternary::GroupedKernels * kernels() {
    static const ternary::GroupedKernels * const chosen = [] {
        const char * tier  = bitexport_tier_name();
        const auto * found = tier == nullptr ? nullptr : ternary::select_kernels(ternary::cpu_features(), tier).kernels;
        return found == nullptr ? nullptr : &found->grouped;
    }();
    return chosen;
}

bool kind_of(int type, ternary::Grouped & kind) {
    switch (type) {
        case GGML_TYPE_Q2_0: kind = ternary::Grouped::q2_0; return true;
        case GGML_TYPE_TQ1_0: kind = ternary::Grouped::tq1_0; return true;
        case GGML_TYPE_TQ2_0: kind = ternary::Grouped::tq2_0; return true;
        default: return false;
    }
}

// In our buffer a tensor is its panels, each expert's its own. A matrix without experts is that of one.
struct Weights {
    const ggml_tensor * tensor;

    ternary::Grouped kind() const {
        ternary::Grouped found{};
        GGML_ASSERT(kind_of(tensor->type, found));
        return found;
    }
    int64_t   rows() const { return tensor->ne[1]; }
    int64_t   cols() const { return tensor->ne[0]; }
    int64_t   experts() const { return tensor->ne[2]; }
    int64_t   panels() const { return ternary::panel_count(rows()); }  // of one expert
    size_t    expert_bytes() const { return ternary::grouped_packed_bytes(kind(), rows(), cols()); }
    size_t    bytes() const { return experts() * expert_bytes(); }
    uint8_t * packed(int64_t expert = 0) const { return static_cast<uint8_t *>(tensor->data) + expert * expert_bytes(); }
};

void observe(bitexport_observer observer, const char * name, const Weights & weights, const ternary::GroupedTokens & batch) {
    std::vector<float> scales(batch.tokens * batch.groups);
    std::transform(batch.step, batch.step + scales.size(), scales.begin(), [](float step) { return 1.0f / step; });
    observer(name, batch.q, batch.stride, scales.data(), ternary::activation_group(weights.kind()), weights.cols(), batch.tokens);
}

// The arithmetic of the experts, for experts.h.
struct ExpertProduct {
    using Batch = ternary::GroupedBuffer;

    Weights weights;

    size_t batch_bytes(int64_t rows) const { return ternary::grouped_quantized_bytes(weights.kind(), weights.cols(), rows); }
    Batch  batch(void * memory, int64_t rows) const {
        return ternary::grouped_buffer(weights.kind(), memory, weights.cols(), rows);
    }
    Batch part(const Batch & all, int64_t begin, int64_t count) const {
        Batch some = all;
        some.q += begin * all.stride;
        some.step += begin * all.groups;
        some.minus_sum += begin * all.groups;
        some.tokens = count;
        return some;
    }

    void quantize(const float * x, const Batch & batch, int64_t row) const {
        const Batch to = part(batch, row, 1);
        kernels()->quantize_token(weights.kind(), x, weights.cols(), to.q, to.step, to.minus_sum);
    }
    void copy(const Batch & batch, int64_t from, int64_t to) const {
        const Batch source = part(batch, from, 1), target = part(batch, to, 1);
        std::copy(source.q, source.q + weights.cols(), target.q);
        std::copy(source.step, source.step + batch.groups, target.step);
        std::copy(source.minus_sum, source.minus_sum + batch.groups, target.minus_sum);
    }

    int64_t panels() const { return weights.panels(); }

    // The panels are multiplied as a matrix of their own, so that y starts at their first row.
    void multiply(int64_t expert, int64_t panel_begin, int64_t panel_end, const Batch & batch, float * y,
                  int64_t y_stride) const {
        const size_t panel_bytes = ternary::grouped_packed_bytes(weights.kind(), ternary::panel_rows, weights.cols());
        kernels()->matmul(weights.kind(), weights.packed(expert) + panel_begin * panel_bytes,
                          weights.rows() - panel_begin * ternary::panel_rows, weights.cols(), batch, y, y_stride, 0,
                          panel_end - panel_begin);
    }

    bool observed() const { return bitexport_current_observer() != nullptr; }
    void observe(const char * name, const Batch & batch) const {
        ::observe(bitexport_current_observer(), name, weights, batch);
    }
};

class GroupedTraits : public ggml::cpu::tensor_traits {
  public:
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        if (op->op == GGML_OP_MUL_MAT_ID) {
            size = experts_work_size(ExpertProduct{{op->src[0]}}, n_threads, op);
            return true;
        }
        const int64_t tokens = ggml_nrows(op->src[1]);
        size                 = batch_bytes(Weights{op->src[0]}, tokens) * quantized_copies(tokens, n_threads);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        if (op->op == GGML_OP_MUL_MAT_ID) {
            multiply_experts(ExpertProduct{{op->src[0]}}, params, op);
            return true;
        }
        const Weights       weights{op->src[0]};
        const auto          kind   = weights.kind();
        const ggml_tensor * x      = op->src[1];
        const int64_t       tokens = ggml_nrows(x);

        auto * const work  = static_cast<uint8_t *>(params->wdata) + own_copy(tokens, params) * batch_bytes(weights, tokens);
        const auto   batch = ternary::grouped_buffer(kind, work, weights.cols(), tokens);
        quantize_tokens(tokens, params, [&](int64_t token) {
            kernels()->quantize_token(kind, activation_row(x, token), weights.cols(), batch.q + token * batch.stride,
                                      batch.step + token * batch.groups, batch.minus_sum + token * batch.groups);
        });
        if (params->ith == 0 && bitexport_current_observer() != nullptr) {
            observe(bitexport_current_observer(), weights.tensor->name, weights, batch);
        }
        WorkQueue panels(params, ternary::panel_count(weights.rows()), panels_at_once);
        for (int64_t begin, end; panels.next(begin, end);) {
            kernels()->matmul(kind, weights.packed(), weights.rows(), weights.cols(), batch, static_cast<float *>(op->data),
                              weights.rows(), begin, end);
        }
        return true;
    }

  private:
    // Whole cache lines, so that two threads' copies never share one.
    static size_t batch_bytes(const Weights & weights, int64_t tokens) {
        return (ternary::grouped_quantized_bytes(weights.kind(), weights.cols(), tokens) + 63) / 64 * 64;
    }
};

class GroupedBufferType : public RepackedBufferType {
  public:
    GroupedBufferType() : RepackedBufferType("CPU_GROUPED", "read the file, or set BITEXPORT_GROUPED=stock") {}

  private:
    bool accepts(const ggml_tensor * weights) const override {
        ternary::Grouped kind{};
        if (!kind_of(weights->type, kind)) {
            return false;
        }
        if (wanted().error() != nullptr) {
            throw std::runtime_error(wanted().error());
        }
        return true;
    }

    bool accepts_experts() const override { return true; }

    size_t bytes(const ggml_tensor * tensor) const override {
        ternary::Grouped kind{};
        return kind_of(tensor->type, kind) ? Weights{tensor}.bytes() : ggml_nbytes(tensor);
    }

    void repack(const ggml_tensor * tensor, const void * data) const override {
        const Weights weights{tensor};
        const int64_t rows = weights.rows(), cols = weights.cols();
        const auto    repack      = [&](int64_t expert, int64_t begin, int64_t end) {
            const auto * source = static_cast<const uint8_t *>(data) + expert * rows * ggml_row_size(tensor->type, cols);
            return ternary::repack_grouped(weights.kind(), source, rows, cols, weights.packed(expert), begin, end);
        };
        const int64_t bad_element = repack_experts_in_threads(weights.experts(), weights.panels(), rows * cols, repack);
        if (bad_element >= 0) {
            throw std::runtime_error(std::string("tensor '") + tensor->name + "' has a scale that is infinite or not a number, " +
                                     "that of row " + std::to_string(bad_element / cols) + " from column " +
                                     std::to_string(bad_element % cols) + ": the file is damaged; convert it again");
        }
    }

    ggml::cpu::tensor_traits & traits() override { return traits_; }

    GroupedTraits traits_;
};

}  // namespace

ggml_backend_buffer_type_t bitexport_grouped_buffer_type(void) {
    static GroupedBufferType type;
    return kernels() == nullptr || wanted().stock() ? nullptr : type.type();
}

size_t bitexport_grouped_bytes_read(int type, int64_t rows, int64_t cols) {
    ternary::Grouped kind{};
    return bitexport_grouped_buffer_type() != nullptr && kind_of(type, kind) ? ternary::grouped_packed_bytes(kind, rows, cols) : 0;
}

const char * bitexport_grouped_error(void) {
    return wanted().error();
}
