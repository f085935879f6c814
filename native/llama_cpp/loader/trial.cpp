#include "trial.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <vector>

namespace {

// Spaces, digits, other scripts, an emoji of several characters, control characters and bytes that are not UTF-8.
constexpr const char * texts[] = {
    "Hello, world!\n\n  1234567 it's\tHERE",
    "\xd0\xa1\xd1\x8a\xd0\xb5\xd1\x88\xd1\x8c \xe6\x95\x8f\xe6\x8d\xb7 \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7",
    "\x01\x7f\xff\xc3(",
    "",
};

constexpr int n_tokens = 8;

// The level of the message that a GGML_LOG_LEVEL_CONT continues.
ggml_log_level last_level = GGML_LOG_LEVEL_NONE;

void print_errors(ggml_log_level level, const char * text, void *) {
    if (level != GGML_LOG_LEVEL_CONT) {
        last_level = level;
    }
    if (last_level == GGML_LOG_LEVEL_ERROR) {
        std::fputs(text, stderr);
    }
}

void try_vocabulary(const llama_vocab * vocab) {
    std::vector<char> piece(64);
    for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); ++token) {
        for (const bool special : {false, true}) {
            const int32_t size = llama_token_to_piece(vocab, token, piece.data(), int32_t(piece.size()), 0, special);
            if (size < 0) {
                piece.resize(size_t(-int64_t(size)));
                llama_token_to_piece(vocab, token, piece.data(), int32_t(piece.size()), 0, special);
            }
        }
    }
    std::vector<llama_token> ids(256);
    for (const char * text : texts) {
        for (const bool special : {false, true}) {
            llama_tokenize(vocab, text, int32_t(std::strlen(text)), ids.data(), int32_t(ids.size()), special, special);
        }
    }
}

bool try_context(llama_model * model, llama_context_params params) {
    params.n_ctx   = 64;
    params.n_batch = params.n_ubatch = n_tokens;
    using context_ptr = std::unique_ptr<llama_context, decltype(&llama_free)>;
    context_ptr context(llama_init_from_model(model, params), llama_free);
    if (context && llama_pooling_type(context.get()) > LLAMA_POOLING_TYPE_NONE) {
        params.embeddings = true;
        context.reset(llama_init_from_model(model, params));
    }
    if (!context) {
        return false;
    }
    const int32_t            known = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::vector<llama_token> ids(n_tokens);
    for (int i = 0; i < n_tokens; ++i) {
        ids[i] = i % std::max(known, 1);
    }
    const bool encodes = llama_model_has_encoder(model);
    if (encodes && llama_encode(context.get(), llama_batch_get_one(ids.data(), n_tokens)) != 0) {
        return false;
    }
    if (encodes && !llama_model_has_decoder(model)) {
        return true;
    }
    // a batch, and a single token after it, which have graphs of their own
    return llama_decode(context.get(), llama_batch_get_one(ids.data(), n_tokens)) == 0 &&
           llama_decode(context.get(), llama_batch_get_one(ids.data(), 1)) == 0;
}

bool try_contexts(llama_model * model, int n_threads) {
    llama_context_params params = llama_context_default_params();
    params.n_threads = params.n_threads_batch = n_threads;
    if (!try_context(model, params)) {
        return false;
    }
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type        = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    return try_context(model, params);
}

}  // namespace

int bitexport_try_model(const char * path, int n_threads, bool vocab_only) {
    llama_log_set(print_errors, nullptr);
    llama_backend_init();
    llama_model_params params = llama_model_default_params();
    params.vocab_only         = vocab_only;
    try {
        const std::unique_ptr<llama_model, decltype(&llama_model_free)> model(llama_model_load_from_file(path, params),
                                                                              llama_model_free);
        if (!model) {
            return 1;
        }
        try_vocabulary(llama_model_get_vocab(model.get()));
        return vocab_only || try_contexts(model.get(), n_threads) ? 0 : 1;
    } catch (const std::exception & error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
