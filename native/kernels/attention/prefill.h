// Prefill, once for every instruction set: passes over the context in blocks, with online softmax in float32.
//
// What is computed for one query of one head is a row; rows lie in the lanes of vectors, so that maxima, sums and factors of
// softmax need no step across lanes. `Products` knows how the two matrix products are computed:
//
//   Isa                                    the vector of floats, see softmax.h
//   lanes, keys                            rows in a group, and positions in a block
//   query_bytes(dim), key_bytes(dim), value_bytes(dim), weight_bytes()    sizes of what it packs
//   pack_queries(rows, dim, factor, to)    `lanes` rows of floats times factor; nullptr: zeros
//   pack_keys(from, stride, seen, dim, to), pack_values(...)    `keys` rows of float16s; zeros where seen is false
//   scores(queries, keys, dim, begin, end, to)     to[key][lane] for keys [begin, end), some more around them may be written
//   put_weights(weights, key, vector, a, b)        the weights of keys `key` (even) and `key` + 1, of one vector of lanes
//   gather(values, weights, dim, begin, end, sums) adds weights times values to sums[d][lane]; begin and end are even;
//                                                  weights around them have no meaning, and may be overwritten
//   Session                                an object that lives as long as a piece: state of the processor
//
// Scores are kept in units of log2(e), so that a weight is a power of two.
#pragma once

#include "layout.h"
#include "softmax.h"

namespace attention {
namespace {

constexpr uint16_t half_hidden = 0xfc00;  // -infinity

constexpr size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

// What a query sees of a block: positions [begin, end) at most, all of them with mask 0 unless mixed.
struct Sight {
    int64_t begin, end;
    bool mixed;
};

// `seen` collects the positions that any query sees.
template <int64_t Keys>
Sight look(const uint16_t * mask, int64_t count, uint8_t * __restrict seen) {
    uint16_t visible = 0, biased = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint16_t differs = static_cast<uint16_t>(mask[i] ^ half_hidden);
        visible = static_cast<uint16_t>(visible | differs);
        biased = static_cast<uint16_t>(biased | mask[i] << 1);
        seen[i] = static_cast<uint8_t>(seen[i] | (differs != 0));
    }
    if (visible == 0) {
        return {Keys, 0, false};
    }
    if (biased == 0) {
        return {0, count, false};
    }
    Sight sight{0, count, true};
    while (mask[sight.begin] == half_hidden) {
        ++sight.begin;
    }
    while (mask[sight.end - 1] == half_hidden) {
        --sight.end;
    }
    return sight;
}

template <class Products>
struct Prefill {
    using Isa = typename Products::Isa;
    using Vector = typename Isa::Vector;
    static constexpr int64_t lanes = Products::lanes, keys = Products::keys, vectors = lanes / Isa::width;

    // Rows of a piece: their queries and results stay in the second-level cache.
    static int64_t most_rows(int64_t head_dim) {
        const int64_t fitting = Products::cached_floats / head_dim / lanes * lanes;
        return fitting < Products::rows_limit ? fitting : Products::rows_limit;
    }

    // One group of `lanes` rows.
    struct Group {
        char * queries;   // packed
        float * results;  // [head_dim][lanes], before the division by the sums
        float * largest;  // [lanes]; the running largest score, or one that is less by up to `slack`
        float * sums;     // [lanes]
    };

    // The memory of a piece, one part behind the other.
    struct Scratch {
        const int64_t dim;
        uintptr_t next;

        Scratch(int64_t head_dim, void * memory) : dim(head_dim), next(whole_lines(reinterpret_cast<uintptr_t>(memory))) {}

        template <class T>
        T * take(size_t bytes) {
            T * const part = reinterpret_cast<T *>(next);
            next += whole_lines(bytes);
            return part;
        }
        Group group() {
            return {take<char>(Products::query_bytes(dim)), take<float>(dim * lanes * sizeof(float)),
                    take<float>(lanes * sizeof(float)), take<float>(lanes * sizeof(float))};
        }
    };

