#include "client.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "ggml-rpc.h"
#include "sockets.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>

namespace bitexport {

namespace {

struct known_worker {
    description                             said;
    std::vector<ggml_backend_buffer_type_t> own;      // for each of its types: ours of the same name, or nullptr
    std::vector<ggml_backend_buffer_type_t> offered;  // the RPC backend's types for those that we have; then nullptr
};

// Never freed, as ggml keeps pointers to what is in them.
std::mutex & mutex() {
    static auto * one = new std::mutex;
    return *one;
}
std::map<std::string, known_worker> & workers() {
    static auto * all = new std::map<std::string, known_worker>;
    return *all;
}
std::map<std::string, std::shared_ptr<void>> & held() {
    static auto * all = new std::map<std::string, std::shared_ptr<void>>;
    return *all;
}

std::mutex                         failure_mutex;
std::map<std::string, std::string> failures;  // by address

void report(const std::string & address, const std::string & message) {
    std::lock_guard<std::mutex> lock(failure_mutex);
    failures.emplace(address, message);
}

void forget(const std::string & address) {
    std::lock_guard<std::mutex> lock(failure_mutex);
    failures.erase(address);
}

ggml_backend_dev_t cpu() {
    return ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
}

// What decides which weights one of ggml's own types accepts: the instructions of this CPU.
std::string features() {
    const auto find = reinterpret_cast<ggml_backend_get_features_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_cpu_reg(), "ggml_backend_get_features"));
    std::string result;
    for (const ggml_backend_feature * each = find(ggml_backend_cpu_reg()); each->name != nullptr; ++each) {
        result += std::string(each->name) + "=" + each->value + " ";
    }
    return result;
}

std::string digest(const std::string & text) {
    uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
    for (const unsigned char byte : text) {
        hash = (hash ^ byte) * 0x100000001b3u;
    }
    char digits[17];
    std::snprintf(digits, sizeof(digits), "%016llx", static_cast<unsigned long long>(hash));
    return digits;
}

// Ours accept the same weights on every machine.
bool is_ours(const std::string & name) {
    return name == "CPU_TERNARY" || name == "CPU_HEAD" || name == "CPU_GROUPED";
}

std::vector<own_type> find_own_types() {
    const auto find = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_cpu_reg(), "ggml_backend_dev_get_extra_bufts"));
    std::vector<own_type> result;
    for (ggml_backend_buffer_type_t * each = find(cpu()); *each != nullptr; ++each) {
        const std::string name = ggml_backend_buft_name(*each);
        result.push_back({is_ours(name) ? name : name + " " + digest(features()), *each});
    }
    return result;
}

// Our type in place of a worker's; nullptr for its ordinary one.
ggml_backend_buffer_type_t own_in_place_of(ggml_backend_buffer_type_t type) {
    std::string address;
    uint32_t    number = 0;
    if (!find_type(type, address, number) || type_of(number) == 0) {
        return nullptr;
    }
    std::lock_guard<std::mutex> lock(mutex());
    return workers().at(address).own.at(type_of(number) - 1);
}

}  // namespace

const std::vector<own_type> & own_types() {
    static const std::vector<own_type> types = find_own_types();
    return types;
}

void remember(const std::string & address, const description & said) {
    known_worker worker{said, {}, {}};
    for (uint32_t index = 0; index < std::min<size_t>(said.types, description::most_types); ++index) {
        const std::string name(said.names[index], strnlen(said.names[index], sizeof(said.names[index])));
        const auto &      types = own_types();
        const auto found = std::find_if(types.begin(), types.end(), [&](const own_type & each) { return each.name == name; });
        worker.own.push_back(found == types.end() ? nullptr : found->type);
    }
    std::lock_guard<std::mutex> lock(mutex());
    workers()[address] = worker;
}

ggml_backend_buffer_type_t * repacked_types(const std::string & address) {
    const std::shared_ptr<void>             connected = connect(address);
    std::vector<ggml_backend_buffer_type_t> offered;
    size_t                                  types = 0;
    {
        std::lock_guard<std::mutex> lock(mutex());
        types = workers().at(address).own.size();
    }
    for (uint32_t index = 0; index < types; ++index) {
        bool have = false;
        {
            std::lock_guard<std::mutex> lock(mutex());
            have = workers().at(address).own[index] != nullptr;
        }
        if (have) {
            offered.push_back(ggml_backend_rpc_buffer_type(address.c_str(), (index + 1) << types_begin));
        }
    }
    offered.push_back(nullptr);
    std::lock_guard<std::mutex> lock(mutex());
    workers().at(address).offered = offered;
    return workers().at(address).offered.data();
}

