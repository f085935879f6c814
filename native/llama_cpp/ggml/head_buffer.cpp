// The output head in ggml: a CPU buffer type that repacks it as it is loaded and multiplies with the kernels in
// native/kernels/head. The head is read whole for every token, a third of all bytes in a 2B model, and ggml's own kernels do not
// reach the memory's speed.
//
// The values are those of the file and the activations are rounded as ggml rounds them (Q8_K); only the order in which
// floats are added differs.

#include "head_buffer.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "head/head.h"
#include "ternary/ternary.h"
#include "sharing.h"
#include "ternary_buffer.h"
#include "traits.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace {

// What BITEXPORT_HEAD asks for; empty: our kernels.
const std::string & wanted() {
    static const std::string value = [] {
        const char * text = std::getenv("BITEXPORT_HEAD");
        return std::string(text == nullptr ? "" : text);
    }();
    return value;
}

// Empty unless it asks for something that there is not.
const std::string & error() {
    static const std::string text =
        wanted().empty() || wanted() == "stock"
            ? ""
            : "BITEXPORT_HEAD is '" + wanted() + "'; expected 'stock' for llama.cpp's own kernels, or nothing for bitexport's";
    return text;
}

const head::Kernels * kernels() {
    static const head::Kernels * const chosen = [] {
        const char * tier = bitexport_tier_name();
        return tier == nullptr ? nullptr : head::kernels_for(tier);
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

// Whatever else a file holds keeps ggml's kernels. A tied embedding bears its own name, also where it is the head; its
// look-up is another operation, which this buffer type does not support, and so has another copy.
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

bool is_ours(const ggml_tensor * weights) {
    return weights != nullptr && weights->buffer != nullptr && weights->buffer->buft == bitexport_head_buffer_type();
}

class HeadTraits : public ggml::cpu::tensor_traits {
  public:
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        const int64_t tokens = ggml_nrows(op->src[1]);
        size = alignof(head::Activations) + token_bytes(op->src[0]->ne[0]) * (tokens == 1 ? n_threads : tokens);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        const Weights       weights{op->src[0]};
        const ggml_tensor * x      = op->src[1];
        const int64_t       tokens = ggml_nrows(x);

        // One token is quantized faster than threads can meet, so that each makes its own copy. More are shared out.
        const bool    own_copy = tokens == 1;
        const int64_t stride   = head::token_blocks(weights.cols());
        auto *        blocks   = aligned(params->wdata) + (own_copy ? params->ith * stride : 0);
        const Share   mine     = own_copy ? Share(tokens, 0, 1) : Share(tokens, params->ith, params->nth);
        for (int64_t token = mine.begin; token < mine.end; ++token) {
            head::quantize(activation_row(x, token), weights.cols(), blocks + token * stride);
        }
        if (!own_copy) {
            ggml_barrier(params->threadpool);
        }
        const Share panels(head::panel_count(weights.rows()), params->ith, params->nth);
        kernels()->matmul(weights.type(), weights.packed(), weights.rows(), weights.cols(), {blocks, tokens},
                          static_cast<float *>(op->data), weights.rows(), panels.begin, panels.end);
        return true;
    }

  private:
    static size_t token_bytes(int64_t cols) {
        return static_cast<size_t>(head::token_blocks(cols)) * sizeof(head::Activations);
    }

    // ggml's work buffer has no alignment to count on.
    static head::Activations * aligned(void * work) {
        constexpr uintptr_t unit = alignof(head::Activations);
        return reinterpret_cast<head::Activations *>((reinterpret_cast<uintptr_t>(work) + unit - 1) / unit * unit);
    }
};

class HeadBufferType : public ggml::cpu::extra_buffer_type {
  public:
    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        if (op->op != GGML_OP_MUL_MAT || !is_ours(op->src[0]) || !is_head(op->src[0])) {
            return false;
        }
        if (!error().empty()) {
            throw std::runtime_error(error());
        }
        const ggml_tensor * weights = op->src[0];
        const ggml_tensor * x       = op->src[1];
        head::Type          type{};
        return type_of(weights, type) && weights->view_src == nullptr && ggml_n_dims(weights) <= 2 &&
               x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && op->type == GGML_TYPE_F32 &&
               (x->buffer == nullptr || ggml_backend_buft_is_host(x->buffer->buft));
    }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        return op->op == GGML_OP_MUL_MAT && is_ours(op->src[0])
                   ? static_cast<ggml::cpu::tensor_traits *>(op->src[0]->extra)
                   : nullptr;
    }
};

enum ggml_status init_tensor(ggml_backend_buffer_t, ggml_tensor * tensor) {
    static HeadTraits traits;
    tensor->extra = static_cast<ggml::cpu::tensor_traits *>(&traits);
    return GGML_STATUS_SUCCESS;
}

void set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    GGML_ASSERT(offset == 0 && size == ggml_nbytes(tensor) && "a head is repacked whole");
    const Weights weights{tensor};
    const int64_t rows = weights.rows(), cols = weights.cols();
    repack_in_threads(head::panel_count(rows), rows * cols, [&](int64_t panel_begin, int64_t panel_end) {
        head::repack(weights.type(), static_cast<const uint8_t *>(data), rows, cols, weights.packed(), panel_begin,
                     panel_end);
    });
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor * tensor, void *, size_t, size_t) {
    GGML_ABORT("bitexport: '%s' was repacked when it was loaded and cannot be read back; read the file, or set "
               "BITEXPORT_HEAD=stock",
               tensor->name);
}

const char * buffer_type_name(ggml_backend_buffer_type_t) {
    return "CPU_HEAD";
}

size_t buffer_type_alignment(ggml_backend_buffer_type_t) {
    return 64;
}

size_t tensor_alloc_size(ggml_backend_buffer_type_t, const ggml_tensor * tensor) {
    head::Type type{};
    return type_of(tensor, type) ? Weights{tensor}.bytes() : ggml_nbytes(tensor);
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer == nullptr) {
        return nullptr;
    }
    ternary::prefer_large_pages(ggml_backend_buffer_get_base(buffer), size);
    buffer->buft              = type;
    buffer->iface.init_tensor = init_tensor;
    buffer->iface.set_tensor  = set_tensor;
    buffer->iface.get_tensor  = get_tensor;
    buffer->iface.cpy_tensor  = nullptr;
    return buffer;
}

}  // namespace

ggml_backend_buffer_type_t bitexport_head_buffer_type(void) {
    static HeadBufferType           context;
    static ggml_backend_buffer_type type = {
        /* .iface   = */ {
            /* .get_name       = */ buffer_type_name,
            /* .alloc_buffer   = */ alloc_buffer,
            /* .get_alignment  = */ buffer_type_alignment,
            /* .get_max_size   = */ nullptr,
            /* .get_alloc_size = */ tensor_alloc_size,
            /* .is_host        = */ nullptr,
        },
        /* .device  = */ ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
        /* .context = */ static_cast<ggml::cpu::extra_buffer_type *>(&context),
    };
    return kernels() == nullptr || wanted() == "stock" ? nullptr : &type;
}

const char * bitexport_head_error(void) {
    return error().empty() ? nullptr : error().c_str();
}
