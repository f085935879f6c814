// A persistent pool: without one, ggml starts and ends its threads in every evaluation of a graph, that is, for every token.
// And how the threads of any pool wait for each other, in place of ggml's spinning: see native/kernels/team.
#pragma once

#include "ggml-cpu.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// A pool of this many threads, including the caller's; NULL if the system cannot start them or count is below 1. Free it
// with ggml_threadpool_free once no context uses it.
GGML_BACKEND_API struct ggml_threadpool * bitexport_new_threads(int count);

// What the threads of a pool share.
struct bitexport_team;
struct bitexport_team * bitexport_new_team(void);
void                    bitexport_free_team(struct bitexport_team * team);
struct bitexport_team * bitexport_team_of(struct ggml_threadpool * pool);

// Returns when so many threads have called it: all that compute this graph.
void bitexport_barrier(struct bitexport_team * team, int threads);

// The first of the next `count` units of work; every thread gets others. Starts at 0 again after each barrier.
int64_t bitexport_claim(struct bitexport_team * team, int64_t count);

// The number of threads, of those that are wanted, that compute this graph: at most one per processor. All of
// them if the results depended on it, or with BITEXPORT_THREADS=stock; with BITEXPORT_THREADS=fastest fewer beside busy
// processes, where that is faster.
int  bitexport_begin_graph(struct bitexport_team * team, const struct ggml_cgraph * graph, int wanted);
void bitexport_end_graph(struct bitexport_team * team);

// Not NULL: what is wrong with BITEXPORT_THREADS.
GGML_BACKEND_API const char * bitexport_threads_error(void);

// Called in every round in which a thread waits for a graph, with the number of the round: false when it should sleep instead.
bool bitexport_spin(uint64_t round);

#ifdef __cplusplus
}
#endif