bool is_repacked(ggml_backend_buffer_type_t type) {
    std::string address;
    uint32_t    number = 0;
    return find_type(type, address, number) && type_of(number) != 0;
}

bool supports(const ggml_tensor * op) {
    ggml_tensor         copy = *op;
    ggml_tensor         sources[GGML_MAX_SRC];
    ggml_backend_buffer buffers[GGML_MAX_SRC] = {};
    copy.buffer = nullptr;
    for (int index = 0; index < GGML_MAX_SRC; ++index) {
        if (op->src[index] == nullptr) {
            continue;
        }
        sources[index]  = *op->src[index];
        copy.src[index] = &sources[index];
        const ggml_backend_buffer_t remote = sources[index].buffer;
        buffers[index].buft    = remote == nullptr ? nullptr : own_in_place_of(remote->buft);
        sources[index].buffer  = buffers[index].buft == nullptr ? nullptr : &buffers[index];
    }
    return ggml_backend_dev_supports_op(cpu(), &copy);
}

void connection::open(const std::string & address, const std::function<void()> & greet) {
    address_ = address;
    try {
        greet();
    } catch (const std::runtime_error & error) {
        const std::string message = "worker " + address + " " + error.what();
        report(address, message);
        throw std::invalid_argument(message);
    }
}

void connection::note(bool done, int socket) {
    if (done) {
        return;
    }
    collect_farewell(socket);
    const std::string message = "worker " + address_ + " " + last_words();
    {
        std::lock_guard<std::mutex> lock(mutex_);
        message_ = message;
    }
    report(address_, message);
    hang_up(socket);
}

bool connection::lost() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return !message_.empty();
}

void connection::check() const {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!message_.empty()) {
        throw std::runtime_error(message_);
    }
}

void without_throwing(const std::function<void()> & run) {
    try {
        run();
    } catch (const std::exception & error) {
        GGML_LOG_DEBUG("%s\n", error.what());
    }
}

}  // namespace bitexport

ggml_backend_dev_t bitexport_connect(const char * address) {
    bitexport::forget(address);
    try {
        std::shared_ptr<void>    connected = bitexport::connect(address);
        const ggml_backend_reg_t added     = ggml_backend_rpc_add_server(address);
        std::lock_guard<std::mutex> lock(bitexport::mutex());
        bitexport::held()[address] = connected;
        return ggml_backend_reg_dev_get(added, 0);
    } catch (const std::exception & error) {
        bitexport::report(address, error.what());
        return nullptr;
    }
}

void bitexport_disconnect(const char * address) {
    std::shared_ptr<void> ended;  // outside of the lock
    std::lock_guard<std::mutex> lock(bitexport::mutex());
    const auto found = bitexport::held().find(address);
    if (found != bitexport::held().end()) {
        ended = std::move(found->second);
        bitexport::held().erase(found);
    }
}

bool bitexport_describe_worker(const char * address, uint32_t * threads, char * tier, size_t tier_size, size_t * free,
                               size_t * total) {
    try {
        const std::shared_ptr<void> connected = bitexport::connect(address);
        ggml_backend_rpc_get_device_memory(address, 0, free, total);
        std::lock_guard<std::mutex> lock(bitexport::mutex());
        const bitexport::description & said = bitexport::workers().at(address).said;
        *threads                            = said.threads;
        std::snprintf(tier, tier_size, "%.*s", static_cast<int>(sizeof(said.tier)), said.tier);
        return true;
    } catch (const std::exception & error) {
        bitexport::report(address, error.what());
        return false;
    }
}

const char * bitexport_worker_failure(const char * address) {
    thread_local std::string copy;
    std::lock_guard<std::mutex> lock(bitexport::failure_mutex);
    const auto found = address == nullptr ? bitexport::failures.begin() : bitexport::failures.find(address);
    if (found == bitexport::failures.end()) {
        return nullptr;
    }
    copy = found->second;
    return copy.c_str();
}

const char * bitexport_identity(void) {
    static const std::string identity = [] {
        uint8_t bytes[bitexport::identity_bytes];
        bitexport::put_identity(bytes);
        return bitexport::identity_of(bytes);
    }();
    return identity.c_str();
}
