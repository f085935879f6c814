// The side that has the file and asks workers for help.
#pragma once

#include "ggml-backend.h"
#include "greeting.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace bitexport {

// What a worker says about itself. Its CPU has buffer types beside the ordinary one, for weights that it repacks; types that
// accept the same weights on both machines have the same name here.
struct description {
    static constexpr size_t most_types = 16;
    uint32_t threads;
    uint32_t types;
    char     tier[64];
    char     names[most_types][64];
};

// On the wire, a device's number says which type is meant, too: 0 for the ordinary one, or the index of its name and 1.
constexpr uint32_t types_begin = 16;
constexpr uint32_t device_of(uint32_t number) { return number & ((1u << types_begin) - 1); }
constexpr uint32_t type_of(uint32_t number) { return number >> types_begin; }

// The names of this machine's types, in ggml's order, and the types themselves.
struct own_type {
    std::string                name;
    ggml_backend_buffer_type_t type;
};
const std::vector<own_type> & own_types();

// Keeps what the worker at an address says about itself.
void remember(const std::string & address, const description & said);

// Buffer types of the worker's device for repacked weights, ended by a null pointer: those that this machine has as well, and
// so knows what they accept.
ggml_backend_buffer_type_t * repacked_types(const std::string & address);

bool is_repacked(ggml_backend_buffer_type_t type);

// Whether a worker can compute the operation: whether this machine could, if it had the same data.
bool supports(const ggml_tensor * op);

// The address and the number of one of the RPC backend's buffer types; false if it is none.
bool find_type(ggml_backend_buffer_type_t type, std::string & address, uint32_t & number);

// Connects to the worker, or finds the connection; it lasts as long as somebody holds it. Throws std::invalid_argument.
std::shared_ptr<void> connect(const std::string & address);

// The state of one connection.
class connection {
  public:
    // Calls `greet`, which throws std::runtime_error with a message that continues "worker HOST:PORT ...". Throws
    // std::invalid_argument with all of it.
    void open(const std::string & address, const std::function<void()> & greet);

    // Called after each exchange, in the thread that did it. Ends the connection if it failed.
    void note(bool done, int socket);

    bool lost() const;

    // Throws std::runtime_error if the connection is lost.
    void check() const;

  private:
    std::string        address_;
    mutable std::mutex mutex_;
    std::string        message_;  // why it is lost
};

// For functions that must not throw: a lost connection is reported by whatever comes next.
void without_throwing(const std::function<void()> & run);

}  // namespace bitexport

extern "C" {

// Connects to a worker, HOST:PORT, and stays connected until bitexport_disconnect. Returns its device; NULL if it cannot be
// used, and bitexport_worker_failure says why.
GGML_BACKEND_API ggml_backend_dev_t bitexport_connect(const char * address);
GGML_BACKEND_API void               bitexport_disconnect(const char * address);

// What a connected worker says about itself; false if it is lost.
GGML_BACKEND_API bool bitexport_describe_worker(const char * address, uint32_t * threads, char * tier, size_t tier_size,
                                                size_t * free, size_t * total);

// Why the worker at an address, or NULL for any, failed first since bitexport_connect; NULL if it did not. Valid until the next
// call in this thread.
GGML_BACKEND_API const char * bitexport_worker_failure(const char * address);

// The version of this program as workers see it.
GGML_BACKEND_API const char * bitexport_identity(void);

}  // extern "C"
