// Neighbouring nodes of a graph that are computed at once while decoding.
#pragma once

#include "ggml-backend.h"
#include "ggml.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_backend_graph_optimize_params;
struct ggml_cgraph;
struct ggml_compute_params;

// False with BITEXPORT_GRAPH=stock.
bool bitexport_joins_nodes(void);

// Called by every thread before a node: computes it together with nodes behind it, and returns how many of these there are; or
// returns 0, and ggml computes the node alone. Always 0 with BITEXPORT_GRAPH=stock.
int bitexport_compute_fused(const struct ggml_cgraph * graph, int index, const struct ggml_compute_params * params);

// Moves products of the same activations next to each other, before memory is assigned to them. Not with BITEXPORT_GRAPH=stock.
void bitexport_order_graph(ggml_backend_t backend, struct ggml_cgraph * graph, struct ggml_backend_graph_optimize_params * params);

// Nodes that were computed in the step of another one, since the start of the process.
GGML_BACKEND_API uint64_t bitexport_nodes_joined(void);

// What is wrong with BITEXPORT_GRAPH; NULL if nothing is.
GGML_BACKEND_API const char * bitexport_graph_error(void);

#ifdef __cplusplus
}
#endif
