// The layers of a decoder and its head, phase by phase.
#pragma once

#include "attention.h"
#include "linear.h"

#include <memory>

namespace quire {

extern "C" {

// RMSNorm; a weight of null is no norm at all.
struct QuireNorm {
    const float* weight;
    float eps;
};

// Angles of a rotary embedding: [positions][head_dim / 2] each.
struct QuireRope {
    const float *cosines, *sines;
};

enum Gate : int32_t { SILU, GELU_TANH };

// What a family leaves out is null: norms of heads, norms after attention and MLP.
struct QuireLayer {
    QuireNorm attention_norm, query_norm, key_norm, attended_norm, mlp_norm, product_norm;
    QuireLinear qkv, attended, gate_up, down;
    QuireScoring scoring;
    QuireRope rope;
};

struct QuireDecoder {
    int64_t hidden_size, intermediate_size, vocab_size, num_layers;
    QuireHeads heads;
    Gate gate;
    float logits_softcap; // 0 for none
    float embedding_scale;
    QuireMatrix embedding; // packed like all: a tied head is the same memory
    const QuireLayer* layers;
    QuireNorm norm;
    QuireLinear head;
};

// Of each layer; halved: floats of sixteen bits instead of 32.
struct QuireCache {
    int32_t halved;
    void* const* keys;
    void* const* values;
};
}

// Memory that grows to what the largest step needed.
class Workspace {
  public:
    struct Buffer {
        template <class T> T* of(int64_t count) {
            const size_t size = ((size_t)count * sizeof(T) + 63) / 64 * 64;
            if (size > size_) {
                memory_.reset((std::byte*)std::aligned_alloc(64, size));
                size_ = size;
            }
            return (T*)memory_.get();
        }

      private:
        struct Free {
            void operator()(std::byte* memory) const { std::free(memory); }
        };
        std::unique_ptr<std::byte, Free> memory_;
        size_t size_ = 0;
    };
    Buffer qkv, sublayer, wide, floats, codes, spans, mixes, mixed;
};

// Calls work(i, width) for every sixteen of `size`, and for what is left.
template <class Work> INLINE void sixteens(int64_t size, const Work& work) {
    int64_t i = 0;
    for (; size - i >= LANES; i += LANES)
        work(i, LANES);
    if (i < size)
        work(i, size - i);
}

inline void norm_row(const float* x, const QuireNorm& norm, int64_t size, float* out) {
    Floats squares = {};
    sixteens(size, [&](int64_t i, int64_t width) {
        const Floats part = load_part(x + i, width);
        squares += part * part;
    });
    const float scale = 1.0f / std::sqrt(sum(squares) / (float)size + norm.eps);
    sixteens(size, [&](int64_t i, int64_t width) {
        store_part(out + i, load_part(norm.weight + i, width) * (load_part(x + i, width) * scale),
                   width);
    });
}

// gate(g) · u of one row of gates and ups.
inline void gate_row(const float* gates, int64_t size, Gate gate, float* out) {
    const float* ups = gates + size;
    sixteens(size, [&](int64_t i, int64_t width) {
        const Floats g = load_part(gates + i, width);
        const Floats weight =
            gate == SILU ? g / (1.0f + exp(-g))
                         : 0.5f * g * (1.0f + tanh(0.79788456f * (g + 0.044715f * g * g * g)));
        store_part(out + i, weight * load_part(ups + i, width), width);
    });
}

// Pair (i, i + head_dim / 2) turns by angle i, in place.
inline void rotate_head(float* head, const float* cosines, const float* sines, int64_t head_dim) {
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; ++i) {
        const float low = head[i], high = head[i + half];
        head[i] = low * cosines[i] - high * sines[i];
        head[i + half] = high * cosines[i] + low * sines[i];
    }
}

class Pass {
  public:
    Pass(Team& team, const QuireDecoder& decoder, Workspace& space)
        : team_(team), decoder_(decoder), space_(space) {}

    // stream: [num_tokens][hidden_size], written: what the last norm reads.
    void layers(const QuireStep& step, const QuireCache& cache, float* stream) {
        const QuireHeads& heads = decoder_.heads;
        const int64_t tokens = step.num_tokens;
        const int64_t attended = heads.query * heads.head_dim;
        const int64_t projected = attended + 2 * heads.kv * heads.head_dim;
        qkv_ = space_.qkv.of<float>(tokens * projected);
        sublayer_ = space_.sublayer.of<float>(tokens * decoder_.hidden_size);
        wide_ = space_.wide.of<float>(tokens * 2 * decoder_.intermediate_size);
        reserve(tokens, std::max({decoder_.hidden_size, attended, decoder_.intermediate_size}));
        items_ = attention_items(step, heads);
        split(step);
        row_of_.resize(tokens);
        for (int64_t row = 0; row < step.num_rows; ++row)
            std::fill(row_of_.begin() + step.cu_seqlens[row],
                      row_of_.begin() + step.cu_seqlens[row + 1], row);
        team_.run([&] {
            Scratch scratch;
            team_.each((int)tokens, [&](int token) {
                float* row = stream + token * decoder_.hidden_size;
                unpack_row(decoder_.embedding, step.token_ids[token], decoder_.embedding_scale,
                           row);
            });
            for (int64_t index = 0; index < decoder_.num_layers; ++index)
                if (cache.halved)
                    layer(decoder_.layers[index], step, (Half*)cache.keys[index],
                          (Half*)cache.values[index], stream, scratch);
                else
                    layer(decoder_.layers[index], step, (float*)cache.keys[index],
                          (float*)cache.values[index], stream, scratch);
        });
    }

