// Products with weight matrices: in floats, or in codes that are multiplied as whole numbers.
//
// A matrix of N rows and K columns is packed into panels of sixteen rows, so that a vector holds a
// column of a panel and every lane gathers the sum of one output. Each output is summed in the
// order of K alone, however many rows of activations there are: a row's result does not depend on
// its neighbours, bit by bit.
//
// Codes meet whole numbers: x ≈ scale · q with one scale for 32 columns of one row, and q of one
// byte or, where that would cost answers, of two. Sums within these columns are whole numbers, and
// exact; what rounding costs, at most 1 / 254 of the greatest of 32 or 1 / 65024,
// `bench.perplexity` tells.
#pragma once

#include "simd.h"
#include "team.h"

#include <algorithm>

namespace quire {

// Columns of activations that share a scale.
constexpr int SPAN = 32;
// Bytes of a rounded activation, at most.
constexpr int MOST_TERMS = 2;

extern "C" {

enum Kind : int32_t { FLOATS, HALVES, BFLOATS, CODES_4, CODES_8 };

// One packed matrix.
struct QuireMatrix {
    int64_t rows, columns;
    Kind kind;
    int32_t group;         // columns that share a scale: 16 or 32
    int32_t scales_halved; // whether scales and offsets have sixteen bits
    const void* values;    // [panels][columns][16], for codes see `quad_of`
    const void* scales;    // [panels][columns / group][16]
    const void* offsets;   // likewise; null for none
};

// Matrices of one input, one above the other.
struct QuireLinear {
    int64_t rows;
    int64_t count;
    const QuireMatrix* parts;
    const float* bias; // [rows]; null for none
    int32_t terms;     // bytes of a rounded activation, 1 or 2
};
}

// Rows of activations lie four together, so that a tile needs few addresses.
constexpr int QUAD = 4;

// Which columns of a span are meant: sixteen of them, or all.
enum Part { FIRST, LAST, WHOLE, PARTS };

// What turns whole numbers back, for 32 columns of four rows.
struct Span {
    float scale[QUAD];
    int32_t total[PARTS][QUAD]; // of the whole numbers
    float sum[PARTS][QUAD];     // of what they stand for
};

// What products read of some rows of activations. Floats meet floats, codes meet codes.
struct Activations {
    int64_t columns = 0;
    const float* floats = nullptr; // [rows][columns]
    int8_t* codes = nullptr;       // [rows / 4][columns / 4][terms][4][4], the high bytes first
    Span* spans = nullptr;         // [rows / 4][columns / 32]
    int terms = 1;

