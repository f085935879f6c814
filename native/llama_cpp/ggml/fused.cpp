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
// Every thread norms and quantizes the token for itself, which takes less time than a barrier, and takes panels from a
// queue; what is done element by element follows on the same rows. The sums of squares are added in another order than ggml's,
// in double precision; all else is computed as in the stock graph, to the bit.

#include "fused.h"

#include "ggml-cpu-impl.h"
#include "ops.h"
#include "sharing.h"
#include "steps.h"
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

// Panels [begin, end) of the products' matrices, counted through all of them.
void multiply_in_turn(const Step & step, const ternary::QuantizedBuffer & batch, int64_t begin, int64_t end) {
    for (int p = 0; p < step.count && begin < end; ++p) {
        const int64_t here = bitexport_panels(step.products[p]);
        if (begin < here) {
            bitexport_multiply_token(step.products[p], batch, begin, std::min(end, here));
        }
        begin = std::max<int64_t>(begin - here, 0);
        end -= here;
    }
}

// The same panels [begin, end) of each product, and the rows of the tail that follow from them.
void multiply_side_by_side(const Step & step, const ternary::QuantizedBuffer & batch, int64_t begin, int64_t end) {
    for (int p = 0; p < step.count; ++p) {
        bitexport_multiply_token(step.products[p], batch, begin, end);
    }
    compute_tail(step, begin * ternary::panel_rows, std::min(end * ternary::panel_rows, step.result->ne[0]));
}

void multiply(const Step & step, const ternary::QuantizedBuffer & batch, const ggml_compute_params * params) {
    const bool side_by_side = step.tail != Tail::none;
    int64_t    panels       = 0;
    for (int p = 0; p < (side_by_side ? 1 : step.count); ++p) {
        panels += bitexport_panels(step.products[p]);
    }
    WorkQueue queue(params, panels, panels_at_once, true);
    for (int64_t begin, end; queue.next(begin, end);) {
        (side_by_side ? multiply_side_by_side : multiply_in_turn)(step, batch, begin, end);
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

}  // namespace

bool bitexport_joins_nodes(void) {
    return wanted().ours();
}

int bitexport_compute_fused(const ggml_cgraph * graph, int index, const ggml_compute_params * params) {
    if (!bitexport_joins_nodes()) {
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
    const Step step = match_step(graph, index);
    if (step.count == 0) {
        return 0;
    }
    compute(step, params);
    return joined(graph, index, step.last, params);
}

uint64_t bitexport_nodes_joined(void) {
    return nodes_joined.load(std::memory_order_relaxed);
}

const char * bitexport_graph_error(void) {
    return wanted().error();
}
