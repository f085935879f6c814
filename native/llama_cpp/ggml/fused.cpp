// Fewer steps per token. ggml computes a graph node by node, with a barrier behind each, and a node of one row in one thread. A
// decoder of ternary layers then has some 20 steps in each layer, of which 4 take time. Here these run as one step each:
//
//   RMS norm, its weight, and up to three products of the result     q, k, v; gate, up; the output matrix behind a sub-norm
//   ... and ReLU squared or SiLU of one product times the other      gate, up
//   ... and an addition to a single product                          the residual
//   two rotations, or two writes into the cache, that do not depend on each other
//
// The graph stays as it is, so all of ggml's ways to run and to observe one stay: a node whose result anybody else asks for, such
// as an evaluation callback or an adapter, is not the inner part of a step, and the stock path computes it. Nodes are matched
// again each time, which takes less than a microsecond.
//
// Every thread norms and quantizes the token for itself, which takes less time than a barrier, and multiplies its share of the
// panels; what is done element by element follows on the same rows. The sums of squares are added in another order than ggml's,
// in double precision; all else is computed as in the stock graph, to the bit.

#include "fused.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu-impl.h"
#include "ggml-impl.h"
#include "ops.h"
#include "sharing.h"
#include "stock_switch.h"
#include "ternary_product.h"
#include "vec.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

namespace {

const StockSwitch & wanted() {
    static const StockSwitch value("BITEXPORT_GRAPH", "graph");
    return value;
}

std::atomic<uint64_t> nodes_joined{0};

// The next node that computes something, from index on; the number of nodes if there is none.
int next_node(const ggml_cgraph * graph, int index) {
    while (index < graph->n_nodes && (ggml_op_is_empty(graph->nodes[index]->op) ||
                                      (graph->nodes[index]->flags & GGML_TENSOR_FLAG_COMPUTE) == 0)) {
        ++index;
    }
    return index;
}

// Counts the nodes behind index up to last, which were computed in its step; returns how many nodes ggml skips.
int joined(const ggml_cgraph * graph, int index, int last, const ggml_compute_params * params) {
    if (params->ith == 0) {
        int nodes = 0;
        for (int at = next_node(graph, index + 1); at <= last; at = next_node(graph, at + 1)) {
            ++nodes;
        }
        nodes_joined.fetch_add(static_cast<uint64_t>(nodes), std::memory_order_relaxed);
    }
    return last - index;
}

// Whether only `uses` other nodes read the node, and nobody outside the graph.
bool used_only(const ggml_cgraph * graph, int index, int uses) {
    return ggml_node_has_n_uses(graph, index, uses);
}

bool overlap(const ggml_tensor * a, const ggml_tensor * b) {
    const auto * begin_a = static_cast<const char *>(a->data);
    const auto * begin_b = static_cast<const char *>(b->data);
    return begin_a < begin_b + ggml_nbytes(b) && begin_b < begin_a + ggml_nbytes(a);
}

bool same_or_apart(const ggml_tensor * a, const ggml_tensor * b) {
    return a->data == b->data || !overlap(a, b);
}

bool is_row(const ggml_tensor * t, int64_t cols) {
    return t->type == GGML_TYPE_F32 && t->ne[0] == cols && ggml_nrows(t) == 1 && t->nb[0] == sizeof(float);
}

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

// The step that begins at index; without products if there is none.
Step match(const ggml_cgraph * graph, int index) {
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

// y = x normed, times weight
void norm(const float * x, const float * weight, float eps, int64_t n, float * y) {
    constexpr int64_t lanes       = 16;
    double            sums[lanes] = {};
    int64_t           i           = 0;
    for (; i + lanes <= n; i += lanes) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
            sums[lane] += static_cast<double>(x[i + lane] * x[i + lane]);
        }
    }
    for (; i < n; ++i) {
        sums[0] += static_cast<double>(x[i] * x[i]);
    }
    double sum = 0.0;
    for (const double s : sums) {
        sum += s;
    }
    const float mean  = static_cast<float>(sum / static_cast<double>(n));
    const float scale = 1.0f / std::sqrt(mean + eps);
    for (i = 0; i < n; ++i) {
        y[i] = x[i] * scale * weight[i];
    }
}

// Rows [begin, end) of the tail, of which this thread has computed the operands.
void compute_tail(const Step & step, int64_t begin, int64_t end) {
    float *       y = static_cast<float *>(step.result->data);
    const float * a = static_cast<const float *>(step.first->data);
    const float * b = static_cast<const float *>(step.second->data);
    switch (step.tail) {
        case Tail::none: break;
        case Tail::add:
            for (int64_t i = begin; i < end; ++i) {
                y[i] = a[i] + b[i];
            }
            break;
        case Tail::relu_squared:
            for (int64_t i = begin; i < end; ++i) {
                const float positive = a[i] > 0.0f ? a[i] : 0.0f;
                y[i]                 = positive * positive * b[i];
            }
            break;
        case Tail::silu: ggml_vec_swiglu_f32(static_cast<int>(end - begin), y + begin, a + begin, b + begin); break;
    }
}

