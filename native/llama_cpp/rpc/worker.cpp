#include "worker.h"

#include "ggml-cpu.h"
#include "ggml-rpc.h"
#include "greeting.h"
#include "session.h"
#include "sockets.h"
#include "threads.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

namespace {

// A program that loads another model leaves and comes back at once.
constexpr auto patience = std::chrono::seconds(2);

std::atomic<bool> exists{false};

}  // namespace

struct bitexport_worker {
    bitexport_worker(const char * host, int port, int threads, size_t memory);
    ~bitexport_worker();
    bitexport_worker(const bitexport_worker &)             = delete;
    bitexport_worker & operator=(const bitexport_worker &) = delete;

    void serve(bitexport_worker_event event);
    void stop();

    const int listener;

  private:
    void release();
    void take(int client, bitexport_worker_event event);
    void serve_one(int client, bitexport_worker_event event);
    void refuse(int client, bitexport_worker_event event);

    ggml_backend_t    backend_ = nullptr;
    ggml_threadpool * pool_    = nullptr;
    int               wake_[2] = {-1, -1};
    std::atomic<bool> stopped_{false};

    std::mutex              mutex_;  // of serving_
    std::condition_variable changed_;
    bool                    serving_ = false;
    std::thread             session_;
};

bitexport_worker::bitexport_worker(const char * host, int port, int threads, size_t memory)
    : listener(bitexport::listen_on(host, port)) {
    bitexport::set_limits(static_cast<uint32_t>(threads), memory);
    bitexport::interrupt(false);
    backend_ = ggml_backend_cpu_init();
    pool_    = bitexport_new_threads(threads);
    if (backend_ == nullptr || pool_ == nullptr || pipe(wake_) != 0) {
        release();
        throw std::runtime_error(std::to_string(threads) + " threads could not be started; ask for fewer");
    }
    ggml_backend_cpu_set_n_threads(backend_, threads);
    ggml_backend_cpu_set_threadpool(backend_, pool_);
    ggml_backend_cpu_set_abort_callback(backend_, [](void * stopped) { return static_cast<std::atomic<bool> *>(stopped)->load(); },
                                        &stopped_);
}

bitexport_worker::~bitexport_worker() {
    if (session_.joinable()) {
        session_.join();
    }
    release();
}

void bitexport_worker::release() {
    if (backend_ != nullptr) {
        ggml_backend_free(backend_);
    }
    if (pool_ != nullptr) {
        ggml_threadpool_free(pool_);
    }
    for (const int end : {listener, wake_[0], wake_[1]}) {
        if (end >= 0) {
            close(end);
        }
    }
}

void bitexport_worker::serve(bitexport_worker_event event) {
    while (!stopped_) {
        pollfd sources[] = {{listener, POLLIN, 0}, {wake_[0], POLLIN, 0}};
        if (poll(sources, 2, -1) < 0 || stopped_) {
            continue;
        }
        const int client = accept(listener, nullptr, nullptr);
        if (client < 0) {
            std::this_thread::sleep_for(std::chrono::milliseconds(100));  // too many open files, perhaps
        } else {
            fcntl(client, F_SETFD, FD_CLOEXEC);
            bitexport::prepare(client);
            take(client, event);
        }
    }
    if (session_.joinable()) {
        session_.join();
    }
}

void bitexport_worker::take(int client, bitexport_worker_event event) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, patience, [this] { return !serving_ || stopped_; });
    if (stopped_) {
        close(client);
        return;
    }
    if (serving_) {
        lock.unlock();
        refuse(client, event);
        return;
    }
    if (session_.joinable()) {
        session_.join();
    }
    serving_ = true;
    session_ = std::thread([this, client, event] { serve_one(client, event); });
}

void bitexport_worker::serve_one(int client, bitexport_worker_event event) {
    bitexport::block_signals();
    const std::string peer = bitexport::peer_of(client);
    event("connected", peer.c_str(), "");
    const std::string reason = bitexport::serve_client(backend_, client, wake_[0]);
    event(reason.empty() ? "left" : "dropped", peer.c_str(), reason.c_str());
    std::lock_guard<std::mutex> lock(mutex_);
    serving_ = false;
    changed_.notify_all();
}

void bitexport_worker::refuse(int client, bitexport_worker_event event) {
    const std::string peer = bitexport::peer_of(client);
    // its greeting, which is not read, and an answer to it
    char greeting[1 + sizeof(uint64_t) + bitexport::identity_bytes];
    const auto until = std::chrono::steady_clock::now() + patience;
    for (size_t have = 0; have < sizeof(greeting) && std::chrono::steady_clock::now() < until && !stopped_;) {
        const ssize_t more = bitexport::receive_some(client, greeting + have, sizeof(greeting) - have);
        if (more <= 0) {
            break;
        }
        have += static_cast<size_t>(more);
    }
    struct {
        uint64_t size = 4 + bitexport::identity_bytes;
        uint8_t  version[4] = {RPC_PROTO_MAJOR_VERSION, RPC_PROTO_MINOR_VERSION, RPC_PROTO_PATCH_VERSION, bitexport::busy};
        uint8_t  identity[bitexport::identity_bytes];
    } answer;
    bitexport::put_identity(answer.identity);
    bitexport::send_some(client, &answer, sizeof(answer.size) + sizeof(answer.version) + sizeof(answer.identity));
    close(client);
    event("refused", peer.c_str(), "another program is served");
}

void bitexport_worker::stop() {
    stopped_ = true;
    bitexport::interrupt(true);
    const char any = 0;
    (void) !write(wake_[1], &any, 1);
    std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_all();
}

bitexport_worker * bitexport_worker_open(const char * host, int port, int threads, size_t memory, char * error,
                                         size_t error_size) {
    if (exists.exchange(true)) {
        std::snprintf(error, error_size, "there is another worker in this process; close it first");
        return nullptr;
    }
    try {
        return new bitexport_worker(host, port, threads, memory);
    } catch (const std::exception & failure) {
        std::snprintf(error, error_size, "%s", failure.what());
        exists = false;
        return nullptr;
    }
}

int bitexport_worker_port(const bitexport_worker * worker) {
    return bitexport::port_of(worker->listener);
}

void bitexport_worker_serve(bitexport_worker * worker, bitexport_worker_event event) {
    worker->serve(event);
}

void bitexport_worker_stop(bitexport_worker * worker) {
    worker->stop();
}

void bitexport_worker_close(bitexport_worker * worker) {
    delete worker;
    exists = false;
}
