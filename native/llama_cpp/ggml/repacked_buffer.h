// The base of our CPU buffer types: memory for weights that are repacked as they are loaded, multiplied by our kernels and
// never read back. Each kind of weight is a class derived from RepackedBufferType.
#pragma once

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "ternary/ternary.h"
#include "traits.h"

// One object for each kind, which lives as long as the process: ggml holds pointers to it.
class RepackedBufferType : public ggml::cpu::extra_buffer_type {
  public:
    // ggml's handle for it.
    ggml_backend_buffer_type_t type() { return &type_; }

    // True if the tensor is in this kind of buffer.
    bool holds(const ggml_tensor * tensor) const {
        return tensor != nullptr && tensor->buffer != nullptr && tensor->buffer->buft == &type_;
    }

    // True if the tensor, or what it is a view of, is in a buffer of any of our kinds: nothing else can read its bytes.
    static bool repacked(const ggml_tensor * tensor) {
        return tensor != nullptr && tensor->buffer != nullptr && tensor->buffer->iface.set_tensor == set_tensor;
    }

    // A matrix product of float32 activations with a complete matrix of ours, or with the matrices of some experts, all in
    // memory that we can read.
    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        if (!multiplies(op) || !accepts(op->src[0])) {
            return false;
        }
        const ggml_tensor * x = op->src[1];
        return x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && op->type == GGML_TYPE_F32 && readable(x) &&
               (op->src[2] == nullptr || readable(op->src[2]));
    }

    // Only for operations that the traits compute: a view of repacked weights would start in the wrong place.
    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        return multiplies(op) ? static_cast<ggml::cpu::tensor_traits *>(op->src[0]->extra) : nullptr;
    }

  protected:
    // `advice` ends the message of an attempt to read a tensor back.
    RepackedBufferType(const char * name, const char * advice)
        : name_(name), advice_(advice),
          type_{
              /* .iface   = */ {
                  /* .get_name       = */ [](ggml_backend_buffer_type_t type) { return of(type).name_; },
                  /* .alloc_buffer   = */ alloc_buffer,
                  /* .get_alignment  = */ [](ggml_backend_buffer_type_t) -> size_t { return 64; },
                  /* .get_max_size   = */ nullptr,
                  /* .get_alloc_size = */ alloc_size,
                  /* .is_host        = */ nullptr,
              },
              /* .device  = */ ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
              /* .context = */ static_cast<ggml::cpu::extra_buffer_type *>(this),
          } {}

  private:
    // Whether these weights, which llama.cpp offers, are of the kind that the kernels multiply.
    virtual bool accepts(const ggml_tensor * weights) const = 0;

    // Whether the traits also compute GGML_OP_MUL_MAT_ID (experts.h), with a matrix for each expert.
    virtual bool accepts_experts() const { return false; }

    // Bytes of a tensor of this kind once it is repacked; of any other, its bytes in the file.
    virtual size_t bytes(const ggml_tensor * tensor) const = 0;

    // Repacks the tensor's bytes, as in the file, into tensor->data. Throws std::runtime_error if they are damaged.
    virtual void repack(const ggml_tensor * tensor, const void * data) const = 0;

    // Computes a product with a tensor of this kind.
    virtual ggml::cpu::tensor_traits & traits() = 0;

    // Whether the operation multiplies by a complete tensor of ours, of as many dimensions as the traits expect.
    bool multiplies(const ggml_tensor * op) const {
        const ggml_tensor * weights = op->src[0];
        return holds(weights) && weights->view_src == nullptr &&
               ((op->op == GGML_OP_MUL_MAT && ggml_n_dims(weights) <= 2) ||
                (op->op == GGML_OP_MUL_MAT_ID && ggml_n_dims(weights) <= 3 && accepts_experts()));
    }

    static bool readable(const ggml_tensor * tensor) {
        return tensor->buffer == nullptr || ggml_backend_buft_is_host(tensor->buffer->buft);
    }

    static RepackedBufferType & of(ggml_backend_buffer_type_t type) {
        return *static_cast<RepackedBufferType *>(static_cast<ggml::cpu::extra_buffer_type *>(type->context));
    }

    static size_t alloc_size(ggml_backend_buffer_type_t type, const ggml_tensor * tensor) { return of(type).bytes(tensor); }

    static ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
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

    static enum ggml_status init_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor) {
        tensor->extra = &of(buffer->buft).traits();
        return GGML_STATUS_SUCCESS;
    }

    static void set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
        GGML_ASSERT(offset == 0 && size == ggml_nbytes(tensor) && "weights are repacked whole");
        of(buffer->buft).repack(tensor, data);
    }

    static void get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * tensor, void *, size_t, size_t) {
        GGML_ABORT("bitexport: '%s' was repacked when it was loaded and cannot be read back; %s", tensor->name,
                   of(buffer->buft).advice_);
    }

    const char *             name_;
    const char *             advice_;
    ggml_backend_buffer_type type_;
};
