// Products with weight matrices: in floats, or in codes that are multiplied as whole numbers.
//
// A matrix of N rows and K columns is packed into panels of sixteen rows, so that a vector holds a
// column of a panel and every lane gathers the sum of one output. Each output is summed in the
// order of K alone, however many rows of activations there are: a row's result does not depend on
// its neighbours, bit by bit.
//
// Codes meet activations of sixteen bits: x ≈ scale · q with one scale for 32 columns of one row.
// Sums within these columns are whole numbers, and exact; what rounding costs, 1 / 65534 of the
// greatest of 32, is less than what sixteen bits of a float lose anywhere else.
#pragma once

#include "simd.h"
#include "team.h"

#include <algorithm>

namespace quire {

// Columns of activations that share a scale.
constexpr int SPAN = 32;

extern "C" {

enum Kind : int32_t { FLOATS, HALVES, BFLOATS, CODES_4, CODES_8 };

// One packed matrix.
struct QuireMatrix {
    int64_t rows, columns;
    Kind kind;
    int32_t group;         // columns that share a scale: 16 or 32
    int32_t scales_halved; // whether scales and offsets have sixteen bits
    const void* values;    // [panels][columns][16], see `panel_words` for codes
    const void* scales;    // [panels][columns / group][16]
    const void* offsets;   // likewise; null for none
};

// Matrices of one input, one above the other.
struct QuireLinear {
    int64_t rows;
    int64_t count;
    const QuireMatrix* parts;
    const float* bias; // [rows]; null for none
};
}

// Rows of activations lie four together, so that a tile needs few addresses.
constexpr int QUAD = 4;

// What turns whole numbers back, for 32 columns of four rows.
struct Span {
    float scale[QUAD];
    float sum[QUAD];         // of the rounded values
    float half_sum[2][QUAD]; // of the first and of the last sixteen
};

// What products read of some rows of activations. Floats meet floats, codes meet codes.
struct Activations {
    int64_t columns = 0;
    const float* floats = nullptr; // [rows][columns]
    int16_t* codes = nullptr;      // [rows / 4][columns / 2][4][2]
    Span* spans = nullptr;         // [rows / 4][columns / 32]

    int16_t* codes_of(int64_t row) const {
        return codes + row / QUAD * columns * QUAD + row % QUAD * 2;
    }
    Span* spans_of(int64_t row) const { return spans + row / QUAD * (columns / SPAN); }
};

INLINE bool has_codes(const QuireMatrix& matrix) {
    return matrix.kind == CODES_4 || matrix.kind == CODES_8;
}

INLINE int64_t panels_of(const QuireMatrix& matrix) { return (matrix.rows + LANES - 1) / LANES; }

// Sixteen pairs of four rows, each in a vector, as they lie in memory: four rows of the first pair,
// four of the second, ...
INLINE void store_quad(int16_t* to, const Ints (&rows)[QUAD]) {
    using Longs = int64_t __attribute__((vector_size(64)));
    const auto low = [](Ints a, Ints b) {
        return (Longs)__builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22,
                                              7, 23);
    };
    const auto high = [](Ints a, Ints b) {
        return (Longs)__builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29,
                                              14, 30, 15, 31);
    };
    const Longs halves[2][2] = {{low(rows[0], rows[1]), low(rows[2], rows[3])},
                                {high(rows[0], rows[1]), high(rows[2], rows[3])}};
    for (int half = 0; half < 2; ++half, to += 4 * LANES) {
        const Longs *ab = &halves[half][0], *cd = &halves[half][1];
        const Longs first = __builtin_shufflevector(*ab, *cd, 0, 8, 1, 9, 2, 10, 3, 11);
        const Longs second = __builtin_shufflevector(*ab, *cd, 4, 12, 5, 13, 6, 14, 7, 15);
        std::memcpy(to, &first, sizeof first);
        std::memcpy(to + 2 * LANES, &second, sizeof second);
    }
}

