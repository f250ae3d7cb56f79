// One row of bfloat16 with packed weights of 4 bits (AVX-512): most of what a token of a single text is made of.
//
// The sums are those of groups.h. Here scales go from memory into the lanes they are for, and four outputs are computed
// side by side, so that none waits for its own sum.
#pragma once

#include <immintrin.h>

#include "groups.h"

namespace quintet {
namespace {

inline __m512bh load_bf16(const uint16_t* from) { return (__m512bh)_mm512_loadu_si512(from); }

// 2^(s - 127) of scales s that stand in the place of an exponent: 0, which is 2^-127, and 255, no number, need a bit more.
inline __m512 powers_of(__m512i power) {
    const __mmask16 end = _mm512_cmpeq_epi32_mask(power, _mm512_setzero_si512()) |
                          _mm512_cmpeq_epi32_mask(power, _mm512_set1_epi32(0x7f800000));
    return _mm512_castsi512_ps(_mm512_mask_or_epi32(power, end, power, _mm512_set1_epi32(0x400000)));
}

// Number b of four in lanes 4 b to 4 b + 3, where the 16 bytes of block b are.
inline __m512i lanes_of_four() { return _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0); }

// Bytes `from`, `from + size`, ... become the highest of the four lanes of each block, `size` of them; the rest is zero.
inline __m512i highest_bytes(int size) {
    alignas(64) uint8_t places[64];
    for (int i = 0; i < 64; ++i) places[i] = i % 4 < 4 - size ? 0x80 : uint8_t(i / 16 * size + i % 4 - (4 - size));
    return _mm512_load_si512(places);
}

// Four numbers of `size` bytes, of which `here` are given; a function call for the last few would cost more than they do.
template <int size>
QUINTET_INLINED inline __m128i four_of(const void* from, int here) {
    if (here < 4) return _mm_maskz_loadu_epi8(__mmask16((1u << here * size) - 1), from);
    if (size == 4) return _mm_loadu_si128(static_cast<const __m128i*>(from));
    return size == 2 ? _mm_loadu_si64(from) : _mm_loadu_si32(from);
}

// Scales of MXFP4, with 0 and 255 among them or without.
template <bool ends>
struct PowerScales {
    const uint8_t* scales;
    int64_t count;
    __m512i places = highest_bytes(1);
    bool any_end(int64_t output, int64_t outputs) const {
        const uint8_t* from = scales + output * count;
        __mmask64 found = 0;
        for (int64_t i = 0; i < outputs * count; i += 64) {
            const int64_t here = outputs * count - i;
            const __mmask64 some = here < 64 ? (uint64_t(1) << here) - 1 : ~uint64_t(0);
            const __m512i next = _mm512_add_epi8(_mm512_maskz_loadu_epi8(some, from + i), _mm512_set1_epi8(1));
            found |= _mm512_mask_cmple_epu8_mask(some, next, _mm512_set1_epi8(1));
        }
        return found;
    }
    void ahead(int64_t output, int64_t outputs) const {
        ask_for_all(scales + output * count, outputs * count);
    }
    QUINTET_INLINED __m512 scale(int64_t output, int64_t block, int here) const {
        const __m512i codes = _mm512_broadcastd_epi32(four_of<1>(scales + output * count + block, here));
        const __m512i power = _mm512_srli_epi32(_mm512_shuffle_epi8(codes, places), 1);
        return ends ? powers_of(power) : _mm512_castsi512_ps(power);
    }
    __m512i shift(int64_t, int64_t, int) const { return _mm512_setzero_si512(); }
};

// Scales of type T, and zeros, of groups of 32 inputs, or `wide` ones of a multiple of 128.
template <int T, bool wide, bool zeros>
struct GroupScales {
    using W = typename Element<T>::type;
    const char* scales;
    const uint8_t* words;
    int64_t count, each;  // groups of an output, blocks of a group
    __m512i places = highest_bytes(2), lanes = lanes_of_four();
    explicit GroupScales(const Integers& m)
        : scales(static_cast<const char*>(m.scales)), words(m.zeros), count(m.inputs / m.group), each(m.group / BLOCK) {}
    const char* at(int64_t output, int64_t block) const {
        return scales + (output * count + (wide ? block / each : block)) * int64_t(sizeof(W));
    }
    void ahead(int64_t output, int64_t outputs) const {
        ask_for_all(at(output, 0), outputs * count * int64_t(sizeof(W)));
    }
    QUINTET_INLINED __m512 scale(int64_t output, int64_t block, int here) const {
        if (wide) {
            W one;
            std::memcpy(&one, at(output, block), sizeof one);
            if constexpr (T == FP32) return _mm512_set1_ps(one);
            else return _mm512_set1_ps(T == BF16 ? bf16_to_float(one) : _cvtsh_ss(one));
        }
        const __m128i four = four_of<sizeof(W)>(at(output, block), here);
        if (T == BF16) return _mm512_castsi512_ps(_mm512_shuffle_epi8(_mm512_broadcastq_epi64(four), places));
        const __m128 widened = T == FP32 ? _mm_castsi128_ps(four) : _mm_cvtph_ps(four);
        return _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(widened));
    }
    // 16 - zero, in 16 bits
    QUINTET_INLINED __m512i shift(int64_t output, int64_t block, int here) const {
        if (!zeros) return _mm512_setzero_si512();
        const uint8_t* from = words + (output / 8 * count + (wide ? block / each : block)) * 4;
        const int bits = int(output % 8 * 4);
        if (wide) return _mm512_set1_epi16(short(16 - zero_code(from, 0, bits)));
        const __m128i codes = _mm_and_si128(_mm_srl_epi32(four_of<4>(from, here), _mm_cvtsi32_si128(bits)), _mm_set1_epi32(15));
        const __m128i moved = _mm_sub_epi32(_mm_set1_epi32(16), codes);
        return _mm512_permutexvar_epi32(lanes, _mm512_castsi128_si512(_mm_or_si128(moved, _mm_slli_epi32(moved, 16))));
    }
};

