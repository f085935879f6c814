#include "threads.h"

#include "attention.h"
#include "ggml-impl.h"
#include "team/team.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace {

struct ThreadsVariable {
    team::Choice choice = team::Choice::fitting;
    std::string  error;

    ThreadsVariable() {
        const char *      text = std::getenv("BITEXPORT_THREADS");
        const std::string value(text == nullptr ? "" : text);
        if (value == "stock") {
            choice = team::Choice::all;
        } else if (value == "fastest") {
            choice = team::Choice::fastest;
        } else if (!value.empty()) {
            error = "BITEXPORT_THREADS is '" + value + "'; expected 'stock' for all threads that were asked for, 'fastest' for " +
                    "fewer where busy processes make that faster, or nothing for at most one per processor";
        }
    }
};

const ThreadsVariable & wanted_number() {
    static const ThreadsVariable value;
    return value;
}

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

// ggml's own attention divides the positions by the number of threads, and adds their sums in that order.
bool depends_on_threads(const ggml_cgraph * graph) {
    return std::any_of(graph->nodes, graph->nodes + graph->n_nodes, [](const ggml_tensor * node) {
        return node->op == GGML_OP_FLASH_ATTN_EXT && bitexport_attention_traits(node) == nullptr;
    });
}

}  // namespace

struct bitexport_team : team::Team {};

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

bitexport_team * bitexport_new_team(void) {
    auto * const team = new (std::nothrow) bitexport_team;
    GGML_ASSERT(team != nullptr);
    return team;
}

void bitexport_free_team(bitexport_team * team) {
    delete team;
}

void bitexport_barrier(bitexport_team * team, int threads) {
    team->barrier(threads);
}

int64_t bitexport_claim(bitexport_team * team, int64_t count) {
    return team->claim(count);
}

int bitexport_begin_graph(bitexport_team * team, const ggml_cgraph * graph, int wanted) {
    // One token more or less in the cache is no other kind, one more in the batch is.
    const uint64_t kind = static_cast<uint64_t>(graph->n_nodes) << 32 | static_cast<uint64_t>(graph->nodes[0]->ne[1]);
    return team->begin(wanted, kind, depends_on_threads(graph) ? team::Choice::all : wanted_number().choice);
}

void bitexport_end_graph(bitexport_team * team) {
    team->end();
}

bool bitexport_spin(uint64_t round) {
    static thread_local team::Patience patience;
    if (round == 0) {
        patience = team::Patience();
    }
    return patience.spin();
}

const char * bitexport_threads_error(void) {
    return wanted_number().error.empty() ? nullptr : wanted_number().error.c_str();
}
