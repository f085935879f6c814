// I2_S in ggml: a CPU buffer type that repacks weights as they are loaded and multiplies with our kernels.
//
// ggml asks every extra buffer type, in order, whether it can hold a weight and run its operation. This one accepts
// MUL_MAT with an I2_S matrix, or MUL_MAT_ID with one for each expert, and float32 activations, and nothing else;
// patches/0002 makes the ordinary CPU path decline everything that involves I2_S. So I2_S bytes are only ever read by the
// kernels in native/kernels/ternary.

#include "ternary_buffer.h"

#include "attention.h"
#include "experts.h"
#include "ggml-impl.h"
#include "grouped_buffer.h"
#include "repacked_buffer.h"
#include "sharing.h"
#include "ternary/self_test.h"
#include "ternary/ternary.h"
#include "work_queue.h"
#include "ternary_product.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace {

constexpr size_t  tail_bytes     = 32;   // I2_S: after the codes, the scale and padding
constexpr int64_t block_elements = 128;  // I2_S: 32 bytes of codes

// The kernels and the weights' layout of this process, chosen once.
struct Choice {
    const ternary::Kernels * kernels = nullptr;  // nullptr: see the errors
    ternary::Layout          layout  = ternary::Layout::two_bit;
    std::string              tier_error;
    std::string              layout_error;
};

Choice choose() {
    Choice     choice;
    const auto tier   = ternary::select_kernels(ternary::cpu_features(), std::getenv("BITEXPORT_TIER"), ternary::self_test);
    choice.tier_error = tier.error;
    if (!tier.warning.empty()) {
        GGML_LOG_WARN("bitexport: %s\n", tier.warning.c_str());
    }
    if (tier.kernels != nullptr) {
        const auto layout   = ternary::select_layout(*tier.kernels, std::getenv("BITEXPORT_LAYOUT"));
        choice.layout_error = layout.error;
        choice.layout       = layout.layout;
        choice.kernels      = layout.ok ? tier.kernels : nullptr;
    }
    if (choice.kernels == nullptr) {
        GGML_LOG_ERROR("bitexport: %s%s\n", choice.tier_error.c_str(), choice.layout_error.c_str());
    }
    return choice;
}

const Choice & selection() {
    static const Choice chosen = choose();
    return chosen;
}

bitexport_observer observer = nullptr;

// In our buffer a tensor is its repacked codes, each expert's in panels of their own, followed by its scale. A matrix without
// experts is that of one.
struct Weights {
    const ggml_tensor * tensor;

    int64_t rows() const { return tensor->ne[1]; }
    int64_t cols() const { return tensor->ne[0]; }
    int64_t experts() const { return tensor->ne[2]; }
    int64_t panels() const { return ternary::panel_count(rows()); }  // of one expert
    size_t  expert_bytes() const { return ternary::packed_bytes(selection().layout, rows(), cols()); }
    size_t  packed_bytes() const { return experts() * expert_bytes(); }
    size_t  bytes() const { return packed_bytes() + sizeof(float); }
    uint8_t * packed(int64_t expert = 0) const {
        return static_cast<uint8_t *>(tensor->data) + expert * expert_bytes();
    }

    float scale() const {
        float value;
        std::memcpy(&value, packed() + packed_bytes(), sizeof(value));
        return value;
    }
    void set_scale(float value) const { std::memcpy(packed() + packed_bytes(), &value, sizeof(value)); }
};

// The arithmetic of the experts, for experts.h.
struct ExpertProduct {
    using Batch = ternary::QuantizedBuffer;

    Weights weights;

    size_t batch_bytes(int64_t rows) const { return ternary::quantized_bytes(weights.cols(), rows); }
    Batch  batch(void * memory, int64_t rows) const { return ternary::quantized_buffer(memory, weights.cols(), rows); }
    Batch  part(const Batch & all, int64_t begin, int64_t count) const {
        return {all.q + begin * all.stride, all.stride, all.scale + begin, all.sum + begin, count};
    }

    void quantize(const float * x, const Batch & batch, int64_t row) const {
        selection().kernels->quantize_token(x, weights.cols(), batch.q + row * batch.stride, batch.scale + row,
                                            batch.sum + row);
    }
    void copy(const Batch & batch, int64_t from, int64_t to) const {
        std::memcpy(batch.q + to * batch.stride, batch.q + from * batch.stride, ternary::padded_cols(weights.cols()));
        batch.scale[to] = batch.scale[from];
        batch.sum[to]   = batch.sum[from];
    }

    int64_t panels() const { return weights.panels(); }

    // The panels are multiplied as a matrix of their own, so that y starts at their first row.
    void multiply(int64_t expert, int64_t panel_begin, int64_t panel_end, const Batch & batch, float * y,
                  int64_t y_stride) const {
        const auto   layout      = selection().layout;
        const size_t panel_bytes = ternary::packed_bytes(layout, ternary::panel_rows, weights.cols());
        selection().kernels->products(layout).matmul(weights.packed(expert) + panel_begin * panel_bytes,
                                                     weights.rows() - panel_begin * ternary::panel_rows, weights.cols(),
                                                     weights.scale(), batch, y, y_stride, 0, panel_end - panel_begin);
    }

