// Refuses models that would end the process, when they are loaded rather than when they run.
#pragma once

#include "ggml.h"

struct llama_hparams;
struct llama_model_loader;

// Throws std::runtime_error unless ggml's CPU code can use a tensor for the operation that its name stands for
// (LLM_TENSOR_INFOS in llama-arch.cpp). ggml itself finds out in a worker thread, and aborts.
void bitexport_check_tensor(const ggml_tensor * tensor, ggml_op op);

// Throws std::runtime_error if RoPE would rotate an odd number of values, or more than a head has; or if an epsilon is
// negative or not finite. `rotates` is whether the architecture uses RoPE.
void bitexport_check_numbers(llama_model_loader & loader, const llama_hparams & hparams, bool rotates);

// Whether all tensors of a file start where ggml's CPU buffers may point to. If not (a file with a general.alignment below
// 32), the file is read instead of mapped.
bool bitexport_can_be_mapped(const llama_model_loader & loader);

// While one of these exists, a failed GGML_ASSERT or a GGML_ABORT in this thread throws std::runtime_error with ggml's
// message. Elsewhere, which includes ggml's own threads, it ends the process as usual. It must not surround anything that
// ggml's threads compute: they would wait forever for the one that left.
class bitexport_assertions_as_errors {
  public:
    bitexport_assertions_as_errors();
    ~bitexport_assertions_as_errors();
    bitexport_assertions_as_errors(const bitexport_assertions_as_errors &)             = delete;
    bitexport_assertions_as_errors & operator=(const bitexport_assertions_as_errors &) = delete;
};