// Rounds four rows to whole numbers, or as many as there are.
inline void round_quad(const float* const* rows, int count, int64_t at, const Activations& into) {
    using Narrow = int16_t __attribute__((vector_size(32)));
    const Ints ones = broadcast(0x00010001);
    int16_t* codes = into.codes_of(at);
    Span* span = into.spans_of(at);
    for (int64_t start = 0; start < into.columns; start += SPAN, ++span, codes += QUAD * SPAN) {
        Ints pairs[QUAD] = {};
        for (int r = 0; r < count; ++r) {
            const Floats low = load(rows[r] + start), high = load(rows[r] + start + LANES);
            const float most = greatest(maximum(magnitude(low), magnitude(high)));
            const float scale = most / 32767.0f;
            const float inverse = most > 1e-30f ? 32767.0f / most : 0.0f;
            const Narrow narrow[2] = {__builtin_convertvector(rounded(low * inverse), Narrow),
                                      __builtin_convertvector(rounded(high * inverse), Narrow)};
            std::memcpy(&pairs[r], narrow, sizeof pairs[r]);
            const Ints sums = add_dots(Ints{}, pairs[r], ones);
            span->scale[r] = scale;
            for (int half = 0; half < 2; ++half) {
                int32_t total = 0;
                EACH (lane, LANES / 2)
                    total += sums[half * LANES / 2 + lane];
                span->half_sum[half][r] = scale * (float)total;
            }
            span->sum[r] = span->half_sum[0][r] + span->half_sum[1][r];
        }
        store_quad(codes, pairs);
    }
}

// A tile: ROWS of activations by PANELS of outputs, in registers.
template <int ROWS, int PANELS> using Tile = Floats[ROWS][PANELS];

template <class Value, int ROWS, int PANELS>
INLINE void multiply_floats(const QuireMatrix& matrix, int64_t panel, const Activations& input,
                            int64_t row, Tile<ROWS, PANELS>& tile) {
    const int64_t columns = matrix.columns;
    const Value* values = (const Value*)matrix.values + panel * columns * LANES;
    const float* x = input.floats + row * columns;
    for (int64_t k = 0; k < columns; ++k) {
        Floats weights[PANELS];
        EACH (p, PANELS)
            weights[p] = load(values + (p * columns + k) * LANES);
        EACH (r, ROWS)
            EACH (p, PANELS)
                tile[r][p] += x[r * columns + k] * weights[p];
    }
}

INLINE Floats load_scale(const void* scales, int64_t at, int64_t next, bool halved) {
    __builtin_prefetch((const char*)scales + next * LANES * (halved ? 2 : 4));
    return halved ? load((const Half*)scales + at * LANES)
                  : load((const float*)scales + at * LANES);
}

// A word holds eight codes of four bits or four of eight, in pairs: the first of a pair in the low
// half, the second in the high half, so that one shift brings a pair where it is multiplied.
template <int BITS> INLINE Ints pair_of(Ints word, int pair) {
    if constexpr (BITS == 4) {
        return (word >> (4 * pair)) & 0x000f000f;
    } else {
        const Shorts halves = (Shorts)word;
        return (Ints)(pair == 0 ? (halves << 8) >> 8 : halves >> 8);
    }
}