    bool observed() const { return observer != nullptr; }
    void observe(const char * name, const Batch & batch) const {
        observer(name, batch.q, batch.stride, batch.scale, weights.cols(), weights.cols(), batch.tokens);
    }
};

// Whole cache lines, so that two threads' copies never share one.
size_t batch_bytes(int64_t cols, int64_t tokens) {
    return (ternary::quantized_bytes(cols, tokens) + 63) / 64 * 64;
}

class TernaryTraits : public ggml::cpu::tensor_traits {
  public:
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        if (op->op == GGML_OP_MUL_MAT_ID) {
            size = experts_work_size(ExpertProduct{{op->src[0]}}, n_threads, op);
            return true;
        }
        const int64_t tokens = ggml_nrows(op->src[1]), cols = op->src[0]->ne[0];
        size = each_quantizes(tokens) ? TokenMemory::bytes(cols) * n_threads : batch_bytes(cols, tokens);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        if (op->op == GGML_OP_MUL_MAT_ID) {
            multiply_experts(ExpertProduct{{op->src[0]}}, params, op);
            return true;
        }
        const Weights       weights{op->src[0]};
        const ggml_tensor * x       = op->src[1];
        const int64_t       tokens  = ggml_nrows(x);
        const auto &        kernels = *selection().kernels;

        auto * const work  = static_cast<uint8_t *>(params->wdata) +
                            own_copy(tokens, params) * batch_bytes(weights.cols(), tokens);
        const auto   batch = ternary::quantized_buffer(work, weights.cols(), tokens);
        quantize_tokens(tokens, params, [&](int64_t token) {
            kernels.quantize_token(activation_row(x, token), weights.cols(), batch.q + token * batch.stride,
                                   batch.scale + token, batch.sum + token);
        });
        if (params->ith == 0 && observer != nullptr) {
            observer(weights.tensor->name, batch.q, batch.stride, batch.scale, weights.cols(), weights.cols(), tokens);
        }

        const ternary::Products & products = kernels.products(selection().layout);
        WorkQueue                 panels(params, ternary::panel_count(weights.rows()), panels_at_once, tokens == 1);
        for (int64_t begin, end; panels.next(begin, end);) {
            products.matmul(weights.packed(), weights.rows(), weights.cols(), weights.scale(), batch,
                            static_cast<float *>(op->data), weights.rows(), begin, end);
        }
        return true;
    }
};

// Throws std::runtime_error when a code is 3, naming the first.
void repack_codes(const Weights & weights, const uint8_t * codes) {
    const int64_t rows = weights.rows(), cols = weights.cols();
    const auto    repack      = [&](int64_t expert, int64_t panel_begin, int64_t panel_end) {
        const int64_t first = expert * rows * cols;  // whole blocks, see accepts
        return ternary::repack_i2_s(*selection().kernels, selection().layout, codes + first / 4, rows, cols,
                                    weights.packed(expert), panel_begin, panel_end);
    };
    const int64_t bad_element = repack_experts_in_threads(weights.experts(), weights.panels(), rows * cols, repack);
    if (bad_element >= 0) {
        throw std::runtime_error(std::string("tensor '") + weights.tensor->name + "' holds code 3 at element " +
                                 std::to_string(bad_element) +
                                 ", but I2_S has only 0, 1 and 2: the file is damaged, or is another layout "
                                 "that shares type number 36; convert it again");
    }
}

class TernaryBufferType : public RepackedBufferType {
  public:
    TernaryBufferType() : RepackedBufferType("CPU_TERNARY", "read the file") {}

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        if (ggml::cpu::tensor_traits * attention = bitexport_attention_traits(op)) {
            return attention;
        }
        return RepackedBufferType::get_tensor_traits(op);
    }

  private:
    bool accepts(const ggml_tensor * weights) const override {
        return weights->type == GGML_TYPE_I2_S && weights->ne[0] <= ternary::max_cols &&
               (weights->ne[2] == 1 || weights->ne[0] * weights->ne[1] % block_elements == 0);
    }

    bool accepts_experts() const override { return true; }

    size_t bytes(const ggml_tensor * tensor) const override {
        return tensor->type == GGML_TYPE_I2_S ? Weights{tensor}.bytes() : ggml_nbytes(tensor);
    }

    void repack(const ggml_tensor * tensor, const void * data) const override {
        const auto * codes = static_cast<const uint8_t *>(data);
        float        scale;
        std::memcpy(&scale, codes + ggml_nbytes(tensor) - tail_bytes, sizeof(scale));
        if (!std::isfinite(scale) || scale <= 0.0f) {
            throw std::runtime_error(std::string("tensor '") + tensor->name + "' has scale " + std::to_string(scale) +
                                     ", but a scale is positive and finite: the file is damaged; convert it again");
        }
        const Weights weights{tensor};
        repack_codes(weights, codes);
        weights.set_scale(scale);
    }

    ggml::cpu::tensor_traits & traits() override { return traits_; }

    TernaryTraits traits_;
};

}  // namespace

