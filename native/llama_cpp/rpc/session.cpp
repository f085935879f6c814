#include "session.h"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "sockets.h"
#include "ternary_buffer.h"
#include "transport.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>

namespace bitexport {

namespace {

std::atomic<size_t>   memory_limit{SIZE_MAX};
std::atomic<size_t>   memory_used{0};
std::atomic<uint32_t> thread_count{1};
std::atomic<bool>     interrupted{false};

std::string gib(size_t bytes) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.2f GiB", static_cast<double>(bytes) / (1u << 30));
    return text;
}

// A failed assertion of ggml in the thread that serves a client is the client's failure, as long as that thread does not compute
// together with others, which would wait for it forever.
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
    std::fprintf(stderr, "the worker ends: %s\n", message);
}

class assertions {
  public:
    explicit assertions(bool errors) : before_(assertions_are_errors) {
        static std::once_flag installed;
        std::call_once(installed, [] { earlier_callback = ggml_set_abort_callback(on_abort); });
        assertions_are_errors = errors;
    }
    ~assertions() { assertions_are_errors = before_; }
    assertions(const assertions &)             = delete;
    assertions & operator=(const assertions &) = delete;

  private:
    bool before_;
};

}  // namespace

ggml_backend_buffer_type_t buffer_type(ggml_backend_t backend, uint32_t number) {
    const uint32_t type = type_of(number);
    if (type > own_types().size()) {
        throw std::runtime_error("does not have the buffer type " + std::to_string(type));
    }
    return type == 0 ? ggml_backend_get_default_buffer_type(backend) : own_types()[type - 1].type;
}

description describe(ggml_backend_t) {
    description said = {};
    said.threads     = thread_count;
    said.types       = static_cast<uint32_t>(std::min(own_types().size(), description::most_types));
    const char * tier = bitexport_tier_name();
    std::snprintf(said.tier, sizeof(said.tier), "%s", tier == nullptr ? "none" : tier);
    for (uint32_t index = 0; index < said.types; ++index) {
        std::snprintf(said.names[index], sizeof(said.names[index]), "%s", own_types()[index].name.c_str());
    }
    return said;
}

ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t size) {
    const size_t limit = memory_limit, used = memory_used;
    if (size > limit - std::min(used, limit)) {
        throw std::runtime_error("may use " + gib(limit) + " of memory, of which " + gib(used) + " are taken, and " + gib(size) +
                                 " more are needed; give it more with --memory, or use more workers");
    }
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(type, size);
    if (buffer == nullptr) {
        throw std::runtime_error("has no memory for another " + gib(size) + "; close other programs there, or use more workers");
    }
    memory_used += ggml_backend_buffer_get_size(buffer);
    return buffer;
}

void release(ggml_backend_buffer_t buffer) {
    memory_used -= ggml_backend_buffer_get_size(buffer);
    ggml_backend_buffer_free(buffer);
}

void memory(size_t & free, size_t & total) {
    total = memory_limit;
    free  = total - std::min<size_t>(memory_used, total);
}

void restore_extra(ggml_tensor * tensor) {
    const ggml_backend_buffer_t buffer = tensor->buffer;
    if (buffer != nullptr && !ggml_backend_buft_is_host(buffer->buft) && buffer->iface.init_tensor != nullptr) {
        buffer->iface.init_tensor(buffer, tensor);
    }
}

size_t bytes_written(const ggml_tensor * tensor, size_t offset, size_t size) {
    if (ggml_backend_buft_is_host(tensor->buffer->buft)) {
        return size;
    }
    if (offset != 0 || size != ggml_nbytes(tensor)) {
        throw std::runtime_error(std::string("was sent a part of '") + tensor->name + "', which is repacked whole");
    }
    return ggml_backend_buft_get_alloc_size(tensor->buffer->buft, tensor);
}

void compute(ggml_backend_t backend, ggml_cgraph * graph) {
    const assertions  as_usual(false);
    const ggml_status status = ggml_backend_graph_compute(backend, graph);
    if (status == GGML_STATUS_ABORTED) {
        throw std::runtime_error("was stopped; start it again with `bitexport worker`, then this command");
    }
    if (status != GGML_STATUS_SUCCESS) {
        throw std::runtime_error(std::string("could not compute: ") + ggml_status_to_string(status));
    }
}

std::string serve_client(ggml_backend_t backend, int socket, int wake) {
    const std::shared_ptr<socket_t> client = socket_t::bitexport_adopt(socket);
    memory_used                            = 0;
    std::string reason;
    wake_by(wake);
    try {
        const assertions as_errors(true);
        answer({backend}, client);
    } catch (const std::exception & error) {
        reason = error.what();
    }
    if (reason.empty() && interrupted) {
        reason = "was stopped; start it again with `bitexport worker`, then this command";
    }
    if (!reason.empty()) {
        say_farewell(socket, reason);
    }
    return reason;
}

void set_limits(uint32_t threads, size_t memory) {
    thread_count = threads;
    memory_limit = memory;
}

void interrupt(bool stop) {
    interrupted = stop;
}

}  // namespace bitexport