    // hidden: [tokens][hidden_size]; rows: [count], which of them; normed already or not.
    void head(const float* hidden, const int64_t* rows, int64_t count, bool is_normed,
              float* logits) {
        const int64_t size = decoder_.hidden_size;
        reserve(count, size);
        team_.run([&] {
            prepare(decoder_.head, count, size, [&](int64_t row, float* out) {
                const float* from = hidden + rows[row] * size;
                if (is_normed)
                    std::memcpy(out, from, size * sizeof(float));
                else
                    norm_row(from, decoder_.norm, size, out);
            });
            multiply_all(team_, decoder_.head, input(decoder_.head, size), count,
                         {logits, decoder_.vocab_size, false});
            if (decoder_.logits_softcap > 0)
                team_.each((int)count, [&](int row) { cap(logits + row * decoder_.vocab_size); });
        });
    }

    // In place, of [count][hidden_size].
    void norm(float* hidden, int64_t count) {
        const int64_t size = decoder_.hidden_size;
        team_.run([&] {
            team_.each((int)count, [&](int row) {
                norm_row(hidden + row * size, decoder_.norm, size, hidden + row * size);
            });
        });
    }

  private:
    void reserve(int64_t rows, int64_t columns) {
        floats_ = space_.floats.of<float>(rows * columns);
        const int64_t quads = (rows + QUAD - 1) / QUAD;
        codes_ = space_.codes.of<int8_t>(quads * QUAD * columns * MOST_TERMS);
        spans_ = space_.spans.of<Span>(quads * (columns / SPAN));
    }

    Activations input(const QuireLinear& linear, int64_t columns) const {
        return {columns, floats_, codes_, spans_, linear.terms};
    }

    // Makes the activations that a product reads; make(row, out) gives one row in floats.
    template <class Make>
    void prepare(const QuireLinear& linear, int64_t count, int64_t columns, const Make& make) {
        bool rounds = false;
        for (int64_t part = 0; part < linear.count; ++part)
            rounds |= has_codes(linear.parts[part]);
        const int each = rounds ? QUAD : 1;
        team_.each((int)((count + each - 1) / each), [&](int item) {
            const int64_t first = item * each, rows = std::min<int64_t>(each, count - first);
            float* made[QUAD];
            for (int64_t r = 0; r < rows; ++r) {
                made[r] = floats_ + (first + r) * columns;
                make(first + r, made[r]);
            }
            if (rounds && linear.terms == 1)
                round_quad<1>(made, (int)rows, first, input(linear, columns));
            else if (rounds)
                round_quad<2>(made, (int)rows, first, input(linear, columns));
        });
    }

    template <class Stored>
    void layer(const QuireLayer& layer, const QuireStep& step, Stored* keys, Stored* values,
               float* stream, Scratch& scratch) {
        const QuireHeads& heads = decoder_.heads;
        const int64_t tokens = step.num_tokens, size = decoder_.hidden_size;
        const int64_t attended = heads.query * heads.head_dim;
        prepare(layer.qkv, tokens, size, [&](int64_t row, float* out) {
            norm_row(stream + row * size, layer.attention_norm, size, out);
        });
        multiply_all(team_, layer.qkv, input(layer.qkv, size), tokens,
                     {qkv_, layer.qkv.rows, false});
        team_.each((int)tokens,
                   [&](int token) { rotate_and_store(layer, step, token, keys, values); });
        attend(PagedAttention<Stored>(step, heads, layer.scoring, qkv_, keys, values, floats_),
               scratch);
        prepare(layer.attended, tokens, attended, [](int64_t, float*) {}); // they are there
        add_product(layer.attended, attended, tokens, layer.attended_norm, stream);
        prepare(layer.gate_up, tokens, size, [&](int64_t row, float* out) {
            norm_row(stream + row * size, layer.mlp_norm, size, out);
        });
        multiply_all(team_, layer.gate_up, input(layer.gate_up, size), tokens,
                     {wide_, layer.gate_up.rows, false});
        const int64_t width = decoder_.intermediate_size;
        prepare(layer.down, tokens, width, [&](int64_t row, float* out) {
            gate_row(wide_ + row * 2 * width, width, decoder_.gate, out);
        });
        add_product(layer.down, width, tokens, layer.product_norm, stream);
    }

