#include "self_test.h"

#include "ternary/self_test.h"

#include <cstring>
#include <vector>

namespace head {
namespace {

// A whole panel and one row more; a batch that every tier has a loop for (avx512amx uses tiles from 12 tokens on).
constexpr int64_t rows = panel_rows + 1, cols = block_cols, tokens = 13;
constexpr Type types[] = {Type::q4_k, Type::q5_k, Type::q6_k};

struct Numbers {
    uint32_t state = 2463534242u;
    uint32_t next() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        return state;
    }
};

// Any bytes are rows of a type, but for the float16s among them, which are made small and finite.
std::vector<uint8_t> random_rows(Type type) {
    Numbers numbers;
    std::vector<uint8_t> bytes(static_cast<size_t>(rows) * row_bytes(type, cols));
    for (uint8_t & byte : bytes) {
        byte = static_cast<uint8_t>(numbers.next() >> 24);
    }
    for (size_t row = 0; row < bytes.size(); row += row_bytes(type, cols)) {
        if (type == Type::q6_k) {
            bytes[row + 209] = 0x2c;
        } else {
            bytes[row + 1] = bytes[row + 3] = 0x2c;
        }
    }
    return bytes;
}

// What the kernels compute from; no destructor of it may run inside of the guarded call.
struct Problem {
    std::vector<uint8_t> packed[3];
    std::vector<uint8_t> activations;
    Batch batch;

    Problem() {
        for (const Type type : types) {
            std::vector<uint8_t> & to = packed[static_cast<int>(type)];
            to.resize(packed_bytes(type, rows, cols));
            repack(type, random_rows(type).data(), rows, cols, to.data(), 0, panel_count(rows));
        }
        activations.resize(static_cast<size_t>(tokens * token_blocks(cols) + 1) * sizeof(Activations));
        const auto address = reinterpret_cast<uintptr_t>(activations.data());
        auto * blocks = reinterpret_cast<Activations *>((address + alignof(Activations) - 1) / alignof(Activations) * alignof(Activations));
        Numbers numbers;
        std::vector<float> x(cols);
        for (int64_t token = 0; token < tokens; ++token) {
            for (float & value : x) {
                value = static_cast<float>(static_cast<int32_t>(numbers.next() >> 8) - (1 << 23)) * 0x1p-20f;
            }
            quantize(x.data(), cols, blocks + token * token_blocks(cols));
        }
        batch = {blocks, tokens};
    }
};

struct Computation {
    const Kernels & kernels;
    const Problem & problem;
    std::vector<float> y = std::vector<float>(3 * (tokens + 1) * rows);

    void run() {
        float * to = y.data();
        for (const Type type : types) {
            for (const int64_t count : {tokens, int64_t{1}}) {
                kernels.matmul(type, problem.packed[static_cast<int>(type)].data(), rows, cols, {problem.batch.blocks, count}, to, rows, 0,
                               panel_count(rows));
                to += count * rows;
            }
        }
    }
};

}  // namespace

std::string self_test(const Kernels & kernels) {
    const Problem problem;
    Computation tested{kernels, problem}, expected{*kernels_for("scalar"), problem};
    if (!ternary::runs_without_sigill([](void * context) { static_cast<Computation *>(context)->run(); }, &tested)) {
        return "execute an instruction that this machine refuses (SIGILL), although its CPU claims to have it";
    }
    expected.run();
    return std::memcmp(tested.y.data(), expected.y.data(), tested.y.size() * sizeof(float)) == 0 ? "" : "compute wrongly on this machine";
}

}  // namespace head