    struct Block {
        char * keys;     // packed
        char * values;   // packed
        char * weights;  // of one group
        float * scores;  // [keys][lanes] of one group
        float * mask;    // likewise
        Sight * sights;  // of each query
        uint8_t * seen;  // [keys]
    };

    static Block block_in(Scratch & scratch) {
        Block block;
        block.keys = scratch.template take<char>(Products::key_bytes(scratch.dim));
        block.values = scratch.template take<char>(Products::value_bytes(scratch.dim));
        block.weights = scratch.template take<char>(Products::weight_bytes());
        block.scores = scratch.template take<float>(keys * lanes * sizeof(float));
        block.mask = scratch.template take<float>(keys * lanes * sizeof(float));
        block.sights = scratch.template take<Sight>(most_rows(scratch.dim) * sizeof(Sight));
        block.seen = scratch.template take<uint8_t>(keys);
        return block;
    }

    static size_t scratch_bytes(int64_t head_dim) {
        Scratch scratch(head_dim, nullptr);
        block_in(scratch);
        for (int64_t i = 0; i < most_rows(head_dim) / lanes; ++i) {
            scratch.group();
        }
        return scratch.next + 64;  // to the first whole line
    }

    // A piece's rows: query after query, of each one head after the other.
    struct Rows {
        const Prompt & prompt;
        const Piece & piece;

        int64_t heads() const { return piece.head_end - piece.head_begin; }
        int64_t queries() const { return piece.query_end - piece.query_begin; }
        int64_t count() const { return heads() * queries(); }
        int64_t query(int64_t row) const { return row / heads(); }  // counted from query_begin
        int64_t head(int64_t row) const { return piece.head_begin + row % heads(); }

        const float * q(int64_t row) const {
            return prompt.q + head(row) * prompt.q_head_stride + (piece.query_begin + query(row)) * prompt.q_query_stride;
        }
        float * out(int64_t row) const {
            return prompt.out + head(row) * prompt.head_dim + (piece.query_begin + query(row)) * prompt.out_query_stride;
        }
        const uint16_t * mask(int64_t query) const {
            return prompt.mask + (piece.query_begin + query) * prompt.mask_stride;
        }
    };

    static void begin(const Rows & rows, int64_t first_row, const Group & group) {
        constexpr float log2_e = 1.44269504f;
        const float * sources[lanes];
        for (int64_t i = 0; i < lanes; ++i) {
            sources[i] = first_row + i < rows.count() ? rows.q(first_row + i) : nullptr;
            group.largest[i] = lowest_score;
            group.sums[i] = 0.0f;
        }
        Products::pack_queries(sources, rows.prompt.head_dim, rows.prompt.scale * log2_e, group.queries);
        memset(group.results, 0, static_cast<size_t>(rows.prompt.head_dim * lanes) * sizeof(float));
    }

    // False if no query sees anything of the positions from `first` on.
    static bool look_at(const Rows & rows, int64_t first, int64_t count, const Block & block) {
        memset(block.seen, 0, keys);
        if (rows.prompt.mask == nullptr) {
            memset(block.seen, 1, static_cast<size_t>(count));
        }
        bool any = false;
        for (int64_t i = 0; i < rows.queries(); ++i) {
            block.sights[i] = rows.prompt.mask == nullptr ? Sight{0, count, false}
                                                          : look<keys>(rows.mask(i) + first, count, block.seen);
            any = any || block.sights[i].begin < block.sights[i].end;
        }
        return any;
    }

    static Sight sight_of(const Rows & rows, int64_t first_row, const Block & block) {
        const int64_t last_row = first_row + lanes < rows.count() ? first_row + lanes : rows.count();
        Sight all{keys, 0, false};
        for (int64_t i = rows.query(first_row); i <= rows.query(last_row - 1); ++i) {
            const Sight & one = block.sights[i];
            all.begin = one.begin < all.begin ? one.begin : all.begin;
            all.end = one.end > all.end ? one.end : all.end;
        }
        for (int64_t i = rows.query(first_row); i <= rows.query(last_row - 1); ++i) {
            const Sight & one = block.sights[i];
            all.mixed = all.mixed || one.mixed || one.begin > all.begin || one.end < all.end;
        }
        return all;
    }