template <int BITS, int GROUP, int ROWS, int PANELS>
INLINE void multiply_codes(const QuireMatrix& matrix, int64_t panel, const Activations& input,
                           int64_t row, Tile<ROWS, PANELS>& tile) {
    constexpr int PER_WORD = 32 / BITS, WORDS = GROUP / PER_WORD, PAIRS = PER_WORD / 2;
    // One row alone is a chain of sums, each waiting for the last: several chains keep it busy.
    constexpr int CHAINS = ROWS == 1 ? 2 : 1;
    constexpr int QUADS = (ROWS + QUAD - 1) / QUAD;
    const int64_t columns = matrix.columns, groups = columns / GROUP, words = columns / PER_WORD;
    const int32_t* values = (const int32_t*)matrix.values + panel * words * LANES;
    const bool halved = matrix.scales_halved;
    const int64_t lane = ROWS < QUAD ? row % QUAD : 0;
    const int16_t* x[QUADS];
    const Span* spans[QUADS];
    EACH (q, QUADS) {
        x[q] = input.codes_of(row + q * QUAD);
        spans[q] = input.spans_of(row + q * QUAD);
    }
    for (int64_t group = 0; group < groups; ++group) {
        Ints dots[ROWS][PANELS][CHAINS] = {};
        for (int w = 0; w < WORDS; ++w) {
            Ints packed[PANELS];
            EACH (p, PANELS) {
                packed[p] = load_vector<Ints>(values + p * words * LANES);
                // The next tile's, in the same place: memory is slower than what is done here.
                __builtin_prefetch(values + (p + PANELS) * words * LANES);
            }
            values += LANES;
            EACH (pair, PAIRS) {
                Ints weights[PANELS];
                EACH (p, PANELS)
                    weights[p] = pair_of<BITS>(packed[p], pair);
                EACH (r, ROWS) {
                    int32_t both;
                    std::memcpy(&both, x[r / QUAD] + (pair * QUAD + r % QUAD) * 2, sizeof both);
                    EACH (p, PANELS) {
                        Ints& sums = dots[r][p][pair % CHAINS];
                        sums = add_dots(sums, broadcast(both), weights[p]);
                    }
                }
            }
            EACH (q, QUADS)
                x[q] += PAIRS * QUAD * 2;
        }
        const int64_t span = group * GROUP / SPAN;
        EACH (p, PANELS) {
            const int64_t at = (panel + p) * groups + group, next = at + PANELS * groups;
            const Floats scale = load_scale(matrix.scales, at, next, halved);
            EACH (r, ROWS) {
                Ints dot = dots[r][p][0];
                for (int chain = 1; chain < CHAINS; ++chain)
                    dot += dots[r][p][chain];
                const float of_row = spans[r / QUAD][span].scale[lane + r % QUAD];
                tile[r][p] += to_floats(dot) * (scale * of_row);
            }
            if (matrix.offsets == nullptr)
                continue;
            const Floats offset = load_scale(matrix.offsets, at, next, halved);
            EACH (r, ROWS) {
                const Span& of_row = spans[r / QUAD][span];
                const float* sums = GROUP == SPAN ? of_row.sum : of_row.half_sum[group % 2];
                tile[r][p] += offset * sums[lane + r % QUAD];
            }
        }
    }
}

template <int ROWS, int PANELS>
INLINE void multiply(const QuireMatrix& matrix, int64_t panel, const Activations& input,
                     int64_t row, Tile<ROWS, PANELS>& tile) {
    switch (matrix.kind) {
    case FLOATS:
        return multiply_floats<float, ROWS, PANELS>(matrix, panel, input, row, tile);
    case HALVES:
        return multiply_floats<Half, ROWS, PANELS>(matrix, panel, input, row, tile);
    case BFLOATS:
        return multiply_floats<BFloat, ROWS, PANELS>(matrix, panel, input, row, tile);
    case CODES_4:
        return matrix.group == 16
                   ? multiply_codes<4, 16, ROWS, PANELS>(matrix, panel, input, row, tile)
                   : multiply_codes<4, 32, ROWS, PANELS>(matrix, panel, input, row, tile);
    case CODES_8:
        return matrix.group == 16
                   ? multiply_codes<8, 16, ROWS, PANELS>(matrix, panel, input, row, tile)
                   : multiply_codes<8, 32, ROWS, PANELS>(matrix, panel, input, row, tile);
    }
}

// One row of a packed matrix in floats, times a factor.
inline void unpack_row(const QuireMatrix& matrix, int64_t row, float factor, float* out) {
    const int64_t panel = row / LANES, lane = row % LANES, columns = matrix.columns;
    if (!has_codes(matrix)) {
        for (int64_t k = 0; k < columns; ++k) {
            const int64_t at = (panel * columns + k) * LANES + lane;
            out[k] = factor * (matrix.kind == FLOATS   ? ((const float*)matrix.values)[at]
                               : matrix.kind == HALVES ? value(((const Half*)matrix.values)[at])
                                                       : value(((const BFloat*)matrix.values)[at]));
        }
        return;
    }
    const int bits = matrix.kind == CODES_4 ? 4 : 8, per_word = 32 / bits;
    const int32_t* words = (const int32_t*)matrix.values + panel * (columns / per_word) * LANES;
    const auto scale_at = [&](const void* scales, int64_t at) {
        return matrix.scales_halved ? value(((const Half*)scales)[at]) : ((const float*)scales)[at];
    };
    for (int64_t k = 0; k < columns; ++k) {
        const int32_t word = words[k / per_word * LANES + lane];
        // Where `pair_of` finds it: pair by pair, odd columns in the high half.
        const int shift = (int)(k % per_word) / 2 * bits + (k % 2) * 16;
        const int32_t code = bits == 4 ? word >> shift & 15 : (int8_t)(word >> shift);
        const int64_t group = (panel * (columns / matrix.group) + k / matrix.group) * LANES + lane;
        const float offset = matrix.offsets == nullptr ? 0.0f : scale_at(matrix.offsets, group);
        out[k] = factor * ((float)code * scale_at(matrix.scales, group) + offset);
    }
}

