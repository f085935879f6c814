#include "team.h"

#include <chrono>
#include <cstdio>
#include <thread>

#if defined(__linux__)
#    include <fcntl.h>
#    include <linux/futex.h>
#    include <sched.h>
#    include <sys/syscall.h>
#    include <unistd.h>
#endif
#if defined(__x86_64__)
#    include <immintrin.h>
#endif

namespace team {

namespace {

// About what it takes to put a thread to sleep and wake it up again.
constexpr int64_t patience_ns = 50'000;

// Threads of this process that compute, and the processors that it may use.
std::atomic<int> computing{0};
std::atomic<int> processors{1};

int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

// The processors that this thread may use.
int count_processors() {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
        return CPU_COUNT(&allowed);
    }
#endif
    return static_cast<int>(std::thread::hardware_concurrency());
}

// Whether fewer threads than processors are running or want to run, in the whole system; false if that cannot be known.
bool a_processor_is_idle() {
#if defined(__linux__)
    static const int  file       = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
    static const long processors = sysconf(_SC_NPROCESSORS_ONLN);
    char              text[128];
    const ssize_t     length = file < 0 ? -1 : pread(file, text, sizeof(text) - 1, 0);
    int               running;
    if (length > 0) {
        text[length] = '\0';
        return std::sscanf(text, "%*s %*s %*s %d/", &running) == 1 && running < processors;
    }
#endif
    return false;
}

// Sleeps until it is woken up, unless the value is another one already.
void sleep_while(std::atomic<uint32_t> & value, uint32_t seen) {
#if defined(__linux__)
    static_assert(sizeof(value) == sizeof(seen), "a futex is the bare number");
    syscall(SYS_futex, &value, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#else
    (void) seen;
    (void) value;
    std::this_thread::yield();
#endif
}

void wake_all(std::atomic<uint32_t> & value) {
#if defined(__linux__)
    syscall(SYS_futex, &value, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#else
    (void) value;
#endif
}

}  // namespace

bool Patience::spin() {
    constexpr int rounds_per_look = 32;
    if (rounds_++ % rounds_per_look == 0) {
        const int64_t time    = now();
        const bool    crowded = computing.load(std::memory_order_relaxed) > processors.load(std::memory_order_relaxed);
        if (begin_ == 0) {
            begin_ = time;
        }
        if (time - begin_ > (crowded ? 0 : patience_ns)) {
            return false;
        }
    }
    relax();
    return true;
}

void Team::barrier(int threads) {
    const uint32_t seen = passed_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < static_cast<uint32_t>(threads)) {
        wait(seen);
        return;
    }
    arrived_.store(0, std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    // A thread counts itself among the sleepers before it looks at `passed` for the last time: either it sees this, or is seen.
    passed_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) != 0) {
        wake_all(passed_);
    }
}

void Team::wait(uint32_t seen) {
    Patience patience;
    while (passed_.load(std::memory_order_acquire) == seen) {
        if (patience.spin()) {
            continue;
        }
        const int64_t begin = now();
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        while (passed_.load(std::memory_order_seq_cst) == seen) {
            sleep_while(passed_, seen);
        }
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
        lost_.fetch_add(now() - begin, std::memory_order_relaxed);
        return;
    }
}

int Team::begin(int wanted, uint64_t kind, Choice choice) {
    const int available = count_processors();
    processors.store(available, std::memory_order_relaxed);
    threads_ = choice == Choice::all       ? wanted
               : choice == Choice::fitting ? std::min(wanted, available)
                                           : strength_.threads(wanted, available, kind);
    if (strength_.reduced()) {
        strength_.seems_idle(a_processor_is_idle());
    }
    computing.fetch_add(threads_, std::memory_order_relaxed);
    lost_.store(0, std::memory_order_relaxed);
    begin_ = now();
    return threads_;
}

void Team::end() {
    computing.fetch_sub(threads_, std::memory_order_relaxed);
    strength_.finished(now() - begin_, lost_.load(std::memory_order_relaxed));
}

}  // namespace team
