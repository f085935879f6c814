#include "threads.h"

#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace {

// If ggml cannot start a thread, it ends the process. So the same number is started first, all alive at once.
bool can_start(int count) {
    std::mutex               until_all_are_started;
    std::vector<std::thread> threads;
    threads.reserve(count);
    bool                         enough = true;
    std::unique_lock<std::mutex> lock(until_all_are_started);
    try {
        while (static_cast<int>(threads.size()) < count) {
            threads.emplace_back([&] { std::lock_guard<std::mutex> wait(until_all_are_started); });
        }
    } catch (const std::system_error &) {
        enough = false;
    }
    lock.unlock();
    for (auto & thread : threads) {
        thread.join();
    }
    return enough;
}

}  // namespace

ggml_threadpool * bitexport_new_threads(int count) {
    if (count < 1 || !can_start(count - 1)) {
        return nullptr;
    }
    ggml_threadpool_params params = ggml_threadpool_params_default(count);
    // How long a thread polls for the next graph before it sleeps: about 5 to 20 milliseconds here, more than a program
    // needs between two tokens. ggml's own choice, ten times that, keeps a processor busy after the last token.
    params.poll = 5;
    return ggml_threadpool_new(&params);
}
