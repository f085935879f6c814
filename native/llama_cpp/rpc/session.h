// A worker's side of one client: its memory, its graphs, and what the RPC backend does not know about repacked weights.
#pragma once

#include "client.h"
#include "ggml-backend.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

struct socket_t;

namespace bitexport {

// The type that a client's number stands for. Throws std::runtime_error if there is none.
ggml_backend_buffer_type_t buffer_type(ggml_backend_t backend, uint32_t number);

description describe(ggml_backend_t backend);

// The memory that clients may use, and what is free of it. Throws std::runtime_error instead of exceeding it.
ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t size);
void                  release(ggml_backend_buffer_t buffer);
void                  memory(size_t & free, size_t & total);

// A tensor arrives without what its buffer type adds to it when it is allocated.
void restore_extra(ggml_tensor * tensor);

// The bytes in the buffer that change when `size` bytes are stored in a tensor from `offset` on. Throws std::runtime_error if a
// part of a repacked one is to be stored.
size_t bytes_written(const ggml_tensor * tensor, size_t offset, size_t size);

// Throws std::runtime_error if the graph cannot be computed.
void compute(ggml_backend_t backend, ggml_cgraph * graph);

// Answers a client until it leaves; implemented in ggml-rpc.cpp. Throws std::runtime_error if a request cannot be carried out.
void answer(const std::vector<ggml_backend_t> & backends, const std::shared_ptr<socket_t> & client);

// The same with everything around it: assertions become errors, and the client is told why it ends. Returns the reason, or ""
// if the client left. It also ends once something can be read from `wake`.
std::string serve_client(ggml_backend_t backend, int socket, int wake);

// Limits of this process, before the first client.
void set_limits(uint32_t threads, size_t memory);

// Makes compute give up, and no longer do so.
void interrupt(bool stop);

}  // namespace bitexport