    // block.mask for positions [sight.begin, sight.end) of the block
    static void read_mask(const Rows & rows, int64_t first_row, int64_t first, const Sight & sight, const Block & block) {
        const Vector log2_e = Isa::all(1.44269504f);
        for (int64_t lane = 0; lane < lanes; lane += Isa::width) {
            for (int64_t key = sight.begin / Isa::width * Isa::width; key < sight.end; key += Isa::width) {
                const int64_t left = rows.prompt.positions - first - key;
                const int64_t count = left < Isa::width ? left : Isa::width;
                Vector square[Isa::width];
                for (int64_t i = 0; i < Isa::width; ++i) {
                    const int64_t row = first_row + lane + i;
                    square[i] = row < rows.count() ? load_mask(rows.mask(rows.query(row)) + first + key, count)
                                                   : Isa::all(no_score);
                    square[i] = Isa::mul(square[i], log2_e);
                }
                Isa::transpose(square);
                for (int64_t i = 0; i < Isa::width; ++i) {
                    Isa::store(block.mask + (key + i) * lanes + lane, square[i]);
                }
            }
        }
    }

    static Vector load_mask(const uint16_t * from, int64_t count) {
        if (count == Isa::width) {
            return Isa::load_half(from);
        }
        uint16_t part[Isa::width] = {};  // what lies behind the last position is not ours
        memcpy(part, from, static_cast<size_t>(count) * sizeof(uint16_t));
        return Isa::load_half(part);
    }

    // Where a lane's scores exceed the largest so far by more than this, what was gathered is scaled anew; weights are 2^slack
    // at most.
    static constexpr float slack = 8.0f;

    // The largest score of each lane. False if no lane needs another scale.
    static bool raise(float * largest, Vector most, Vector & factor) {
        const Vector before = Isa::load(largest);
        const Vector limit = Isa::add(before, Isa::all(slack));
        if (!Isa::any_greater(most, limit)) {
            return false;
        }
        const Vector after = Isa::where_greater(most, limit, most, before);
        factor = power_of_two<Isa>(Isa::sub(before, after));
        Isa::store(largest, after);
        return true;
    }

    template <bool Mixed>
    static Vector score(const Block & block, int64_t at) {
        const Vector s = Isa::load(block.scores + at);
        return Mixed ? Isa::add(s, Isa::load(block.mask + at)) : s;
    }

    // From scores to weights, for one vector of lanes.
    template <bool Mixed>
    static void weigh(int64_t dim, const Group & group, const Sight & sight, const Block & block, int64_t vector) {
        const int64_t lane = vector * Isa::width;
        Vector even = Isa::all(no_score), odd = even;
        int64_t key = sight.begin;
        for (; key + 1 < sight.end; key += 2) {
            even = Isa::max(score<Mixed>(block, key * lanes + lane), even);
            odd = Isa::max(score<Mixed>(block, (key + 1) * lanes + lane), odd);
        }
        if (key < sight.end) {
            even = Isa::max(score<Mixed>(block, key * lanes + lane), even);
        }
        Vector sum = Isa::load(group.sums + lane), factor;
        if (raise(group.largest + lane, Isa::max(even, odd), factor)) {
            sum = Isa::mul(sum, factor);
            for (int64_t d = 0; d < dim; ++d) {
                float * const at = group.results + d * lanes + lane;
                Isa::store(at, Isa::mul(Isa::load(at), factor));
            }
        }
        const Vector largest = Isa::load(group.largest + lane);
        const auto weight = [&](int64_t of) {
            return power_of_two<Isa>(Isa::sub(score<Mixed>(block, of * lanes + lane), largest));
        };
        key = sight.begin;
        if (key % 2 != 0) {
            const Vector second = weight(key);
            sum = Isa::add(sum, second);
            Products::put_weights(block.weights, key - 1, vector, Isa::zero(), second);
            ++key;
        }
        for (; key + 1 < sight.end; key += 2) {
            const Vector first = weight(key), second = weight(key + 1);
            sum = Isa::add(Isa::add(sum, first), second);
            Products::put_weights(block.weights, key, vector, first, second);
        }
        if (key < sight.end) {
            const Vector first = weight(key);
            sum = Isa::add(sum, first);
            Products::put_weights(block.weights, key, vector, first, Isa::zero());
        }
        Isa::store(group.sums + lane, sum);
    }