    // Few items and long contexts: members share out stretches of them, too.
    void split(const QuireStep& step) {
        constexpr int64_t ENOUGH = 4;
        const int64_t longest = *std::max_element(step.seq_lens, step.seq_lens + step.num_rows);
        parts_.clear();
        if ((int64_t)items_.size() >= ENOUGH * team_.size() || longest <= STRETCH)
            return;
        stretches_ = (longest + STRETCH - 1) / STRETCH;
        for (int32_t index = 0; index < (int32_t)items_.size(); ++index) {
            const AttentionItem& item = items_[index];
            const int64_t behind = step.cu_seqlens[item.row + 1] - item.token - item.tokens;
            for (int32_t at = 0; at * STRETCH < step.seq_lens[item.row] - behind; ++at)
                parts_.push_back({index, at});
        }
        const int64_t mixes = (int64_t)items_.size() * stretches_ * item_queries();
        mixes_ = space_.mixes.of<Mix>(mixes);
        mixed_ = space_.mixed.of<float>(mixes * decoder_.heads.head_dim);
    }

    int64_t item_queries() const {
        const QuireHeads& heads = decoder_.heads;
        return item_tokens(heads) * (heads.query / heads.kv);
    }

    template <class Stored> void attend(const PagedAttention<Stored>& attention, Scratch& scratch) {
        if (parts_.empty())
            return team_.each((int)items_.size(),
                              [&](int item) { attention.attend(items_[item], scratch); });
        const int64_t width = item_queries(), dim = decoder_.heads.head_dim;
        team_.each((int)parts_.size(), [&](int part) {
            const AttentionPart& one = parts_[part];
            const int64_t at = (one.item * stretches_ + one.stretch) * width;
            attention.attend_part(items_[one.item], one.stretch, scratch, mixes_ + at,
                                  mixed_ + at * dim);
        });
        team_.each((int)items_.size(), [&](int item) {
            const int64_t at = item * stretches_ * width;
            attention.merge(items_[item], width, mixes_ + at, mixed_ + at * dim, scratch);
        });
    }

    // stream += product, or its norm where the family has one.
    void add_product(const QuireLinear& linear, int64_t columns, int64_t tokens,
                     const QuireNorm& norm, float* stream) {
        const int64_t size = decoder_.hidden_size;
        if (norm.weight == nullptr)
            return multiply_all(team_, linear, input(linear, columns), tokens,
                                {stream, size, true});
        multiply_all(team_, linear, input(linear, columns), tokens, {sublayer_, size, false});
        team_.each((int)tokens, [&](int token) {
            float* made = sublayer_ + token * size;
            norm_row(made, norm, size, made);
            for (int64_t i = 0; i < size; ++i)
                stream[token * size + i] += made[i];
        });
    }

    template <class Stored>
    void rotate_and_store(const QuireLayer& layer, const QuireStep& step, int64_t token,
                          Stored* keys, Stored* values) {
        const QuireHeads& heads = decoder_.heads;
        const int64_t dim = heads.head_dim, size = heads.block_size;
        const int64_t row = row_of_[token];
        const int64_t position = step.seq_lens[row] - (step.cu_seqlens[row + 1] - token);
        const int64_t block = step.block_tables[row * step.table_width + position / size];
        const float* cosines = layer.rope.cosines + position * (dim / 2);
        const float* sines = layer.rope.sines + position * (dim / 2);
        float* head = qkv_ + token * layer.qkv.rows;
        for (int64_t i = 0; i < heads.query + heads.kv; ++i, head += dim) {
            const QuireNorm& norm = i < heads.query ? layer.query_norm : layer.key_norm;
            if (norm.weight != nullptr)
                norm_row(head, norm, dim, head);
            rotate_head(head, cosines, sines, dim);
        }
        const float* key = head - heads.kv * dim;
        const float* value = head;
        for (int64_t i = 0; i < heads.kv; ++i, key += dim, value += dim) {
            Stored* block_keys = keys + (block * heads.kv + i) * dim * size + position % size;
            Stored* token_values = values + ((block * heads.kv + i) * size + position % size) * dim;
            sixteens(dim, [&](int64_t d, int64_t width) {
                Stored stored[LANES];
                put(stored, load_part(value + d, width));
                std::memcpy(token_values + d, stored, width * sizeof(Stored));
                put(stored, load_part(key + d, width));
                for (int64_t lane = 0; lane < width; ++lane)
                    block_keys[(d + lane) * size] = stored[lane];
            });
        }
    }

    void cap(float* logits) const {
        const float softcap = decoder_.logits_softcap;
        sixteens(decoder_.vocab_size, [&](int64_t i, int64_t width) {
            const Floats part = load_part(logits + i, width);
            store_part(logits + i, softcap * tanh(part / softcap), width);
        });
    }

    Team& team_;
    const QuireDecoder& decoder_;
    Workspace& space_;
    std::vector<AttentionItem> items_;
    std::vector<AttentionPart> parts_;
    int64_t stretches_ = 0;
    Mix* mixes_ = nullptr;
    float* mixed_ = nullptr;
    std::vector<int64_t> row_of_;
    float *qkv_ = nullptr, *sublayer_ = nullptr, *wide_ = nullptr;
    float* floats_ = nullptr;
    int8_t* codes_ = nullptr;
    Span* spans_ = nullptr;
};

} // namespace quire