void multiply(const Step & step, const ternary::QuantizedBuffer & batch, const ggml_compute_params * params) {
    if (step.tail != Tail::none) {
        const Share own(bitexport_panels(step.products[0]), params->ith, params->nth);
        for (int p = 0; p < step.count; ++p) {
            bitexport_multiply_token(step.products[p], batch, own.begin, own.end);
        }
        compute_tail(step, own.begin * ternary::panel_rows, std::min(own.end * ternary::panel_rows, step.result->ne[0]));
        return;
    }
    int64_t panels = 0;
    for (int p = 0; p < step.count; ++p) {
        panels += bitexport_panels(step.products[p]);
    }
    const Share own(panels, params->ith, params->nth);
    int64_t     before = 0;
    for (int p = 0; p < step.count; ++p) {
        const int64_t here  = bitexport_panels(step.products[p]);
        const int64_t begin = std::max<int64_t>(own.begin - before, 0);
        const int64_t end   = std::min(own.end - before, here);
        if (begin < end) {
            bitexport_multiply_token(step.products[p], batch, begin, end);
        }
        before += here;
    }
}

void compute(const Step & step, const ggml_compute_params * params) {
    const TokenMemory memory(params->wdata, step.cols(), params->ith);
    const auto *      x = static_cast<const float *>(step.input->data);
    if (step.norm != nullptr) {
        float eps;
        std::memcpy(&eps, step.norm->op_params, sizeof(eps));
        norm(x, static_cast<const float *>(step.weight->data), eps, step.cols(), memory.floats());
        x = memory.floats();
    }
    bitexport_quantize_token(x, step.cols(), memory.batch());
    if (step.writes_over(step.input)) {  // the memory of an input that nobody reads later
        ggml_barrier(params->threadpool);
    }
    for (int p = 0; p < step.count && params->ith == 0; ++p) {
        bitexport_observe_token(step.products[p], memory.batch());
    }
    multiply(step, memory.batch(), params);
}

bool independent(const ggml_tensor * a, const ggml_tensor * b) {
    const auto touches = [](const ggml_tensor * reader, const ggml_tensor * written) {
        return std::any_of(reader->src, reader->src + GGML_MAX_SRC,
                           [&](const ggml_tensor * source) { return source != nullptr && overlap(source, written); });
    };
    return !overlap(a, b) && !touches(b, a) && !touches(a, b);
}

// A second rotation, or a second write into the cache.
int compute_pair(const ggml_cgraph * graph, int index, const ggml_compute_params * params,
                 void (*forward)(const ggml_compute_params *, ggml_tensor *)) {
    const int second = next_node(graph, index + 1);
    if (second == graph->n_nodes || graph->nodes[second]->op != graph->nodes[index]->op ||
        !independent(graph->nodes[index], graph->nodes[second])) {
        return 0;
    }
    forward(params, graph->nodes[index]);
    forward(params, graph->nodes[second]);
    return joined(graph, index, second, params);
}

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

int bitexport_compute_fused(const ggml_cgraph * graph, int index, const ggml_compute_params * params) {
    if (!wanted().ours()) {
        return 0;
    }
    const ggml_tensor * node = graph->nodes[index];
    switch (node->op) {
        case GGML_OP_ROPE: return compute_pair(graph, index, params, ggml_compute_forward_rope);
        case GGML_OP_SET_ROWS: return compute_pair(graph, index, params, ggml_compute_forward_set_rows);
        case GGML_OP_RMS_NORM: break;
        case GGML_OP_MUL_MAT:
            if (bitexport_multiplies_one_token(node)) {
                break;
            }
            return 0;
        default: return 0;
    }
    const Step step = match(graph, index);
    if (step.count == 0) {
        return 0;
    }
    compute(step, params);
    return joined(graph, index, step.last, params);
}

void bitexport_order_graph(ggml_backend_t, ggml_cgraph * graph, ggml_backend_graph_optimize_params * params) {
    if (wanted().ours()) {
        order_products(graph);
        keep_rotated_apart(graph, *params);
    }
}

uint64_t bitexport_nodes_joined(void) {
    return nodes_joined.load(std::memory_order_relaxed);
}

const char * bitexport_graph_error(void) {
    return wanted().error();
}
