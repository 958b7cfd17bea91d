// Vectors of sixteen lanes, whatever the processor has: the compiler splits them where its
// registers are narrower. What a portable expression would not become the right instruction of is
// here.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
// A loop over a tile, unrolled: rolled up it would keep the tile in memory instead of registers.
#define EACH(index, count) _Pragma("GCC unroll 16") for (int index = 0; index < (count); ++index)

namespace quire {

constexpr int LANES = 16;

using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Bytes = int8_t __attribute__((vector_size(LANES)));
using Four = float __attribute__((vector_size(16)));
using FourInts = int32_t __attribute__((vector_size(16)));

// Floats of sixteen bits, as they lie in memory.
struct Half {
    uint16_t bits;
};
struct BFloat {
    uint16_t bits;
};

template <class Vector> INLINE Vector load_vector(const void* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

INLINE Floats load(const float* from) { return load_vector<Floats>(from); }

// The first `width` lanes; zeros behind them.
INLINE Floats load_part(const float* from, int64_t width) {
    Floats part = {};
    std::memcpy(&part, from, width * sizeof(float));
    return part;
}

INLINE void store_part(float* to, Floats x, int64_t width) {
    std::memcpy(to, &x, width * sizeof(float));
}

INLINE Floats load(const BFloat* from) {
    using Words = uint16_t __attribute__((vector_size(32)));
    const Words words = load_vector<Words>(from);
    return (Floats)(__builtin_convertvector(words, Ints) << 16);
}

INLINE Floats load(const Half* from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(load_vector<__m256i>(from));
#elif defined(__F16C__)
    Floats floats;
    for (int part = 0; part < 2; ++part) {
        const __m256 half = _mm256_cvtph_ps(load_vector<__m128i>(from + 8 * part));
        std::memcpy((float*)&floats + 8 * part, &half, sizeof half);
    }
    return floats;
#else
    using Halves = _Float16 __attribute__((vector_size(32)));
    return __builtin_convertvector(load_vector<Halves>(from), Floats);
#endif
}

INLINE float value(float x) { return x; }

INLINE float value(Half x) {
#if defined(__F16C__)
    return _cvtsh_ss(x.bits);
#else
    _Float16 half;
    std::memcpy(&half, &x.bits, sizeof half);
    return (float)half;
#endif
}

INLINE float value(BFloat x) {
    const uint32_t bits = (uint32_t)x.bits << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

INLINE void put(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

INLINE void put(Half* to, Floats x) {
#if defined(__AVX512F__)
    const __m256i halves = _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(to, &halves, sizeof halves);
#elif defined(__F16C__)
    for (int part = 0; part < 2; ++part) {
        __m256 eight;
        std::memcpy(&eight, (const float*)&x + 8 * part, sizeof eight);
        const __m128i halves = _mm256_cvtps_ph(eight, _MM_FROUND_TO_NEAREST_INT);
        std::memcpy(to + 8 * part, &halves, sizeof halves);
    }
#else
    using Halves = _Float16 __attribute__((vector_size(32)));
    const Halves halves = __builtin_convertvector(x, Halves);
    std::memcpy(to, &halves, sizeof halves);
#endif
}

INLINE void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

INLINE Floats broadcast(float x) { return x - Floats{}; }

INLINE Ints broadcast(int32_t x) { return x - Ints{}; }

INLINE Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }

INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

INLINE Floats magnitude(Floats x) { return (Floats)((Ints)x & 0x7fffffff); }

// Lanes are folded in halves, in this order everywhere.
template <class Fold> INLINE float folded(Floats x, const Fold& fold) {
    const auto eight = fold(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7),
                            __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
    const auto four = fold(__builtin_shufflevector(eight, eight, 0, 1, 2, 3),
                           __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
    return fold(fold(four[0], four[2]), fold(four[1], four[3]));
}

INLINE float sum(Floats x) {
    return folded(x, [](auto a, auto b) { return a + b; });
}

INLINE float greatest(Floats x) {
    return folded(x, [](auto a, auto b) { return a > b ? a : b; });
}

// Nearest whole numbers, ties to even.
INLINE Ints rounded(Floats x) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
    Ints whole;
    for (int part = 0; part < 2; ++part) {
        __m256 half;
        std::memcpy(&half, (const float*)&x + 8 * part, sizeof half);
        const __m256i ints = _mm256_cvtps_epi32(half);
        std::memcpy((int32_t*)&whole + 8 * part, &ints, sizeof ints);
    }
    return whole;
#else
    Ints whole;
    for (int lane = 0; lane < LANES; ++lane)
        whole[lane] = (int32_t)std::nearbyint(x[lane]);
    return whole;
#endif
}

// x86 multiplies unsigned bytes by signed ones: signed codes are raised by so much before.
#if defined(__AVX2__)
constexpr int RAISED = 128;
INLINE Ints raised(Ints codes) { return codes ^ (int32_t)0x80808080; }
#else
constexpr int RAISED = 0;
INLINE Ints raised(Ints codes) { return codes; }
#endif

#if defined(__AVX2__) && !defined(__AVX512VNNI__)
// Of bytes, unsigned and signed, in 32 lanes; exact, though pairs of eight bits exceed sixteen.
template <int BITS> INLINE __m256i quad_dots(__m256i a, __m256i b) {
    if constexpr (BITS == 4)
        return _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    return _mm256_add_epi32(even,
                            _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8)));
}
#endif

// sums[lane] + the products of four neighbouring bytes, codes of so many bits (of eight: `raised`)
// with signed numbers; exact.
template <int BITS> INLINE Ints add_dots(Ints sums, Ints codes, Ints x) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, (__m512i)x);
#elif defined(__AVX2__)
    Ints dots;
    for (int part = 0; part < 2; ++part) {
        __m256i a, b;
        std::memcpy(&a, (const int32_t*)&codes + 8 * part, sizeof a);
        std::memcpy(&b, (const int32_t*)&x + 8 * part, sizeof b);
        const __m256i products = quad_dots<BITS>(a, b);
        std::memcpy((int32_t*)&dots + 8 * part, &products, sizeof products);
    }
    return sums + dots;
#else
    for (int byte = 0; byte < 32; byte += 8)
        sums += ((codes << (24 - byte)) >> 24) * ((x << (24 - byte)) >> 24);
    return sums;
#endif
}

// Within 2 ulp; nothing below -87, so that what is hidden by minus infinity weighs nothing.
INLINE Floats exp(Floats x) {
    const Floats bounded = x < 88.0f ? x : broadcast(88.0f);
    const Ints power = rounded(bounded * 1.44269504f);
    const Floats whole = to_floats(power);
    const Floats rest = (bounded - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Floats series = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * rest * rest + rest + 1.0f;
    const Floats scaled = series * (Floats)((power + 127) << 23);
    return x < -87.0f ? Floats{} : scaled;
}

INLINE Floats tanh(Floats x) { return 1.0f - 2.0f / (exp(2.0f * x) + 1.0f); }

} // namespace quire
