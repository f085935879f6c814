// Which neighbouring nodes of a graph can be computed in one step; fused.cpp computes them.
#pragma once

#include "ggml-impl.h"
#include "ggml.h"

#include <algorithm>

// The next node that computes something, from index on; the number of nodes if there is none.
int next_node(const ggml_cgraph * graph, int index);

bool overlap(const ggml_tensor * a, const ggml_tensor * b);

enum class Tail { none, add, relu_squared, silu };

struct Step {
    const ggml_tensor * norm       = nullptr;  // and weight: both or none
    const ggml_tensor * weight     = nullptr;
    const ggml_tensor * input      = nullptr;  // of the norm, otherwise of the products
    ggml_tensor *       products[3] = {};
    int                 count      = 0;
    Tail                tail       = Tail::none;
    ggml_tensor *       result     = nullptr;  // of the tail
    const ggml_tensor * first      = nullptr;  // its operands: what it adds to, the gate
    const ggml_tensor * second     = nullptr;
    int                 last       = 0;        // index of the last node

    int64_t cols() const { return products[0]->src[0]->ne[0]; }
    bool    writes_over(const ggml_tensor * t) const {
        return std::any_of(products, products + count, [&](const ggml_tensor * p) { return overlap(p, t); }) ||
               (result != nullptr && overlap(result, t));
    }
};

// The step that begins at index, a node with op RMS_NORM or MUL_MAT; without products if there is none.
Step match_step(const ggml_cgraph * graph, int index);
