// The output head in ggml: a CPU buffer type that repacks it as it is loaded and multiplies with the kernels in
// native/kernels/head. Every token reads the complete head, a third of all bytes in a 2B model, and ggml's own kernels do
// not reach the memory's speed.
//
// The values are those of the file and the activations are rounded as ggml rounds them (Q8_K); only the order in which
// floats are added differs.

#include "head_buffer.h"

#include "ggml-impl.h"
#include "head/head.h"
#include "head/self_test.h"
#include "repacked_buffer.h"
#include "sharing.h"
#include "stock_switch.h"
#include "ternary_buffer.h"
#include "work_queue.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace {

const StockSwitch & wanted() {
    static const StockSwitch value("BITEXPORT_HEAD", "kernels");
    return value;
}

const head::Kernels * kernels() {
    static const head::Kernels * const chosen = [] {
        const char * tier = bitexport_tier_name();
        const head::Kernels * best = tier == nullptr ? nullptr : head::kernels_for(tier);
        const std::string     failure = best == nullptr ? "" : head::self_test(*best);
        if (!failure.empty()) {
            GGML_LOG_WARN("bitexport: the head's kernels %s are skipped: they %s; using llama.cpp's own\n", best->name, failure.c_str());
            best = nullptr;
        }
        return best;
    }();
    return chosen;
}

bool type_of(const ggml_tensor * weights, head::Type & type) {
    switch (weights->type) {
        case GGML_TYPE_Q4_K: type = head::Type::q4_k; return true;
        case GGML_TYPE_Q5_K: type = head::Type::q5_k; return true;
        case GGML_TYPE_Q6_K: type = head::Type::q6_k; return true;
        default: return false;
    }
}

// All other weights keep ggml's kernels. A tied embedding keeps its name as the head; looking up tokens in it is another
// operation, which this buffer type does not support, so llama.cpp keeps a second copy for that.
bool is_head(const ggml_tensor * weights) {
    return std::strcmp(weights->name, "output.weight") == 0 || std::strcmp(weights->name, "token_embd.weight") == 0;
}

// In our buffer a tensor is its panels.
struct Weights {
    const ggml_tensor * tensor;

    head::Type type() const {
        head::Type found{};
        GGML_ASSERT(type_of(tensor, found));
        return found;
    }
    int64_t   rows() const { return tensor->ne[1]; }
    int64_t   cols() const { return tensor->ne[0]; }
    size_t    bytes() const { return head::packed_bytes(type(), rows(), cols()); }
    uint8_t * packed() const { return static_cast<uint8_t *>(tensor->data); }
};

class HeadTraits : public ggml::cpu::tensor_traits {
  public:
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        const int64_t tokens = ggml_nrows(op->src[1]);
        size = alignof(head::Activations) + token_bytes(op->src[0]->ne[0]) * tokens * quantized_copies(tokens, n_threads);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        const Weights       weights{op->src[0]};
        const ggml_tensor * x      = op->src[1];
        const int64_t       tokens = ggml_nrows(x);

        const int64_t stride = head::token_blocks(weights.cols());
        auto *        blocks = aligned(params->wdata) + own_copy(tokens, params) * stride;
        quantize_tokens(tokens, params, [&](int64_t token) {
            head::quantize(activation_row(x, token), weights.cols(), blocks + token * stride);
        });
        WorkQueue panels(params, head::panel_count(weights.rows()), panels_at_once, tokens == 1);
        for (int64_t begin, end; panels.next(begin, end);) {
            kernels()->matmul(weights.type(), weights.packed(), weights.rows(), weights.cols(), {blocks, tokens},
                              static_cast<float *>(op->data), weights.rows(), begin, end);
        }
        return true;
    }

  private:
    static size_t token_bytes(int64_t cols) {
        return static_cast<size_t>(head::token_blocks(cols)) * sizeof(head::Activations);
    }

    // ggml's work buffer has no guaranteed alignment.
    static head::Activations * aligned(void * work) {
        constexpr uintptr_t unit = alignof(head::Activations);
        return reinterpret_cast<head::Activations *>((reinterpret_cast<uintptr_t>(work) + unit - 1) / unit * unit);
    }
};

class HeadBufferType : public RepackedBufferType {
  public:
    HeadBufferType() : RepackedBufferType("CPU_HEAD", "read the file, or set BITEXPORT_HEAD=stock") {}

  private:
    bool accepts(const ggml_tensor * weights) const override {
        if (!is_head(weights)) {
            return false;
        }
        if (wanted().error() != nullptr) {
            throw std::runtime_error(wanted().error());
        }
        head::Type type{};
        return type_of(weights, type);
    }

    size_t bytes(const ggml_tensor * tensor) const override {
        head::Type type{};
        return type_of(tensor, type) ? Weights{tensor}.bytes() : ggml_nbytes(tensor);
    }

    void repack(const ggml_tensor * tensor, const void * data) const override {
        const Weights weights{tensor};
        const int64_t rows = weights.rows(), cols = weights.cols();
        repack_in_threads(head::panel_count(rows), rows * cols, [&](int64_t panel_begin, int64_t panel_end) {
            head::repack(weights.type(), static_cast<const uint8_t *>(data), rows, cols, weights.packed(), panel_begin,
                         panel_end);
        });
    }

    ggml::cpu::tensor_traits & traits() override { return traits_; }

    HeadTraits traits_;
};

}  // namespace

ggml_backend_buffer_type_t bitexport_head_buffer_type(void) {
    static HeadBufferType type;
    return kernels() == nullptr || wanted().stock() ? nullptr : type.type();
}

const char * bitexport_head_error(void) {
    return wanted().error();
}