// The row, and weights of so many blocks for each output.
struct OneRow {
    const uint16_t* x;
    const uint8_t* weight;
    int64_t blocks;
    int64_t pitch = blocks * GROUP_BYTES;
    Ahead ahead{pitch, 4};
};

// Sums of outputs from `output` on, O at once; what is left of `count` is given back.
template <class V, class Way, int O, class Scales>
__attribute__((noinline)) int64_t outputs_of_one_row(const OneRow& of, const Scales& by, int64_t output, int64_t count, float* sums) {
    const Scales scales = by;  // not behind a pointer, where the sums might be
    const OneRow m = of;
    for (; count >= O; count -= O, output += O, sums += O) {
        const uint8_t* w = m.weight + output * m.pitch;
        scales.ahead(output + TOGETHER, O);
        __m512 acc[1][O];
        for (int o = 0; o < O; ++o) acc[0][o] = _mm512_setzero_ps();
        auto step = [&](auto load, int64_t block, int here) QUINTET_INLINED {
            __m512bh values[4];
            for (int j = 0; j < 4; ++j) values[j] = load_bf16(m.x + block * BLOCK + 32 * j);
#pragma GCC unroll 4
            for (int o = 0; o < O; ++o) {
                const uint8_t* at = w + o * m.pitch + block * GROUP_BYTES;
                m.ahead.template ask<O>(w, block * GROUP_BYTES, o);
                const auto loaded = Way::made(load(at), scales.scale(output + o, block, here), scales.shift(output + o, block, here));
                __m512 part = _mm512_setzero_ps();
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) part = _mm512_dpbf16_ps(part, loaded.value[j], values[j]);
                acc[0][o] = _mm512_fmadd_ps(part, loaded.scale, acc[0][o]);
            }
        };
        int64_t block = 0;
        for (; block + 4 <= m.blocks; block += 4)
            step([](const uint8_t* from) QUINTET_INLINED { return _mm512_loadu_si512(from); }, block, 4);
        if (block < m.blocks) {
            const int here = int(m.blocks - block);
            const __mmask64 some = (uint64_t(1) << 16 * here) - 1;
            step([=](const uint8_t* from) QUINTET_INLINED { return _mm512_maskz_loadu_epi8(some, from); }, block, here);
        }
        write_sums<V, 1, O>(acc, sums, O);
    }
    return count;
}

template <class V, class Way, class Scales>
void some_of_one_row(const OneRow& m, const Scales& scales, int64_t output, int64_t count, float* sums) {
    const int64_t left = outputs_of_one_row<V, Way, 4>(m, scales, output, count, sums);
    if (left) outputs_of_one_row<V, Way, 1>(m, scales, output + count - left, left, sums + count - left);
}

// `some(output, count, sums)` makes the sums of TOGETHER outputs at most.
template <class Some, class Done>
inline void one_row(int64_t begin, int64_t end, Some some, Done done) {
    float sums[TOGETHER];
    for (; begin < end; begin += TOGETHER) {
        const int64_t here = end - begin < TOGETHER ? end - begin : TOGETHER;
        some(begin, here, sums);
        done(0, begin, here, sums);
    }
}

template <class V, class Way, class Scales, class Done>
void integers_of_one_row(const Integers& m, const Scales& scales, int64_t begin, int64_t end, Done done) {
    const OneRow row{static_cast<const uint16_t*>(m.prepared), m.weight, m.inputs / BLOCK};
    one_row(begin, end, [&](int64_t output, int64_t count, float* sums) { some_of_one_row<V, Way>(row, scales, output, count, sums); },
            done);
}

template <class V, class Way, class Done>
void mxfp4_of_one_row(const MxSource& m, const void* x, int64_t begin, int64_t end, Done done) {
    const OneRow row{static_cast<const uint16_t*>(x), m.weight, m.count};
    const PowerScales<false> powers{m.scales, m.count};
    const PowerScales<true> all{m.scales, m.count};
    one_row(begin, end, [&](int64_t output, int64_t count, float* sums) {
        if (all.any_end(output, count)) some_of_one_row<V, Way>(row, all, output, count, sums);
        else some_of_one_row<V, Way>(row, powers, output, count, sums);
    }, done);
}

}  // namespace
}  // namespace quintet
