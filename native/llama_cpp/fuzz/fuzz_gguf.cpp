// Feeds damaged GGUF files to libllama: loads each, and runs a token when it loads.
//
//   fuzz_gguf --executions 200000 --seed 1 --findings DIR SEED.gguf...
//
// Build it with address and undefined-behaviour sanitizers (BITEXPORT_SANITIZE). Executions run in a child process, a
// hundred per fork; the child reports its progress through shared memory, which shows the file that ended it. Outcomes:
//   a refusal     libllama returned an error: what should happen
//   an assertion  llama.cpp ended the process with a message (GGML_ASSERT): noted by place, with one file each, because
//                 the Python side must refuse such a file before libllama sees it (bitexport/gguf/checks.py)
//   a failure     anything else: a sanitizer's report, a signal, a hang, an allocation beyond reason
// Exit status: 0 without failures, 3 with some, 2 for wrong usage. Prints one JSON document.

#include "gguf_spots.h"

#include "ggml.h"
#include "llama.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

// What AddressSanitizer reads before main. A GiB is hundreds of times what the seeds need.
extern "C" const char * __asan_default_options() {
    return "detect_leaks=0:exitcode=99:max_allocation_size_mb=1024:allocator_may_return_null=0:handle_abort=0";
}
extern "C" const char * __ubsan_default_options() {
    return "halt_on_error=1:exitcode=99:print_stacktrace=1";
}

