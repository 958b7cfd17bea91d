// Attention over the paged cache.
//
// A block of a KV head holds its keys as [head_dim][block_size], so that a vector has one element
// of sixteen tokens and scores need no sums across lanes, and its values as [block_size][head_dim].
//
// A context is worked through in stretches of `STRETCH` positions from its beginning. Each has its
// own greatest score, sum and mix, and these are merged in order: what a query gets does not depend
// on which queries are computed beside it, nor on how stretches are shared out.
#pragma once

#include "simd.h"
#include "team.h"

#include <algorithm>
#include <vector>

namespace quire {

constexpr int STRETCH = 256;
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

extern "C" {

// One step: rows flattened along the token axis, as `kernels.batch` has them.
struct QuireStep {
    int64_t num_tokens, num_rows;
    const int32_t* token_ids;    // [num_tokens]
    const int32_t* cu_seqlens;   // [num_rows + 1]
    const int32_t* seq_lens;     // [num_rows]
    const int32_t* block_tables; // [num_rows][table_width]
    int64_t table_width;
};

struct QuireScoring {
    float scale;
    float softcap;  // 0 for none
    int64_t window; // positions that a token sees; 0 for all
};

struct QuireHeads {
    int64_t query, kv, head_dim, block_size;
};
}

// The mix of one stretch, or of all so far, for one query.
struct Mix {
    float greatest = NOTHING;
    float weight = 0.0f;
};

// into ← into and one more, whose greatest score, weight and values are given.
inline void merge(Mix& into, float* values, const Mix& one, const float* more, int64_t head_dim) {
    if (one.greatest == NOTHING)
        return;
    const float greatest = std::max(into.greatest, one.greatest);
    const float old_share = std::exp(into.greatest - greatest);
    const float new_share = std::exp(one.greatest - greatest);
    for (int64_t d = 0; d < head_dim; ++d)
        values[d] = values[d] * old_share + more[d] * new_share;
    into.weight = into.weight * old_share + one.weight * new_share;
    into.greatest = greatest;
}

// Some queries of one row and one KV head.
struct Queries {
    const float* first; // of the first token's first head
    int64_t stride;     // floats from one token's queries to the next's
    int64_t position;   // of the first token
    int64_t tokens;
    int64_t group; // heads of a token
    int64_t count() const { return tokens * group; }
    const float* at(int64_t query, int64_t head_dim) const {
        return first + query / group * stride + query % group * head_dim;
    }
    int64_t position_of(int64_t query) const { return position + query / group; }
};

// Memory that a member needs for its queries, [queries][...].
struct Scratch {
    std::vector<float> scores, mixed, values;
    std::vector<Mix> mixes, totals;
    void fit(int64_t queries, int64_t head_dim) {
        scores.resize(queries * STRETCH);
        mixed.resize(queries * head_dim);
        values.resize(queries * head_dim);
        mixes.resize(queries);
        totals.assign(queries, Mix{});
    }
};

template <class Stored> class PagedHead {
  public:
    PagedHead(const Stored* keys, const Stored* values, const int32_t* table,
              const QuireHeads& heads, int64_t kv_head)
        : keys_(keys), values_(values), table_(table), head_dim_(heads.head_dim),
          block_size_(heads.block_size), kv_heads_(heads.kv), kv_head_(kv_head) {}

    // Sixteen tokens from this position on, which is a multiple of sixteen: of their keys, vectors
    // follow at a distance of block_size.
    const Stored* keys_at(int64_t position) const {
        return block(keys_, position) + position % block_size_;
    }

    const Stored* values_at(int64_t position) const {
        return block(values_, position) + position % block_size_ * head_dim_;
    }

  private:
    const Stored* block(const Stored* cache, int64_t position) const {
        const int64_t index = table_[position / block_size_] * kv_heads_ + kv_head_;
        return cache + index * block_size_ * head_dim_;
    }

    const Stored *keys_, *values_;
    const int32_t* table_;
    int64_t head_dim_, block_size_, kv_heads_, kv_head_;
};

// Products of QUERIES queries with SETS times sixteen keys.
template <class Stored, int QUERIES, int SETS>
INLINE void score_tile(const PagedHead<Stored>& head, const QuireHeads& heads,
                       const Queries& queries, int64_t query, int64_t start, int64_t position,
                       int64_t end, float* scores) {
    const Stored *keys[SETS], *next[SETS];
    const float* q[QUERIES];
    EACH (s, SETS) {
        keys[s] = head.keys_at(position + s * LANES);
        // Blocks lie anywhere: the processor cannot guess the next, the table knows it. After the
        // last keys come the first values.
        const int64_t later = position + (SETS + s) * LANES, first = start + s * LANES;
        next[s] = later < end ? head.keys_at(later) : head.values_at(first < end ? first : start);
    }
    EACH (i, QUERIES)
        q[i] = queries.at(query + i, heads.head_dim);
    Floats products[QUERIES][SETS] = {};
    for (int64_t d = 0; d < heads.head_dim; ++d) {
        Floats key[SETS];
        EACH (s, SETS) {
            key[s] = load(keys[s] + d * heads.block_size);
            if (d * heads.block_size * sizeof(Stored) % 64 == 0)
                __builtin_prefetch(next[s] + d * heads.block_size);
        }
        EACH (i, QUERIES)
            EACH (s, SETS)
                products[i][s] += q[i][d] * key[s];
    }
    EACH (i, QUERIES)
        EACH (s, SETS)
            store(scores + i * STRETCH + s * LANES, products[i][s]);
}

template <class Stored, int QUERIES>
inline void score(const PagedHead<Stored>& head, const QuireHeads& heads, const Queries& queries,
                  int64_t query, int64_t start, int64_t end, float* scores) {
    int64_t at = start;
    for (; end - at > 3 * LANES; at += 4 * LANES)
        score_tile<Stored, QUERIES, 4>(head, heads, queries, query, start, at, end,
                                       scores + at - start);
    for (; at < end; at += LANES)
        score_tile<Stored, QUERIES, 1>(head, heads, queries, query, start, at, end,
                                       scores + at - start);
}

// Scores to weights, within one stretch; positions that the query does not see weigh nothing.
inline Mix weigh(float* scores, int64_t start, int64_t end, int64_t position,
                 const QuireScoring& scoring) {
    const int64_t first = scoring.window > 0 ? position - scoring.window + 1 : 0;
    const int64_t length = (end - start + LANES - 1) / LANES * LANES;
    Floats most = broadcast(NOTHING);
    Ints at;
    for (int lane = 0; lane < LANES; ++lane)
        at[lane] = (int32_t)(start + lane);
    for (int64_t i = 0; i < length; i += LANES, at += LANES) {
        Floats scaled = load(scores + i) * scoring.scale;
        if (scoring.softcap > 0)
            scaled = scoring.softcap * tanh(scaled / scoring.softcap);
        const Ints seen = (at <= (int32_t)position) & (at >= (int32_t)first);
        scaled = seen ? scaled : broadcast(NOTHING);
        store(scores + i, scaled);
        most = maximum(most, scaled);
    }
    Mix mix;
    mix.greatest = greatest(most);
    if (mix.greatest == NOTHING) {
        std::fill(scores, scores + length, 0.0f);
        return mix;
    }
    Floats weights = {};
    for (int64_t i = 0; i < length; i += LANES) {
        const Floats weight = exp(load(scores + i) - mix.greatest);
        store(scores + i, weight);
        weights += weight;
    }
    mix.weight = sum(weights);
    return mix;
}

// mixed[i] = Σ weights[i] · values, over the stretch; CHUNKS vectors of a head at a time.
template <class Stored, int QUERIES, int CHUNKS>
INLINE void mix_tile(const PagedHead<Stored>& head, int64_t head_dim, int64_t start, int64_t end,
                     const float* weights, int64_t from, float* mixed) {
    constexpr int64_t AHEAD = 3 * LANES; // the first of them were fetched with the keys
    Floats sums[QUERIES][CHUNKS] = {};
    for (int64_t at = start; at < end; at += LANES) {
        const Stored* values = head.values_at(at) + from;
        const Stored* next = head.values_at(at + AHEAD < end ? at + AHEAD : at) + from;
        const int64_t tokens = std::min<int64_t>(LANES, end - at);
        for (int64_t token = 0; token < tokens; ++token) {
            Floats value[CHUNKS];
            EACH (c, CHUNKS) {
                value[c] = load(values + token * head_dim + c * LANES);
                if (c * LANES * sizeof(Stored) % 64 == 0)
                    __builtin_prefetch(next + token * head_dim + c * LANES);
            }
            EACH (i, QUERIES)
                EACH (c, CHUNKS)
                    sums[i][c] += weights[i * STRETCH + at - start + token] * value[c];
        }
    }
    EACH (i, QUERIES)
        EACH (c, CHUNKS)
            store(mixed + i * head_dim + from + c * LANES, sums[i][c]);
}

template <class Stored, int QUERIES>
inline void mix(const PagedHead<Stored>& head, int64_t head_dim, int64_t start, int64_t end,
                const float* weights, float* mixed) {
    int64_t from = 0;
    for (; head_dim - from >= 4 * LANES; from += 4 * LANES)
        mix_tile<Stored, QUERIES, 4>(head, head_dim, start, end, weights, from, mixed);
    for (; head_dim - from >= LANES; from += LANES)
        mix_tile<Stored, QUERIES, 1>(head, head_dim, start, end, weights, from, mixed);
    for (; from < head_dim; ++from)
        EACH (i, QUERIES) {
            float total = 0.0f;
            for (int64_t at = start; at < end; ++at)
                total += weights[i * STRETCH + at - start] * value(head.values_at(at)[from]);
            mixed[i * head_dim + from] = total;
        }
}

// One stretch, [start, end): mixes of the queries, and their values.
template <class Stored>
inline void attend_stretch(const PagedHead<Stored>& head, const QuireHeads& heads,
                           const QuireScoring& scoring, const Queries& queries, int64_t start,
                           int64_t end, float* scores, Mix* mixes, float* mixed) {
    const int64_t count = queries.count(), head_dim = heads.head_dim;
    int64_t i = 0;
    for (; count - i >= 4; i += 4)
        score<Stored, 4>(head, heads, queries, i, start, end, scores + i * STRETCH);
    for (; count - i >= 3; i += 3)
        score<Stored, 3>(head, heads, queries, i, start, end, scores + i * STRETCH);
    for (; i < count; ++i)
        score<Stored, 1>(head, heads, queries, i, start, end, scores + i * STRETCH);
    for (i = 0; i < count; ++i)
        mixes[i] = weigh(scores + i * STRETCH, start, end, queries.position_of(i), scoring);
    for (i = 0; count - i >= 4; i += 4)
        mix<Stored, 4>(head, head_dim, start, end, scores + i * STRETCH, mixed + i * head_dim);
    for (; count - i >= 3; i += 3)
        mix<Stored, 3>(head, head_dim, start, end, scores + i * STRETCH, mixed + i * head_dim);
    for (; i < count; ++i)
        mix<Stored, 1>(head, head_dim, start, end, scores + i * STRETCH, mixed + i * head_dim);
}

// The first that some of these queries see.
inline int64_t first_stretch(const Queries& queries, const QuireScoring& scoring) {
    const int64_t first = scoring.window > 0 ? queries.position - scoring.window + 1 : 0;
    return std::max<int64_t>(first, 0) / STRETCH;
}

// The mixes of all stretches, one after the other, and what they come to.
class Merged {
  public:
    Merged(Scratch& scratch, const Queries& queries, int64_t head_dim)
        : scratch_(scratch), queries_(queries), head_dim_(head_dim) {
        scratch.fit(queries.count(), head_dim);
        std::fill(scratch.values.begin(), scratch.values.end(), 0.0f);
    }

