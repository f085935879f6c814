// Refuses models that would end the process, when they are loaded rather than when they run.
#pragma once

#include "ggml.h"

#include <exception>

struct llama_hparams;
struct llama_model_loader;

// Throws std::runtime_error unless ggml's CPU code can use a tensor for the operation that its name stands for
// (LLM_TENSOR_INFOS in llama-arch.cpp). ggml itself finds out in a worker thread, and aborts.
void bitexport_check_tensor(const ggml_tensor * tensor, ggml_op op);

// Throws std::runtime_error if RoPE would rotate an odd number of values, or more than a head has, or by positions with
// sections of which all are empty; or if an epsilon is negative or not finite.
void bitexport_check_numbers(llama_model_loader & loader, const llama_hparams & hparams);

// Whether all tensors of a file start where ggml's CPU buffers may point to. If not (a file with a general.alignment below
// 32), the file is read instead of mapped.
bool bitexport_can_be_mapped(const llama_model_loader & loader);

// While one of these exists, a failed GGML_ASSERT or a GGML_ABORT in this thread throws std::runtime_error with ggml's
// message. Elsewhere, which includes ggml's own threads, it ends the process as usual.
class bitexport_assertions_as_errors {
  public:
    bitexport_assertions_as_errors();
    ~bitexport_assertions_as_errors();
    bitexport_assertions_as_errors(const bitexport_assertions_as_errors &)             = delete;
    bitexport_assertions_as_errors & operator=(const bitexport_assertions_as_errors &) = delete;

  private:
    bool before_;
};

// While one of these exists, assertions end the process again: around what this thread computes together with ggml's own,
// which would wait forever for it.
class bitexport_assertions_as_usual {
  public:
    bitexport_assertions_as_usual();
    ~bitexport_assertions_as_usual();
    bitexport_assertions_as_usual(const bitexport_assertions_as_usual &)             = delete;
    bitexport_assertions_as_usual & operator=(const bitexport_assertions_as_usual &) = delete;

  private:
    bool before_;
};

// Logs an exception of llama_decode or llama_encode, for a caller in C. Returns their code for a fatal error.
int bitexport_log_exception(const std::exception & error);

// Calls `run`, which returns the code of llama_decode or llama_encode, with assertions as errors.
template <typename Run> int bitexport_guarded(const Run & run) {
    try {
        const bitexport_assertions_as_errors guard;
        return run();
    } catch (const std::exception & error) {
        return bitexport_log_exception(error);
    }
}