namespace {

TernaryBufferType & buffer_type() {
    static TernaryBufferType type;
    return type;
}

}  // namespace

ggml_backend_buffer_type_t bitexport_ternary_buffer_type(void) {
    return selection().kernels == nullptr ? nullptr : buffer_type().type();
}

bool bitexport_multiplies(const ggml_tensor * op) {
    return op->op == GGML_OP_MUL_MAT && selection().kernels != nullptr && buffer_type().holds(op->src[0]) &&
           op->src[0]->view_src == nullptr && ggml_n_dims(op->src[0]) <= 2;
}

bool bitexport_multiplies_one_token(const ggml_tensor * op) {
    return bitexport_multiplies(op) && ggml_nrows(op->src[1]) == 1;
}

size_t TokenMemory::bytes(int64_t cols) {
    return batch_bytes(cols, 1) + (cols * sizeof(float) + 63) / 64 * 64;
}

TokenMemory::TokenMemory(void * work, int64_t cols, int thread)
    : batch_(ternary::quantized_buffer(static_cast<uint8_t *>(work) + thread * bytes(cols), cols, 1)),
      floats_(reinterpret_cast<float *>(static_cast<uint8_t *>(work) + thread * bytes(cols) + batch_bytes(cols, 1))) {}

void bitexport_quantize_token(const float * x, int64_t cols, const ternary::QuantizedBuffer & batch) {
    selection().kernels->quantize_token(x, cols, batch.q, batch.scale, batch.sum);
}

int64_t bitexport_panels(const ggml_tensor * op) {
    return Weights{op->src[0]}.panels();
}

void bitexport_multiply_token(const ggml_tensor * op, const ternary::QuantizedBuffer & batch, int64_t panel_begin,
                              int64_t panel_end) {
    const Weights weights{op->src[0]};
    selection().kernels->products(selection().layout)
        .matmul(weights.packed(), weights.rows(), weights.cols(), weights.scale(), batch, static_cast<float *>(op->data),
                weights.rows(), panel_begin, panel_end);
}

void bitexport_observe_token(const ggml_tensor * op, const ternary::QuantizedBuffer & batch) {
    if (observer != nullptr) {
        const int64_t cols = op->src[0]->ne[0];
        observer(op->src[0]->name, batch.q, batch.stride, batch.scale, cols, cols, 1);
    }
}

bool bitexport_uses_ternary(const ggml_tensor * op) {
    return std::any_of(op->src, op->src + GGML_MAX_SRC, [](const ggml_tensor * source) {
        return source != nullptr && source->type == GGML_TYPE_I2_S;
    });
}

void bitexport_refuse_ternary(const ggml_tensor * op) {
    const bool only_a_view = op->op == GGML_OP_VIEW || op->op == GGML_OP_RESHAPE || op->op == GGML_OP_PERMUTE ||
                             op->op == GGML_OP_TRANSPOSE;
    if (only_a_view) {
        return;
    }
    if (bitexport_uses_ternary(op)) {
        GGML_ABORT("bitexport: %s of '%s' cannot be computed from I2_S; only a matrix product with a complete "
                   "tensor in the CPU_TERNARY buffer can",
                   ggml_op_name(op->op), op->name);
    }
    for (const ggml_tensor * source : op->src) {
        if (RepackedBufferType::repacked(source)) {
            GGML_ABORT("bitexport: %s of '%s' cannot be computed from '%s', which was repacked when it was loaded; only a "
                       "matrix product with the complete tensor can",
                       ggml_op_name(op->op), op->name, source->name);
        }
    }
}

const char * bitexport_tier_name(void) {
    const auto * kernels = selection().kernels;
    return kernels == nullptr ? nullptr : kernels->name;
}

const char * bitexport_tier_error(void) {
    return selection().tier_error.empty() ? nullptr : selection().tier_error.c_str();
}

const char * bitexport_layout_name(void) {
    return selection().kernels == nullptr ? nullptr : ternary::layout_name(selection().layout);
}

const char * bitexport_layout_error(void) {
    return selection().layout_error.empty() ? nullptr : selection().layout_error.c_str();
}

size_t bitexport_bytes_read(int type, int64_t rows, int64_t cols) {
    if (type == GGML_TYPE_I2_S && cols <= ternary::max_cols) {
        return ternary::packed_bytes(selection().layout, rows, cols);
    }
    return bitexport_grouped_bytes_read(type, rows, cols);
}

void bitexport_observe(bitexport_observer new_observer) {
    observer = new_observer;
}

bitexport_observer bitexport_current_observer(void) {
    return observer;
}