    void add(const Mix* mixes, const float* mixed) {
        for (int64_t i = 0; i < queries_.count(); ++i)
            merge(scratch_.totals[i], &scratch_.values[i * head_dim_], mixes[i],
                  mixed + i * head_dim_, head_dim_);
    }

    void give(float* out, int64_t stride) const {
        for (int64_t i = 0; i < queries_.count(); ++i) {
            float* to = out + i / queries_.group * stride + i % queries_.group * head_dim_;
            for (int64_t d = 0; d < head_dim_; ++d)
                to[d] = scratch_.values[i * head_dim_ + d] / scratch_.totals[i].weight;
        }
    }

  private:
    Scratch& scratch_;
    const Queries& queries_;
    int64_t head_dim_;
};

// Items of a phase: some tokens of one row, with one KV head.
struct AttentionItem {
    int32_t row, token, tokens, kv_head;
};

// Tokens of an item, at most: as many as have 24 queries, whose scores fit into the first cache.
inline int64_t item_tokens(const QuireHeads& heads) {
    return std::max<int64_t>(1, 24 / (heads.query / heads.kv));
}

inline std::vector<AttentionItem> attention_items(const QuireStep& step, const QuireHeads& heads) {
    const int64_t each = item_tokens(heads);
    std::vector<AttentionItem> items;
    for (int64_t row = 0; row < step.num_rows; ++row)
        for (int64_t at = step.cu_seqlens[row]; at < step.cu_seqlens[row + 1]; at += each)
            for (int64_t kv_head = 0; kv_head < heads.kv; ++kv_head)
                items.push_back({(int32_t)row, (int32_t)at,
                                 (int32_t)std::min(each, step.cu_seqlens[row + 1] - at),
                                 (int32_t)kv_head});
    // The longest come first, so that none is left for one member at the end.
    std::stable_sort(items.begin(), items.end(),
                     [&](const AttentionItem& a, const AttentionItem& b) {
                         const auto work = [&](const AttentionItem& item) {
                             return (int64_t)item.tokens * step.seq_lens[item.row];
                         };
                         return work(a) > work(b);
                     });
    return items;
}

// One stretch of an item.
struct AttentionPart {
    int32_t item, stretch;
};

// Attention of one layer; a phase of items, or of parts and then of items where items are few.
template <class Stored> class PagedAttention {
  public:
    // qkv: [tokens][(query + 2 · kv) · head_dim]; out: [tokens][query · head_dim].
    PagedAttention(const QuireStep& step, const QuireHeads& heads, const QuireScoring& scoring,
                   const float* qkv, const Stored* keys, const Stored* values, float* out)
        : step_(step), heads_(heads), scoring_(scoring), qkv_(qkv), keys_(keys), values_(values),
          out_(out) {}

    void attend(const AttentionItem& item, Scratch& scratch) const {
        const Queries queries = queries_of(item);
        const PagedHead<Stored> head = head_of(item);
        Merged merged(scratch, queries, heads_.head_dim);
        for (int64_t at = first_stretch(queries, scoring_); at * STRETCH < end_of(queries); ++at) {
            attend_stretch(head, heads_, scoring_, queries, at * STRETCH, end_of(queries, at),
                           scratch.scores.data(), scratch.mixes.data(), scratch.mixed.data());
            merged.add(scratch.mixes.data(), scratch.mixed.data());
        }
        merged.give(out_of(item), heads_.query * heads_.head_dim);
    }

    // One stretch of an item, for `merge`.
    void attend_part(const AttentionItem& item, int64_t at, Scratch& scratch, Mix* mixes,
                     float* mixed) const {
        const Queries queries = queries_of(item);
        scratch.fit(queries.count(), heads_.head_dim);
        if (at < first_stretch(queries, scoring_))
            std::fill(mixes, mixes + queries.count(), Mix{});
        else
            attend_stretch(head_of(item), heads_, scoring_, queries, at * STRETCH,
                           end_of(queries, at), scratch.scores.data(), mixes, mixed);
    }

    // All of an item's stretches, which are `width` mixes apart.
    void merge(const AttentionItem& item, int64_t width, const Mix* mixes, const float* mixed,
               Scratch& scratch) const {
        const Queries queries = queries_of(item);
        Merged merged(scratch, queries, heads_.head_dim);
        for (int64_t at = 0; at * STRETCH < end_of(queries); ++at)
            merged.add(mixes + at * width, mixed + at * width * heads_.head_dim);
        merged.give(out_of(item), heads_.query * heads_.head_dim);
    }

  private:
    static int64_t end_of(const Queries& queries) { return queries.position + queries.tokens; }

    static int64_t end_of(const Queries& queries, int64_t stretch) {
        return std::min<int64_t>(end_of(queries), (stretch + 1) * STRETCH);
    }

    Queries queries_of(const AttentionItem& item) const {
        const int64_t stride = (heads_.query + 2 * heads_.kv) * heads_.head_dim;
        const int64_t behind = step_.cu_seqlens[item.row + 1] - item.token;
        return {qkv_ + item.token * stride + first_head(item), stride,
                step_.seq_lens[item.row] - behind, item.tokens, heads_.query / heads_.kv};
    }

    PagedHead<Stored> head_of(const AttentionItem& item) const {
        return {keys_, values_, step_.block_tables + item.row * step_.table_width, heads_,
                item.kv_head};
    }

    float* out_of(const AttentionItem& item) const {
        return out_ + item.token * heads_.query * heads_.head_dim + first_head(item);
    }

    int64_t first_head(const AttentionItem& item) const {
        return item.kv_head * (heads_.query / heads_.kv) * heads_.head_dim;
    }

    const QuireStep& step_;
    const QuireHeads& heads_;
    const QuireScoring& scoring_;
    const float* qkv_;
    const Stored *keys_, *values_;
    float* out_;
};

} // namespace quire
