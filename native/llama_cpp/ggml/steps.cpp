#include "steps.h"

#include "fused.h"
#include "ggml-backend-impl.h"
#include "ternary_product.h"

int next_node(const ggml_cgraph * graph, int index) {
    while (index < graph->n_nodes && (ggml_op_is_empty(graph->nodes[index]->op) ||
                                      (graph->nodes[index]->flags & GGML_TENSOR_FLAG_COMPUTE) == 0)) {
        ++index;
    }
    return index;
}

bool overlap(const ggml_tensor * a, const ggml_tensor * b) {
    const auto * begin_a = static_cast<const char *>(a->data);
    const auto * begin_b = static_cast<const char *>(b->data);
    return begin_a < begin_b + ggml_nbytes(b) && begin_b < begin_a + ggml_nbytes(a);
}

namespace {

// Whether only `uses` other nodes read the node, and nobody outside the graph.
bool used_only(const ggml_cgraph * graph, int index, int uses) {
    return ggml_node_has_n_uses(graph, index, uses);
}

bool same_or_apart(const ggml_tensor * a, const ggml_tensor * b) {
    return a->data == b->data || !overlap(a, b);
}

bool is_row(const ggml_tensor * t, int64_t cols) {
    return t->type == GGML_TYPE_F32 && t->ne[0] == cols && ggml_nrows(t) == 1 && t->nb[0] == sizeof(float);
}

// The norm at index, if it is one of a single row that only the multiplication behind it reads. Returns the node that is the
// input of the products.
const ggml_tensor * match_norm(const ggml_cgraph * graph, int index, Step & step) {
    const ggml_tensor * norm = graph->nodes[index];
    const int           at   = next_node(graph, index + 1);
    if (at == graph->n_nodes || !is_row(norm->src[0], norm->ne[0]) || !used_only(graph, index, 1)) {
        return nullptr;
    }
    const ggml_tensor * scaled = graph->nodes[at];
    if (scaled->op != GGML_OP_MUL || (scaled->src[0] != norm && scaled->src[1] != norm)) {
        return nullptr;
    }
    step.norm   = norm;
    step.weight = scaled->src[scaled->src[0] == norm ? 1 : 0];
    step.input  = norm->src[0];
    step.last   = at;
    return is_row(step.weight, norm->ne[0]) ? scaled : nullptr;
}

void match_products(const ggml_cgraph * graph, const ggml_tensor * activations, int index, Step & step) {
    while (step.count < 3 && index < graph->n_nodes && graph->nodes[index]->src[1] == activations &&
           bitexport_multiplies_one_token(graph->nodes[index])) {
        step.products[step.count++] = graph->nodes[index];
        step.last                   = index;
        index                       = next_node(graph, index + 1);
    }
}

// Whether a and b are the operands of the node, in any order, or a alone if b is null.
bool reads(const ggml_tensor * node, const ggml_tensor * a, const ggml_tensor * b) {
    return (node->src[0] == a && (b == nullptr || node->src[1] == b)) || (node->src[1] == a && (b == nullptr || node->src[0] == b));
}

// Adds to a single product.
bool match_add(const ggml_cgraph * graph, int product, Step & step) {
    const int at = next_node(graph, product + 1);
    if (at == graph->n_nodes || graph->nodes[at]->op != GGML_OP_ADD || !used_only(graph, product, 1)) {
        return false;
    }
    ggml_tensor *       add   = graph->nodes[at];
    const ggml_tensor * other = add->src[add->src[0] == step.products[0] ? 1 : 0];
    if (!reads(add, step.products[0], nullptr) || !is_row(add, step.products[0]->ne[0]) || !is_row(other, add->ne[0])) {
        return false;
    }
    step.tail   = Tail::add;
    step.result = add;
    step.first  = add->src[0];
    step.second = add->src[1];
    step.last   = at;
    return true;
}

// SiLU of one product times the other.
bool match_silu(const ggml_cgraph * graph, int index, Step & step) {
    ggml_tensor * glu = graph->nodes[index];
    if (glu->op != GGML_OP_GLU || ggml_get_glu_op(glu) != GGML_GLU_OP_SWIGLU || !reads(glu, step.products[0], step.products[1])) {
        return false;
    }
    step.tail   = Tail::silu;
    step.result = glu;
    step.first  = glu->src[0];
    step.second = glu->src[1];
    step.last   = index;
    return true;
}

// ReLU of one product, squared, times the other.
bool match_relu_squared(const ggml_cgraph * graph, int index, Step & step) {
    const int square = next_node(graph, index + 1);
    const int times  = next_node(graph, square + 1);
    if (times >= graph->n_nodes) {
        return false;
    }
    const ggml_tensor * relu = graph->nodes[index];
    const int           gate = relu->src[0] == step.products[0] ? 0 : 1;
    if (relu->op != GGML_OP_UNARY || ggml_get_unary_op(relu) != GGML_UNARY_OP_RELU || relu->src[0] != step.products[gate] ||
        graph->nodes[square]->op != GGML_OP_SQR || graph->nodes[square]->src[0] != relu || graph->nodes[times]->op != GGML_OP_MUL ||
        !reads(graph->nodes[times], graph->nodes[square], step.products[1 - gate]) || !used_only(graph, index, 1) ||
        !used_only(graph, square, 1)) {
        return false;
    }
    step.tail   = Tail::relu_squared;
    step.result = graph->nodes[times];
    step.first  = step.products[gate];
    step.second = step.products[1 - gate];
    step.last   = times;
    return true;
}

bool match_gate(const ggml_cgraph * graph, int first, Step & step) {
    const int second = next_node(graph, first + 1);  // step.last
    const int at     = next_node(graph, second + 1);
    return at < graph->n_nodes && step.products[0]->ne[0] == step.products[1]->ne[0] && used_only(graph, first, 1) &&
           used_only(graph, second, 1) && (match_silu(graph, at, step) || match_relu_squared(graph, at, step)) &&
           is_row(step.result, step.products[0]->ne[0]);
}

// Memory was assigned for one node after the other. What is written here at the same time must lie apart.
bool can_write_at_once(const Step & step) {
    for (int a = 0; a < step.count; ++a) {
        for (int b = 0; b < a; ++b) {
            if (overlap(step.products[a], step.products[b])) {
                return false;
            }
        }
        if (step.result != nullptr && !same_or_apart(step.result, step.products[a])) {
            return false;
        }
    }
    return step.result == nullptr || (same_or_apart(step.result, step.first) && same_or_apart(step.result, step.second));
}

}  // namespace