    int8_t* codes_of(int64_t row) const {
        return codes + row / QUAD * columns * terms * QUAD + row % QUAD * QUAD;
    }
    Span* spans_of(int64_t row) const { return spans + row / QUAD * (columns / SPAN); }
};

INLINE bool has_codes(const QuireMatrix& matrix) {
    return matrix.kind == CODES_4 || matrix.kind == CODES_8;
}

INLINE int64_t panels_of(const QuireMatrix& matrix) { return (matrix.rows + LANES - 1) / LANES; }

// Bytes of four rows and 32 columns, as words of four columns: of all rows the first word, then the
// second, ... in two vectors of sixteen columns each.
INLINE void interleave(const Bytes (&rows)[QUAD][2], Ints (&words)[2]) {
    const Ints ab = load_vector<Ints>(rows[0]), cd = load_vector<Ints>(rows[2]);
    words[0] =
        __builtin_shufflevector(ab, cd, 0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    words[1] =
        __builtin_shufflevector(ab, cd, 4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31);
}

// Sums of four rows over such a vector.
INLINE FourInts row_sums(Ints words) {
    const Ints fours = add_dots<4>(Ints{}, broadcast(0x01010101), words);
    FourInts parts[4];
    std::memcpy(parts, &fours, sizeof parts);
    return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

// Rounds four rows to whole numbers, or as many as there are.
template <int TERMS>
inline void round_quad(const float* const* rows, int count, int64_t at, const Activations& into) {
    // Of two bytes the low one is signed, too, and may carry into the high one.
    constexpr float MOST = TERMS == 1 ? 127.0f : 127.0f * 256.0f;
    int8_t* codes = into.codes_of(at);
    Span* span = into.spans_of(at);
    for (int64_t start = 0; start < into.columns; start += SPAN, ++span) {
        Four most = {};
        for (int r = 0; r < count; ++r)
            most[r] = greatest(maximum(magnitude(load(rows[r] + start)),
                                       magnitude(load(rows[r] + start + LANES))));
        const Four scale = most / MOST;
        const Four inverse = most > 1e-30f ? MOST / most : Four{};
        Bytes bytes[TERMS][QUAD][2] = {};
        for (int r = 0; r < count; ++r)
            for (int half = 0; half < 2; ++half) {
                Ints whole = rounded(load(rows[r] + start + half * LANES) * inverse[r]);
                if constexpr (TERMS == 2) {
                    const Ints high = (whole + 128) >> 8;
                    bytes[0][r][half] = __builtin_convertvector(high, Bytes);
                    whole -= high << 8;
                }
                bytes[TERMS - 1][r][half] = __builtin_convertvector(whole, Bytes);
            }
        FourInts totals[PARTS] = {};
        for (int term = 0; term < TERMS; ++term) {
            Ints words[2];
            interleave(bytes[term], words);
            for (int half = 0; half < 2; ++half) {
                totals[half] = (totals[half] << 8) + row_sums(words[half]);
                for (int word = 0; word < 4; ++word)
                    std::memcpy(codes + ((half * 4 + word) * TERMS + term) * QUAD * QUAD,
                                (const int32_t*)&words[half] + word * QUAD, QUAD * QUAD);
            }
        }
        codes += SPAN * TERMS * QUAD;
        totals[WHOLE] = totals[FIRST] + totals[LAST];
        std::memcpy(span->scale, &scale, sizeof scale);
        std::memcpy(span->total, totals, sizeof totals);
        for (int part = 0; part < PARTS; ++part) {
            const Four sum = scale * __builtin_convertvector(totals[part], Four);
            std::memcpy(span->sum[part], &sum, sizeof sum);
        }
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

// A word holds eight codes of four bits, the last four above the first four, or four of eight bits.
template <int BITS> INLINE Ints quad_of(Ints word, int quad) {
    return BITS == 4 ? (word >> (4 * quad)) & 0x0f0f0f0f : raised(word);
}

template <int BITS, int GROUP, int TERMS, int ROWS, int PANELS>
INLINE void multiply_codes(const QuireMatrix& matrix, int64_t panel, const Activations& input,
                           int64_t row, Tile<ROWS, PANELS>& tile) {
    constexpr int PER_WORD = 32 / BITS, WORDS = GROUP / PER_WORD, QUADS = PER_WORD / QUAD;
    // One row alone is a chain of sums, each waiting for the last: several chains keep it busy.
    constexpr int CHAINS = ROWS == 1 ? QUADS : 1;
    constexpr int ROW_QUADS = (ROWS + QUAD - 1) / QUAD;
    const int64_t columns = matrix.columns, groups = columns / GROUP, words = columns / PER_WORD;
    const int32_t* values = (const int32_t*)matrix.values + panel * words * LANES;
    const bool halved = matrix.scales_halved;
    const int64_t lane = ROWS < QUAD ? row % QUAD : 0;
    const int8_t* x[ROW_QUADS];
    const Span* spans[ROW_QUADS];
    EACH (q, ROW_QUADS) {
        x[q] = input.codes_of(row + q * QUAD);
        spans[q] = input.spans_of(row + q * QUAD);
    }
    for (int64_t group = 0; group < groups; ++group) {
        const int64_t span = group * GROUP / SPAN;
        const int part = GROUP == SPAN ? WHOLE : (int)(group % 2);
        Ints dots[ROWS][PANELS][CHAINS] = {};
        EACH (term, TERMS) {
            // After the high bytes the low ones, and what raised codes are too much.
            EACH (r, ROWS)
                EACH (p, PANELS) {
                    if (term == 1)
                        EACH (c, CHAINS)
                            dots[r][p][c] <<= 8;
                    if (BITS == 8 && RAISED != 0 && term == TERMS - 1)
                        dots[r][p][0] +=
                            -RAISED * spans[r / QUAD][span].total[part][lane + r % QUAD];
                }
            for (int w = 0; w < WORDS; ++w) {
                Ints packed[PANELS];
                EACH (p, PANELS) {
                    packed[p] = load_vector<Ints>(values + (p * words + w) * LANES);
                    // The next tile's, in the same place: memory is slower than what is done here.
                    if (term == 0)
                        __builtin_prefetch(values + ((p + PANELS) * words + w) * LANES);
                }
                EACH (quad, QUADS) {
                    Ints codes[PANELS];
                    EACH (p, PANELS)
                        codes[p] = quad_of<BITS>(packed[p], quad);
                    EACH (r, ROWS) {
                        const int64_t at = ((w * QUADS + quad) * TERMS + term) * QUAD + r % QUAD;
                        int32_t four;
                        std::memcpy(&four, x[r / QUAD] + at * QUAD, sizeof four);
                        EACH (p, PANELS) {
                            Ints& sums = dots[r][p][quad % CHAINS];
                            sums = add_dots<BITS>(sums, codes[p], broadcast(four));
                        }
                    }
                }
            }
        }
        values += WORDS * LANES;
        EACH (q, ROW_QUADS)
            x[q] += GROUP * TERMS * QUAD;
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
            EACH (r, ROWS)
                tile[r][p] += offset * spans[r / QUAD][span].sum[part][lane + r % QUAD];
        }
    }
}

template <int BITS, int ROWS, int PANELS>
INLINE void multiply_coded(const QuireMatrix& matrix, int64_t panel, const Activations& input,
                           int64_t row, Tile<ROWS, PANELS>& tile) {
    if (matrix.group == LANES && input.terms == 1)
        multiply_codes<BITS, LANES, 1, ROWS, PANELS>(matrix, panel, input, row, tile);
    else if (matrix.group == LANES)
        multiply_codes<BITS, LANES, 2, ROWS, PANELS>(matrix, panel, input, row, tile);
    else if (input.terms == 1)
        multiply_codes<BITS, SPAN, 1, ROWS, PANELS>(matrix, panel, input, row, tile);
    else
        multiply_codes<BITS, SPAN, 2, ROWS, PANELS>(matrix, panel, input, row, tile);
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
        return multiply_coded<4, ROWS, PANELS>(matrix, panel, input, row, tile);
    case CODES_8:
        return multiply_coded<8, ROWS, PANELS>(matrix, panel, input, row, tile);
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
        const int shift = (int)(k % QUAD * 8 + k % per_word / QUAD * 4); // where `quad_of` looks
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
        // One run of panels each: the next tile's weights are on their way to whom they are for.
        const int64_t share = std::max<int64_t>(1, (panels + team.size() - 1) / team.size());
        const int64_t panels_each = (share + 1) / 2 * 2;
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