// Where a product goes: y[row][column] = or += what was computed.
struct Output {
    float* y;
    int64_t stride;
    bool adds;
};

template <int ROWS, int PANELS>
__attribute__((noinline)) void tile_product(const QuireMatrix& matrix, int64_t panel,
                                            const Activations& input, int64_t row,
                                            const float* bias, const Output& output) {
    Tile<ROWS, PANELS> tile = {};
    multiply<ROWS, PANELS>(matrix, panel, input, row, tile);
    EACH (p, PANELS) {
        const int64_t column = (panel + p) * LANES;
        const int64_t width = std::min<int64_t>(LANES, matrix.rows - column);
        EACH (r, ROWS) {
            float lanes[LANES];
            store(lanes, tile[r][p]);
            float* y = output.y + (row + r) * output.stride + column;
            for (int64_t lane = 0; lane < width; ++lane) {
                const float made = lanes[lane] + (bias == nullptr ? 0.0f : bias[column + lane]);
                y[lane] = output.adds ? y[lane] + made : made;
            }
        }
    }
}

// Tiles of the rows that are left, the largest first.
template <int PANELS, int ROWS>
inline void rows_product(const QuireMatrix& matrix, int64_t panel, const Activations& input,
                         int64_t row, int64_t end, const float* bias, const Output& output) {
    for (; end - row >= ROWS; row += ROWS)
        tile_product<ROWS, PANELS>(matrix, panel, input, row, bias, output);
    if constexpr (ROWS > 1)
        if (row < end)
            rows_product<PANELS, ROWS == 12 ? 8 : ROWS / 2>(matrix, panel, input, row, end, bias,
                                                            output);
}

// Tiles have as many sums as registers hold: few rows go with many panels.
inline void panels_product(const QuireMatrix& matrix, int64_t panel, int64_t last,
                           const Activations& input, int64_t row, int64_t end, const float* bias,
                           const Output& output) {
    if (end - row <= 4)
        for (; last - panel >= 4; panel += 4)
            rows_product<4, 4>(matrix, panel, input, row, end, bias, output);
    for (; last - panel >= 2; panel += 2)
        rows_product<2, 12>(matrix, panel, input, row, end, bias, output);
    for (; panel < last; ++panel)
        rows_product<1, 12>(matrix, panel, input, row, end, bias, output);
}

// A phase for each part: y = or += x · Wᵀ + bias.
inline void multiply_all(Team& team, const QuireLinear& linear, const Activations& input,
                         int64_t num_rows, Output output) {
    // Activations of one item stay in the second cache while panels pass through the first.
    constexpr int64_t ROWS_EACH = 96;
    const float* bias = linear.bias;
    for (int64_t part = 0; part < linear.count; ++part) {
        const QuireMatrix& matrix = linear.parts[part];
        const int64_t panels = panels_of(matrix);
        // Long runs of panels, for the next to be on its way; some more than members, to be fair.
        const int64_t share = panels / (4 * team.size());
        const int64_t panels_each = std::max<int64_t>(4, share / 4 * 4);
        const int64_t across = (panels + panels_each - 1) / panels_each;
        const int64_t down = (num_rows + ROWS_EACH - 1) / ROWS_EACH;
        team.each((int)(across * down), [&](int item) {
            const int64_t row = item / across * ROWS_EACH, panel = item % across * panels_each;
            panels_product(matrix, panel, std::min(panel + panels_each, panels), input, row,
                           std::min(row + ROWS_EACH, num_rows), bias, output);
        });
        output.y += matrix.rows;
        if (bias != nullptr)
            bias += matrix.rows;
    }
}

} // namespace quire
