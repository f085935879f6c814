#include "model_checks.h"

#include "ggml-backend.h"
#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <stdexcept>
#include <string>

namespace {

constexpr const char * advice = "; the file is damaged: convert or download it again";

bool is_integer(ggml_type type) {
    return type == GGML_TYPE_I8 || type == GGML_TYPE_I16 || type == GGML_TYPE_I32 || type == GGML_TYPE_I64;
}

// Types of activations and of indices, with which ggml has no product.
bool is_weight(ggml_type type) {
    return !is_integer(type) && type != GGML_TYPE_F64 && type != GGML_TYPE_Q8_1 && type != GGML_TYPE_Q8_K;
}

bool is_vector(const ggml_tensor * tensor) {
    return ggml_n_dims(tensor) == 1;
}

[[noreturn]] void refuse(const ggml_tensor * tensor, const std::string & expected) {
    throw std::runtime_error("tensor '" + std::string(ggml_get_name(tensor)) + "' has type " + ggml_type_name(tensor->type) +
                             "; expected " + expected + advice);
}

void check_number(const std::string & key, double value, bool valid, const std::string & expected) {
    if (!valid) {
        throw std::runtime_error(key + " is " + (std::isfinite(value) && value == std::floor(value)
                                                     ? std::to_string(static_cast<int64_t>(value))
                                                     : std::to_string(value)) +
                                 "; expected " + expected + advice);
    }
}

thread_local bool     assertions_are_errors = false;
ggml_abort_callback_t earlier_callback      = nullptr;

void on_abort(const char * message) {
    if (assertions_are_errors) {
        throw std::runtime_error(message);
    }
    if (earlier_callback != nullptr) {
        earlier_callback(message);
        return;
    }
    std::fprintf(stderr, "llama.cpp ends the process: %s\n", message);
}

}  // namespace

void bitexport_check_tensor(const ggml_tensor * tensor, ggml_op op) {
    if (ggml_nelements(tensor) == 0) {
        throw std::runtime_error("tensor '" + std::string(ggml_get_name(tensor)) + "' is empty" + advice);
    }
    switch (op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID:
            if (!is_weight(tensor->type)) {
                refuse(tensor, "a weight type, such as f16 or q6_k");
            }
            break;
        case GGML_OP_GET_ROWS:
            // tables of indices are i32
            if (tensor->type != GGML_TYPE_I32 && (!is_weight(tensor->type) || tensor->type == GGML_TYPE_I2_S)) {
                refuse(tensor, "a type for lookups, such as f16 or q6_k");
            }
            if (tensor->type == GGML_TYPE_I32 && std::string(ggml_get_name(tensor)) == "token_embd.weight") {
                refuse(tensor, "a type for lookups, such as f16 or q6_k");
            }
            break;
        case GGML_OP_MUL:
        case GGML_OP_ADD:
        case GGML_OP_ADD_ID:
        case GGML_OP_DIV:
        case GGML_OP_ROPE:
        case GGML_OP_SSM_SCAN:
            if (is_vector(tensor) ? tensor->type != GGML_TYPE_F32
                                  : is_integer(tensor->type) || ggml_is_quantized(tensor->type)) {
                refuse(tensor, is_vector(tensor) ? "f32, the type of gains and biases" : "f32 or f16");
            }
            break;
        default:
            break;
    }
}

void bitexport_check_numbers(llama_model_loader & loader, const llama_hparams & hparams) {
    for (const llm_kv key : {LLM_KV_ATTENTION_LAYERNORM_EPS, LLM_KV_ATTENTION_LAYERNORM_RMS_EPS}) {
        float epsilon = 0;
        if (loader.get_key(key, epsilon, false)) {
            check_number(loader.llm_kv(key), epsilon, std::isfinite(epsilon) && epsilon >= 0, "a small positive number");
        }
    }
    if (hparams.rope_type == LLAMA_ROPE_TYPE_NONE) {
        return;
    }
    if ((hparams.rope_type & LLAMA_ROPE_TYPE_MROPE) != 0) {
        const int most = *std::max_element(hparams.rope_sections.begin(), hparams.rope_sections.begin() + 3);
        check_number(loader.llm_kv(LLM_KV_ROPE_DIMENSION_SECTIONS), most, most > 0, "a section of more than 0");
    }
    for (uint32_t layer = 0; layer < hparams.n_layer(); ++layer) {
        if (hparams.n_head(layer) == 0) {
            continue;
        }
        const uint32_t rotated = hparams.n_rot(layer);
        const uint32_t head    = hparams.n_embd_head_k(layer);
        check_number(loader.llm_kv(LLM_KV_ROPE_DIMENSION_COUNT), rotated, rotated % 2 == 0 && rotated <= head,
                     "an even number up to the head size of " + std::to_string(head));
    }
}

bool bitexport_can_be_mapped(const llama_model_loader & loader) {
    const size_t alignment = ggml_backend_buft_get_alignment(ggml_backend_cpu_buffer_type());
    for (const auto & entry : loader.weights_map) {
        if (entry.second.offs % alignment != 0) {
            return false;
        }
    }
    return true;
}

bitexport_assertions_as_errors::bitexport_assertions_as_errors() : before_(assertions_are_errors) {
    static std::once_flag installed;
    std::call_once(installed, [] { earlier_callback = ggml_set_abort_callback(on_abort); });
    assertions_are_errors = true;
}

bitexport_assertions_as_errors::~bitexport_assertions_as_errors() {
    assertions_are_errors = before_;
}

bitexport_assertions_as_usual::bitexport_assertions_as_usual() : before_(assertions_are_errors) {
    assertions_are_errors = false;
}

bitexport_assertions_as_usual::~bitexport_assertions_as_usual() {
    assertions_are_errors = before_;
}

int bitexport_log_exception(const std::exception & error) {
    constexpr int fatal = -3;
    LLAMA_LOG_ERROR("%s: %s\n", __func__, error.what());
    return fatal;
}
