#include "service.h"

#include "client.h"

#include <nlohmann/json.hpp>

#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <thread>

namespace bitexport {

namespace {

using json = nlohmann::json;

std::mutex              mutex;  // of the two below
std::condition_variable fewer;
int32_t                 computing = 0;
bool                    stopping  = false;

std::atomic<bool> over{false};
std::atomic<bool> worker_lost{false};

std::mutex output;

thread_local std::unique_ptr<request_record> current;

int stop_pipe[2] = {-1, -1};

int64_t now() {
    return std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::steady_clock::now().time_since_epoch()).count();
}

void write_record(const json & record) {
    // a path may hold bytes that are not UTF-8
    const std::string line = record.dump(-1, ' ', true, json::error_handler_t::replace) + "\n";
    std::lock_guard<std::mutex> one_at_a_time(output);
    std::fwrite(line.data(), 1, line.size(), stdout);
    std::fflush(stdout);
}

service_settings read_settings() {
    service_settings result;
    const char *     text = std::getenv("BITEXPORT_SERVE");
    if (text == nullptr) {
        return result;
    }
    try {
        const json given     = json::parse(text);
        result.active        = true;
        result.body_bytes    = given.at("body_bytes");
        result.prompt_tokens = given.at("prompt_tokens");
        result.max_tokens    = given.at("max_tokens");
        result.texts         = given.at("texts");
        result.seconds       = given.at("seconds");
        result.requests      = given.at("requests");
        result.stop_seconds  = given.at("stop_seconds");
        result.local_only    = given.at("local_only");
        result.embeds        = given.at("embeds");
        result.chats         = given.at("chats");
    } catch (const std::exception & error) {
        std::fprintf(stderr, "BITEXPORT_SERVE cannot be used: %s; it is set by `bitexport serve`\n", error.what());
        std::exit(1);
    }
    return result;
}

// Blocks until the signal handler writes to the pipe or stdin ends.
void wait_for_stop() {
    pollfd sources[] = {{stop_pipe[0], POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
    while (true) {
        if (poll(sources, 2, -1) < 0) {
            continue;  // a signal
        }
        if (sources[0].revents != 0) {
            return;
        }
        char ignored[256];
        if (sources[1].revents != 0 && read(STDIN_FILENO, ignored, sizeof ignored) <= 0) {
            return;
        }
    }
}

void check(size_t tokens, size_t count, int32_t most) {
    const service_settings & limits = service();
    if (!limits.active) {
        return;
    }
    if (count > static_cast<size_t>(most)) {
        throw std::invalid_argument("the request has " + std::to_string(count) + " texts; this server takes at most " +
                                    std::to_string(most) + " in one request");
    }
    if (limits.prompt_tokens > 0 && tokens > static_cast<size_t>(limits.prompt_tokens)) {
        throw std::invalid_argument("the prompt has " + std::to_string(tokens) + " tokens; this server takes at most " +
                                    std::to_string(limits.prompt_tokens));
    }
}

// With the mutex held.
entry room() {
    return stopping ? entry::stopping : computing >= service().requests ? entry::full : entry::open;
}

// The number of requests that are still in progress after the time given to them.
int32_t finish_requests() {
    std::unique_lock<std::mutex> lock(mutex);
    stopping = true;
    write_record({{"event", "stopping"}, {"computing", computing}});
    fewer.wait_for(lock, std::chrono::seconds(service().stop_seconds), [] { return computing == 0; });
    return computing;
}

}  // namespace

const service_settings & service() {
    static const service_settings settings = read_settings();
    return settings;
}

int32_t allowed_tokens(int32_t asked) {
    const int32_t most = service().max_tokens;
    return most > 0 && (asked < 0 || asked > most) ? most : asked;
}

void check_prompt(size_t tokens, size_t count) {
    check(tokens, count, service().requests);
}

void check_text(size_t tokens, size_t count) {
    check(tokens, count, service().texts);
}

int64_t deadline() {
    return service().seconds > 0 ? now() + int64_t{1000} * service().seconds : 0;
}

bool is_past(int64_t deadline) {
    return deadline != 0 && now() >= deadline;
}

const char * late_message() {
    return "the request took longer than this server allows, and nothing was generated yet; try again later";
}

request_record * current_request() {
    return current.get();
}

void begin_request(std::unique_ptr<request_record> record) {
    end_request();
    record->arrived = now();
    current         = std::move(record);
}

void end_request() {
    if (!current) {
        return;
    }
    const std::unique_ptr<request_record> ended = std::move(current);
    // before the request stops counting, because the server may exit then
    json record = {{"event", "request"}, {"method", ended->method}, {"path", ended->path}, {"client", ended->client},
                   {"status", ended->status}, {"milliseconds", now() - ended->arrived}, {"complete", ended->complete}};
    if (ended->prompt >= 0) {
        record["prompt_tokens"] = ended->prompt;
        record["cached_tokens"] = ended->cached;
        record["tokens"]        = ended->generated;
    }
    write_record(record);
    if (ended->computing) {
        std::lock_guard<std::mutex> lock(mutex);
        --computing;
        fewer.notify_all();
    }
}

void end_stream(bool with_content) {
    if (current) {
        current->complete = with_content;
    }
}

void count_tokens(int32_t prompt, int32_t cached, int32_t generated) {
    if (!current) {
        return;
    }
    if (current->prompt < 0) {
        current->prompt = current->cached = current->generated = 0;
    }
    current->prompt += prompt;
    current->cached += cached;
    current->generated += generated;
}

entry may_enter() {
    std::lock_guard<std::mutex> lock(mutex);
    return room();
}

entry enter() {
    std::lock_guard<std::mutex> lock(mutex);
    const entry found = room();
    if (found == entry::open && current) {
        ++computing;
        current->computing = true;
    }
    return found;
}

std::function<void(int)> stop_gracefully(std::function<void(int)> stop) {
    if (!service().active) {
        return stop;
    }
    if (pipe(stop_pipe) != 0) {
        std::perror("bitexport serve: pipe");
        std::exit(1);
    }
    std::thread([stop] {
        wait_for_stop();
        const int32_t left = finish_requests();
        write_record({{"event", "stopped"}, {"cut_off", left}});
        if (left == 0 && worker_lost) {
            std::this_thread::sleep_for(std::chrono::seconds(1));  // the last answers may still be on their way out
        }
        if (left > 0 || worker_lost) {
            std::_Exit(1);  // closes the connections, which the clients notice; waiting for them could take forever
        }
        over = true;
        stop(0);
    }).detach();
    return [](int) {
        const char any = 0;
        (void) !write(stop_pipe[1], &any, 1);  // all that a signal handler may do
    };
}

std::string why_not_computed(const std::string & error) {
    const char * failure = bitexport_worker_failure(nullptr);
    if (failure == nullptr) {
        return error;
    }
    if (service().active && !worker_lost.exchange(true)) {
        write_record({{"event", "worker_lost"}, {"message", failure}});
        const char any = 0;
        (void) !write(stop_pipe[1], &any, 1);
    }
    return failure;
}

bool is_over() {
    return over;
}

void announce(int port) {
    if (service().active) {
        write_record({{"event", "ready"}, {"port", port}});
    }
}

}  // namespace bitexport
