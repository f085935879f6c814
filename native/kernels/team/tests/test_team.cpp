// Threads that wait for each other and share work, more of them than processors, some of them late; and the choice of their
// number on simulated machines.
#include "team/team.h"
#include "test_support.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <thread>
#include <vector>

namespace {

using kernel_test::check;
using kernel_test::Random;
using kernel_test::str;

constexpr int64_t ms = 1'000'000;  // nanoseconds

// Nobody passes a barrier before everybody has reached it, and between two barriers each unit of work is done once.
// `busy_us`: microseconds of work for a unit, so that the system takes the processor from some threads before they are done.
void test_barriers(int threads, int rounds, int64_t units, bool some_sleep, int busy_us = 0) {
    team::Team team;
    team.begin(threads, 0, Choice::all);
    std::vector<int>     done(units * rounds);  // no atomics: the barriers must order them
    std::vector<int64_t> rounds_of(threads);
    std::atomic<int>     early{0};
    const auto           member = [&](int index) {
        Random random(index + 1);
        for (int round = 0; round < rounds; ++round) {
            for (int64_t unit; (unit = team.claim(1)) < units;) {
                ++done[round * units + unit];
                const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(busy_us);
                while (busy_us > 0 && std::chrono::steady_clock::now() < until) {
                }
            }
            if (some_sleep && random.next() % 64 == 0) {
                std::this_thread::sleep_for(std::chrono::microseconds(random.next() % 300));
            }
            rounds_of[index] = round + 1;
            team.barrier(threads);
            for (const int64_t other : rounds_of) {
                early += other != round + 1;
            }
            team.barrier(threads);
        }
    };
    std::vector<std::thread> members;
    for (int index = 0; index < threads; ++index) {
        members.emplace_back(member, index);
    }
    for (auto & thread : members) {
        thread.join();
    }
    team.end();
    const std::string name = str(threads) + " threads: ";
    check(early == 0, name + "nobody passes a barrier early");
    check(std::all_of(done.begin(), done.end(), [](int times) { return times == 1; }), name + "each unit is done once");
}

double thread_seconds() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

void test_a_long_wait_takes_no_processor() {
    team::Team  team;
    double      used = 0;
    std::thread waiting([&] {
        const double before = thread_seconds();
        team.barrier(2);
        used = thread_seconds() - before;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    team.barrier(2);
    waiting.join();
    check(used < 0.1, "a thread that waits 300 ms uses " + std::to_string(used) + " s of a processor");
}

// A machine on which decoding with n threads takes time[n], of which lost[n] is waiting.
struct Machine {
    int64_t time[5];
    double  lost[5];
};
constexpr Machine quiet{{0, 40 * ms, 20 * ms, 14 * ms, 10 * ms}, {0, 0, 0.01, 0.02, 0.02}};
constexpr Machine company{{0, 40 * ms, 55 * ms, 70 * ms, 80 * ms}, {0, 0, 0.4, 0.4, 0.4}};
constexpr Machine uneven{{0, 40 * ms, 20 * ms, 14 * ms, 10 * ms}, {0, 0, 0.3, 0.3, 0.3}};  // much waiting, but no company

// Computes some graphs; returns how many of the last 100 had each number of threads.
std::vector<int> compute(team::Strength & strength, const Machine & machine, int wanted, int processors, int graphs,
                         bool idle = false, uint64_t kind = 1) {
    std::vector<int> used(5);
    for (int graph = 0; graph < graphs; ++graph) {
        const int threads = strength.threads(wanted, processors, kind);
        if (strength.reduced()) {
            strength.seems_idle(idle);
        }
        const int64_t elapsed = machine.time[threads];
        strength.finished(elapsed, static_cast<int64_t>(machine.lost[threads] * threads * elapsed));
        used[threads] += graph >= graphs - 100;
    }
    return used;
}

void test_all_threads_on_a_quiet_machine() {
    team::Strength strength;
    check(compute(strength, quiet, 4, 8, 1000)[4] == 100, "all threads compute on a quiet machine");
}

void test_fewer_threads_in_company() {
    team::Strength strength;
    check(compute(strength, company, 2, 2, 400)[1] >= 80, "one thread computes where two are slower");
    const int back = compute(strength, quiet, 2, 2, 110, true)[2];
    check(back >= 95, "two threads compute soon after the company has left: " + str(back) + " graphs of 100");
    check(compute(strength, company, 4, 4, 1000)[1] >= 60, "one thread computes where four are slower");
    check(compute(strength, quiet, 4, 4, 1000)[4] == 100, "four threads compute in the end, without a sign of an idle processor");
}

void test_waiting_alone_is_no_reason() {
    team::Strength strength;
    const auto     used = compute(strength, uneven, 4, 4, 1000);
    check(used[4] >= 80, "where fewer threads are slower, all compute most of the time: " + str(used[4]) + " graphs of 100");
}

void test_no_more_threads_than_processors() {
    team::Strength strength;
    check(strength.threads(4, 2, 1) == 2 && strength.threads(1, 2, 1) == 1 && strength.threads(3, 0, 1) == 1,
          "at least one thread, and at most one per processor");
}

void test_only_short_graphs_that_repeat() {
    team::Strength alternating;
    for (int graph = 0; graph < 1000; ++graph) {
        check(alternating.threads(2, 2, graph % 2) == 2, "graphs of changing kinds get all threads");
        alternating.finished(50 * ms, 50 * ms);
    }
    team::Strength slow;
    for (int graph = 0; graph < 100; ++graph) {
        check(slow.threads(2, 2, 1) == 2, "long graphs get all threads");
        slow.finished(400 * ms, 400 * ms);
    }
    team::Strength strength;
    compute(strength, company, 2, 2, 400);
    check(strength.threads(2, 2, 7) == 2, "a prompt in between gets all threads");
}

}  // namespace

int main() {
    const int rounds = kernel_test::quick() ? 300 : 3000;
    for (const int threads : {1, 2, 3, 8}) {
        test_barriers(threads, rounds, 7, false);
        test_barriers(threads, rounds / 10, 20, true);
    }
    test_barriers(8, rounds / 30, 64, false, 50);
    test_a_long_wait_takes_no_processor();
    test_all_threads_on_a_quiet_machine();
    test_fewer_threads_in_company();
    test_waiting_alone_is_no_reason();
    test_no_more_threads_than_processors();
    test_only_short_graphs_that_repeat();
    return kernel_test::finish("team");
}
