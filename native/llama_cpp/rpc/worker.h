// A worker: computes for one client at a time, over llama.cpp's RPC protocol. It trusts its clients as it trusts itself.
#pragma once

#include "ggml-backend.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct bitexport_worker;

// What happened: a client ("HOST:PORT") was connected, left, was refused or was dropped, the last two for a reason.
typedef void (*bitexport_worker_event)(const char * what, const char * client, const char * reason);

// Listens on an IPv4 address or a name; port 0 stands for any free one. `memory` in bytes is the limit for what clients store.
// Returns NULL with a message in `error`. Only one worker in a process.
GGML_BACKEND_API struct bitexport_worker * bitexport_worker_open(const char * host, int port, int threads, size_t memory,
                                                                 char * error, size_t error_size);

GGML_BACKEND_API int bitexport_worker_port(const struct bitexport_worker * worker);

// Serves clients until bitexport_worker_stop is called. `event` is called in other threads.
GGML_BACKEND_API void bitexport_worker_serve(struct bitexport_worker * worker, bitexport_worker_event event);

// Tells the client, if there is one, and ends bitexport_worker_serve; from any thread, once or more.
GGML_BACKEND_API void bitexport_worker_stop(struct bitexport_worker * worker);

// Frees a worker that does not serve.
GGML_BACKEND_API void bitexport_worker_close(struct bitexport_worker * worker);

#ifdef __cplusplus
}
#endif