Step match_step(const ggml_cgraph * graph, int index) {
    Step                step;
    const ggml_tensor * node        = graph->nodes[index];
    const ggml_tensor * activations = node->op == GGML_OP_RMS_NORM ? match_norm(graph, index, step) : node->src[1];
    if (activations == nullptr) {
        return {};
    }
    const int first = node->op == GGML_OP_RMS_NORM ? next_node(graph, step.last + 1) : index;
    match_products(graph, activations, first, step);
    if (step.count == 0 || (step.norm != nullptr && (step.cols() != step.norm->ne[0] ||
                                                     !used_only(graph, next_node(graph, index + 1), step.count)))) {
        return {};
    }
    if (step.norm == nullptr) {
        step.input = activations;
    }
    const bool tail = step.count == 1 ? match_add(graph, first, step) : step.count == 2 && match_gate(graph, first, step);
    if (!tail) {
        step.result = nullptr;
        step.tail   = Tail::none;
    }
    const bool several = step.norm != nullptr || step.count > 1 || tail;
    return several && can_write_at_once(step) ? step : Step{};
}

namespace {

// Both must do the same for every number of tokens: ggml plans memory for the largest batch and keeps the plan for all.
void order_products(ggml_cgraph * graph) {
    for (int index = 0; index < graph->n_nodes; ++index) {
        const ggml_tensor * product = graph->nodes[index];
        if (!bitexport_multiplies(product)) {
            continue;
        }
        int to = index + 1;
        for (int other = index + 1; other < graph->n_nodes; ++other) {
            ggml_tensor * moved = graph->nodes[other];
            if (moved->src[1] == product->src[1] && bitexport_multiplies(moved)) {
                std::move_backward(graph->nodes + to, graph->nodes + other, graph->nodes + other + 1);
                graph->nodes[to++] = moved;
            }
        }
        index = to - 1;
    }
}

// A rotation whose input is a view gets new memory, which could be that of the first one's input.
void keep_rotated_apart(const ggml_cgraph * graph, const ggml_backend_graph_optimize_params & params) {
    for (int index = next_node(graph, 0); index < graph->n_nodes; index = next_node(graph, index + 1)) {
        const int second = next_node(graph, index + 1);
        if (second < graph->n_nodes && graph->nodes[index]->op == GGML_OP_ROPE && graph->nodes[second]->op == GGML_OP_ROPE) {
            ggml_tensor * input = graph->nodes[index]->src[0];
            params.add_alloc_dep(params.user_data, input->view_src != nullptr ? input->view_src : input, graph->nodes[second]);
        }
    }
}

}  // namespace

void bitexport_order_graph(ggml_backend_t, ggml_cgraph * graph, ggml_backend_graph_optimize_params * params) {
    if (bitexport_joins_nodes()) {
        order_products(graph);
        keep_rotated_apart(graph, *params);
    }
}