namespace {

constexpr unsigned hang_seconds   = 20;
constexpr uint64_t runs_per_fork = 100;

struct Shared {
    volatile uint64_t current;
    volatile bool     loaded;
    char              message[512];  // of an assertion
};
Shared * shared;

struct Options {
    uint64_t                 executions = 200000;
    uint64_t                 seed       = 1;
    std::string              findings;
    std::vector<std::string> seeds;
};

struct Tally {
    uint64_t                        executions = 0, loaded = 0, failures = 0;
    std::map<std::string, uint64_t> assertions;  // by place
};

std::string read_file(const std::string & path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

void write_file(const std::string & path, const std::string & bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

uint64_t below(std::mt19937_64 & random, uint64_t bound) {
    return random() % bound;
}

uint64_t odd_number(std::mt19937_64 & random) {
    static const uint64_t numbers[] = {0, 1, 2, 3, 4, 31, 32, 33, 36, 63, 127, 128, 129, 255, 256, 65535, 65536, 65537,
                                       0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x7fffffffffffffff,
                                       0x8000000000000000, 0xffffffffffffffff, 0xffffffffffffff80, 0x3fffffffffffffff};
    return numbers[below(random, sizeof(numbers) / sizeof(*numbers))];
}

struct Seed {
    std::string       bytes;
    std::vector<Spot> spots;
    size_t            data;
};

// Damages one place, mostly a number of the header: random bytes are mostly names of tokens.
void damage(std::string & file, const Seed & seed, std::mt19937_64 & random) {
    const uint64_t kind = below(random, 10);
    if (file.empty()) {
        return;
    }
    if (kind < 6) {
        const Spot & spot = seed.spots[below(random, seed.spots.size())];
        if (spot.offset + spot.width > file.size()) {
            return;
        }
        uint64_t value = 0;
        std::memcpy(&value, &file[spot.offset], spot.width);
        switch (below(random, 4)) {
            case 0:  value = odd_number(random); break;
            case 1:  value ^= uint64_t(1) << below(random, 8 * spot.width); break;
            case 2:  value += below(random, 65) - 32; break;
            default: value = 36;  // I2_S, where it is a type
        }
        std::memcpy(&file[spot.offset], &value, spot.width);
    } else if (kind == 6) {
        file[below(random, file.size())] = static_cast<char>(random());
    } else if (kind == 7) {
        file.resize(below(random, file.size()));
    } else if (kind == 8 && seed.data < file.size()) {  // weights, scales, tails
        const size_t at = seed.data + below(random, file.size() - seed.data);
        for (size_t i = at; i < file.size() && i < at + 1 + below(random, 8); ++i) {
            file[i] = static_cast<char>(random());
        }
    } else {
        const size_t from = below(random, file.size()), length = below(random, 64);
        const std::string piece = file.substr(from, length);
        file.insert(below(random, file.size()), piece);
    }
}

std::string mutant(const std::vector<Seed> & seeds, uint64_t run, uint64_t base) {
    std::mt19937_64 random(base * 0x9e3779b97f4a7c15u + run);
    const Seed &    seed = seeds[below(random, seeds.size())];
    std::string     file = seed.bytes;
    for (uint64_t left = 1 + below(random, 3); left > 0; --left) {
        damage(file, seed, random);
    }
    return file;
}

void run_a_token(llama_model * model) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx     = 16;
    params.n_batch   = 4;
    params.n_ubatch  = 4;
    params.n_threads = params.n_threads_batch = 1;
    llama_context * context = llama_init_from_model(model, params);
    if (context != nullptr) {
        llama_token token = 0;
        llama_decode(context, llama_batch_get_one(&token, 1));
        llama_free(context);
    }
}

void load(const std::string & bytes) {
    const int file = memfd_create("fuzz.gguf", 0);
    if (file < 0 || write(file, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) {
        _exit(98);
    }
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers       = 0;
    const std::string path    = "/proc/self/fd/" + std::to_string(file);
    if (llama_model * model = llama_model_load_from_file(path.c_str(), params)) {
        shared->loaded = true;
        run_a_token(model);
        llama_model_free(model);
    }
    close(file);
}

[[noreturn]] void child(const std::vector<Seed> & seeds, const Options & options, uint64_t first, uint64_t last) {
    ggml_set_abort_callback([](const char * message) {
        std::strncpy(shared->message, message, sizeof(shared->message) - 1);
    });
    for (uint64_t run = first; run < last; ++run) {
        shared->current    = run;
        shared->loaded     = false;
        shared->message[0] = '\0';
        alarm(hang_seconds);
        load(mutant(seeds, run, options.seed));
        shared->current = run + 1;
    }
    _exit(0);
}

// "…/src/llama-model.cpp:123: GGML_ASSERT(…)" -> "llama-model.cpp:123"
std::string place_of(const std::string & message) {
    const size_t end   = message.find(": ");
    const size_t slash = message.rfind('/', end);
    return message.substr(slash == std::string::npos ? 0 : slash + 1,
                          end - (slash == std::string::npos ? 0 : slash + 1));
}

const char * failure_of(int status) {
    if (WIFSIGNALED(status)) {
        return WTERMSIG(status) == SIGALRM ? "hang" : WTERMSIG(status) == SIGABRT ? "abort" : "signal";
    }
    return WEXITSTATUS(status) == 99 ? "sanitizer" : "exit";
}

// The child ended early: counts why and keeps the file that caused it.
void note_end(int status, const std::vector<Seed> & seeds, const Options & options, Tally & tally) {
    const uint64_t    run     = shared->current;
    const std::string message = shared->message;
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && !message.empty()) {
        if (tally.assertions[place_of(message)]++ == 0) {
            write_file(options.findings + "/assertion-" + place_of(message) + ".gguf", mutant(seeds, run, options.seed));
            std::fprintf(stderr, "assertion: %s\n", message.c_str());
        }
        return;
    }
    ++tally.failures;
    const std::string name = std::string(failure_of(status)) + "-" + std::to_string(run);
    write_file(options.findings + "/" + name + ".gguf", mutant(seeds, run, options.seed));
    std::fprintf(stderr, "FAILURE %s (status %d)\n", name.c_str(), status);
}

void run_all(const std::vector<Seed> & seeds, const Options & options, Tally & tally) {
    constexpr uint64_t enough_failures = 20;
    while (tally.executions < options.executions && tally.failures < enough_failures) {
        const uint64_t first = tally.executions;
        const uint64_t last  = std::min(first + runs_per_fork, options.executions);
        shared->current      = first;
        const pid_t pid      = fork();
        if (pid == 0) {
            child(seeds, options, first, last);
        }
        int status = 0;
        waitpid(pid, &status, 0);
        tally.executions = shared->current;
        if (shared->current < last || status != 0) {
            note_end(status, seeds, options, tally);
            ++tally.executions;
        }
        if (tally.executions / 10000 != first / 10000) {
            std::fprintf(stderr, "%llu executions\n", static_cast<unsigned long long>(tally.executions));
        }
    }
}

bool parse(int argc, char ** argv, Options & options) {
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        if (name.rfind("--", 0) != 0) {
            options.seeds.push_back(name);
        } else if (i + 1 == argc) {
            return false;
        } else if (name == "--executions") {
            options.executions = std::strtoull(argv[++i], nullptr, 10);
        } else if (name == "--seed") {
            options.seed = std::strtoull(argv[++i], nullptr, 10);
        } else if (name == "--findings") {
            options.findings = argv[++i];
        } else {
            return false;
        }
    }
    return !options.seeds.empty() && !options.findings.empty();
}

void print(const Tally & tally) {
    std::printf("{\"executions\": %llu, \"failures\": %llu, \"assertions\": {",
                static_cast<unsigned long long>(tally.executions), static_cast<unsigned long long>(tally.failures));
    const char * comma = "";
    for (const auto & [place, count] : tally.assertions) {
        std::printf("%s\"%s\": %llu", comma, place.c_str(), static_cast<unsigned long long>(count));
        comma = ", ";
    }
    std::printf("}}\n");
}

}  // namespace

int main(int argc, char ** argv) {
    Options options;
    if (!parse(argc, argv, options)) {
        std::fprintf(stderr, "usage: fuzz_gguf [--executions N] [--seed S] --findings DIR SEED.gguf...\n");
        return 2;
    }
    std::vector<Seed> seeds;
    for (const std::string & path : options.seeds) {
        Seed seed{read_file(path), {}, 0};
        seed.spots = gguf_spots(seed.bytes);
        seed.data  = gguf_data_offset(seed.bytes);
        if (seed.spots.empty()) {
            std::fprintf(stderr, "%s is not a GGUF file\n", path.c_str());
            return 2;
        }
        seeds.push_back(std::move(seed));
    }
    void * memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        std::perror("mmap");
        return 2;
    }
    shared = static_cast<Shared *>(memory);
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    Tally tally;
    run_all(seeds, options, tally);
    print(tally);
    return tally.failures == 0 ? 0 : 3;
}