    static void attend(const Rows & rows, int64_t first_row, int64_t first, const Group & group, const Block & block) {
        const Sight sight = sight_of(rows, first_row, block);
        if (sight.begin >= sight.end) {
            return;
        }
        const int64_t dim = rows.prompt.head_dim;
        Products::scores(group.queries, block.keys, dim, sight.begin, sight.end, block.scores);
        if (sight.mixed) {
            read_mask(rows, first_row, first, sight, block);
        }
        for (int64_t vector = 0; vector < vectors; ++vector) {
            sight.mixed ? weigh<true>(dim, group, sight, block, vector) : weigh<false>(dim, group, sight, block, vector);
        }
        Products::gather(block.values, block.weights, dim, sight.begin & ~int64_t{1}, (sight.end + 1) & ~int64_t{1},
                         group.results);
    }

    static void finish(const Rows & rows, int64_t first_row, const Group & group) {
        const int64_t dim = rows.prompt.head_dim;
        for (int64_t lane = 0; lane < lanes; lane += Isa::width) {
            float inverse[Isa::width];
            for (int64_t i = 0; i < Isa::width; ++i) {
                const float sum = group.sums[lane + i];
                inverse[i] = sum == 0.0f ? 0.0f : 1.0f / sum;
            }
            const Vector factor = Isa::load(inverse);
            for (int64_t d = 0; d < dim; d += Isa::width) {
                Vector square[Isa::width];
                for (int64_t i = 0; i < Isa::width; ++i) {
                    square[i] = Isa::mul(Isa::load(group.results + (d + i) * lanes + lane), factor);
                }
                Isa::transpose(square);
                for (int64_t i = 0; i < Isa::width && first_row + lane + i < rows.count(); ++i) {
                    Isa::store(rows.out(first_row + lane + i) + d, square[i]);
                }
            }
        }
    }

    static void run(const Prompt & prompt, const Piece & piece, void * memory) {
        [[maybe_unused]] const typename Products::Session session;
        const Rows rows{prompt, piece};
        Scratch scratch(prompt.head_dim, memory);
        const Block block = block_in(scratch);
        constexpr int64_t most_groups = Products::rows_limit / lanes;
        Group groups[most_groups];
        const int64_t count = (rows.count() + lanes - 1) / lanes;
        for (int64_t i = 0; i < count; ++i) {
            groups[i] = scratch.group();
            begin(rows, i * lanes, groups[i]);
        }
        const int64_t kv_head = piece.head_begin / (prompt.heads / prompt.kv_heads);
        const uint16_t * const k = prompt.k + kv_head * prompt.k_head_stride;
        const uint16_t * const v = prompt.v + kv_head * prompt.v_head_stride;
        for (int64_t first = 0; first < prompt.positions; first += keys) {
            const int64_t left = prompt.positions - first;
            if (!look_at(rows, first, left < keys ? left : keys, block)) {
                continue;
            }
            Products::pack_keys(k + first * prompt.k_position_stride, prompt.k_position_stride, block.seen,
                                prompt.head_dim, block.keys);
            Products::pack_values(v + first * prompt.v_position_stride, prompt.v_position_stride, block.seen,
                                  prompt.head_dim, block.values);
            for (int64_t i = 0; i < count; ++i) {
                attend(rows, i * lanes, first, groups[i], block);
            }
        }
        for (int64_t i = 0; i < count; ++i) {
            finish(rows, i * lanes, groups[i]);
        }
    }
};

}  // namespace
}  // namespace attention
