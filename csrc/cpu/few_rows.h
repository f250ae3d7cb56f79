// One to eight rows of bfloat16 with packed weights of 4 bits (AVX-512): most of what a token is made of.
//
// The sums are those of groups.h. Here scales go from memory into the lanes they are for, and what is computed side by side is
// chosen for this CPU's registers and pipes: sums that do not wait for each other, and each number of x for two outputs.
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

// ---- scales ------------------------------------------------------------------------------------------------------

// A step takes four blocks, each 4 lanes of a vector. Where `wide` numbers (4, 2 or 1) are for the four blocks: which is a lane's.
inline int number_of_lane(int lane, int wide) { return lane / 4 * wide / 4; }

inline __m512i lanes_of(int wide) {
    alignas(64) int32_t places[16];
    for (int i = 0; i < 16; ++i) places[i] = number_of_lane(i, wide);
    return _mm512_load_si512(places);
}

// Numbers of `size` bytes become the highest bytes of their lanes, the rest is zero. Places are within 16 bytes.
inline __m512i highest_bytes(int size, int wide) {
    alignas(64) uint8_t places[64];
    for (int i = 0; i < 64; ++i)
        places[i] = i % 4 < 4 - size ? 0x80 : uint8_t(number_of_lane(i / 4, wide) * size + i % 4 - (4 - size));
    return _mm512_load_si512(places);
}

// What is known of scales when a product is compiled: for one and two rows all, for more that would cost compilers more than it saves.
constexpr int ANY = -1;

// Scales of MXFP4, with 0 and 255 among them (1), without (0), or ANY.
template <int ends>
struct PowerScales {
    const uint8_t* scales;
    int64_t count;
    bool among = ends == 1;
    __m512i places = highest_bytes(1, 4);
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
    void ahead(int64_t output, int64_t outputs) const { ask_for_all(scales + output * count, outputs * count); }
    QUINTET_INLINED __m512 scale(int64_t output, int64_t block, int here) const {
        const uint8_t* from = scales + output * count + block;
        const __m128i four = here < 4 ? _mm_maskz_loadu_epi8(__mmask16((1 << here) - 1), from) : _mm_loadu_si32(from);
        const __m512i power = _mm512_srli_epi32(_mm512_shuffle_epi8(_mm512_broadcastd_epi32(four), places), 1);
        return ends == 1 || (ends == ANY && among) ? powers_of(power) : _mm512_castsi512_ps(power);
    }
    __m512i shift(int64_t, int64_t, int) const { return _mm512_setzero_si512(); }
};

// Scales of type T or ANY, and zeros, of groups of so many blocks that a step has four, two, or (part of) one.
template <int T, bool zeros>
struct GroupScales {
    const char* scales;
    const uint8_t* words;
    int64_t count, each;  // groups of an output, blocks of a group
    int wide;             // groups of a step
    int type;
    __m512i places, lanes;
    static bool takes(const Integers& m) {
        return m.group == m.inputs || m.group == BLOCK || m.group == 2 * BLOCK || m.group % (4 * BLOCK) == 0;
    }
    explicit GroupScales(const Integers& m)
        : scales(static_cast<const char*>(m.scales)), words(m.zeros), count(m.inputs / m.group), each(m.group / BLOCK),
          wide(count == 1 ? 1 : each == 1 ? 4 : each == 2 ? 2 : 1), type(T == ANY ? m.scale_type : T), places(highest_bytes(2, wide)),
          lanes(lanes_of(wide)) {}
    void ahead(int64_t output, int64_t outputs) const {
        const int64_t bytes = count * bytes_of(type);
        ask_for_all(scales + output * bytes, outputs * bytes);
    }
    int64_t group_of(int64_t block) const { return each == 1 ? block : uint32_t(block) / uint32_t(each); }
    // The numbers of `size` bytes of a step that has `here` blocks, from the left on in each 16 bytes: at least the first 8 bytes.
    template <int size>
    QUINTET_INLINED __m512i some(const void* from, int here) const {
        if (here == 4 && wide == 4) {  // what most weights have: no more than a load
            if (size == 4) return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(from)));
            return _mm512_broadcastq_epi64(_mm_loadu_si64(from));
        }
        const int numbers = here < 4 ? (here * wide + 3) / 4 : wide;
        return _mm512_broadcast_i32x4(_mm_maskz_loadu_epi8(__mmask16((1u << numbers * size) - 1), from));
    }
    QUINTET_INLINED __m512 scale(int64_t output, int64_t block, int here) const {
        const int64_t at = output * count + group_of(block);
        const int is = T == ANY ? type : T;
        if (is == FP32) return _mm512_permutexvar_ps(lanes, _mm512_castsi512_ps(some<4>(scales + 4 * at, here)));
        const __m512i four = some<2>(scales + 2 * at, here);
        if (is == BF16) return _mm512_castsi512_ps(_mm512_shuffle_epi8(four, places));
        return _mm512_permutexvar_ps(lanes, _mm512_cvtph_ps(_mm512_castsi512_si256(four)));
    }
    // 16 - zero, in 16 bits
    QUINTET_INLINED __m512i shift(int64_t output, int64_t block, int here) const {
        if (!zeros) return _mm512_setzero_si512();
        const __m512i four = some<4>(words + (output / 8 * count + group_of(block)) * 4, here);
        const __m512i codes = _mm512_and_si512(_mm512_srl_epi32(four, _mm_cvtsi32_si128(int(output % 8 * 4))), _mm512_set1_epi32(15));
        const __m512i moved = _mm512_sub_epi32(_mm512_set1_epi32(16), codes);
        return _mm512_permutexvar_epi32(lanes, _mm512_or_si512(moved, _mm512_slli_epi32(moved, 16)));
    }
};

// ---- products ----------------------------------------------------------------------------------------------------

// What is computed side by side (measured): outputs, which all have their sums in registers; outputs that are unpacked and
// multiplied with the same numbers of x; rows whose sums of a step are in registers. One row is held by memory, which is read
// fastest in one stream; more are held by arithmetic.
template <int R>
struct Shape {
    static constexpr int outputs = R == 1 ? 1 : R < 4 ? 4 : 2, unpacked = R == 1 ? 1 : 2, rows = R < 5 ? R : 3;
};

constexpr int64_t APART = TOGETHER + 4;  // from the sums of a row to those of the next: the last four may be written in part

// Sums of R rows and the outputs from `output` on.
template <class V, class Way, int R, class Scales>
__attribute__((noinline)) void few_sums(const uint8_t* weight, int64_t blocks, const Rows& rows, const Scales& by, int64_t output,
                                        int64_t count, float* sums) {
    constexpr int O = Shape<R>::outputs, P = Shape<R>::unpacked, H = Shape<R>::rows;
    const Scales scales = by;  // not behind a pointer, where the sums might be
    const Ahead ahead(blocks * GROUP_BYTES, O);
    const uint16_t* x[R];
    for (int r = 0; r < R; ++r) x[r] = static_cast<const uint16_t*>(rows.at(r));
    while (count > 0) {
        const int64_t next = count < O ? 0 : 1, pitch = next * blocks * GROUP_BYTES;  // the last ones alone, O times the same
        const uint8_t* w = weight + output * blocks * GROUP_BYTES;
        scales.ahead(output + TOGETHER, O);
        __m512 acc[R][O];
        each<R>([&](auto r) QUINTET_INLINED { each<O>([&](auto o) QUINTET_INLINED { acc[r][o] = _mm512_setzero_ps(); }); });
        auto step = [&](auto load, int64_t block, int here) QUINTET_INLINED {
            each<O / P>([&](auto g) QUINTET_INLINED {
                typename Way::Loaded loaded[P];
                each<P>([&](auto p) QUINTET_INLINED {
                    constexpr int o = g * P + p;
                    ahead.template ask<O>(w, block * GROUP_BYTES, o);
                    const int64_t at = output + o * next;
                    loaded[p] = Way::made(load(w + o * pitch + block * GROUP_BYTES), scales.scale(at, block, here), scales.shift(at, block, here));
                });
                each<(R + H - 1) / H>([&](auto h) QUINTET_INLINED {
                    constexpr int first = h * H, some = R - first < H ? R - first : H;
                    __m512 part[some][P];
                    each<4>([&](auto j) QUINTET_INLINED {
                        each<some>([&](auto r) QUINTET_INLINED {
                            const __m512bh value = load_bf16(x[first + r] + block * BLOCK + 32 * j);
                            each<P>([&](auto p) QUINTET_INLINED {
                                part[r][p] = _mm512_dpbf16_ps(j ? part[r][p] : _mm512_setzero_ps(), loaded[p].value[j], value);
                            });
                        });
                    });
                    each<some>([&](auto r) QUINTET_INLINED {
                        each<P>([&](auto p) QUINTET_INLINED {
                            auto& to = acc[first + r][g * P + p];
                            to = _mm512_fmadd_ps(part[r][p], loaded[p].scale, to);
                        });
                    });
                });
            });
        };
        int64_t block = 0;
        for (; block + 4 <= blocks; block += 4)
            step([](const uint8_t* from) QUINTET_INLINED { return _mm512_loadu_si512(from); }, block, 4);
        if (block < blocks) {
            const int here = int(blocks - block);
            const __mmask64 some = (uint64_t(1) << 16 * here) - 1;
            step([=](const uint8_t* from) QUINTET_INLINED { return _mm512_maskz_loadu_epi8(some, from); }, block, here);
        }
        write_sums<V, R, O>(acc, sums, APART);
        const int done = next ? O : 1;
        count -= done, output += done, sums += done;
    }
}

// `some(R, output, count, sums)` makes the sums of R rows and TOGETHER outputs at most.
template <int R, class Some, class Done>
inline void few_range(int64_t begin, int64_t end, Some some, Done done) {
    float sums[R * APART];
    for (; begin < end; begin += TOGETHER) {
        const int64_t here = end - begin < TOGETHER ? end - begin : TOGETHER;
        some(std::integral_constant<int, R>(), begin, here, sums);
        for (int r = 0; r < R; ++r) done(r, begin, here, sums + r * APART);
    }
}

// For one or two rows, or for more: each is compiled for its own kinds of scales.
template <bool more, class Some, class Done>
void few_rows(int64_t rows, int64_t begin, int64_t end, Some some, Done done) {
    if constexpr (more) {
        switch (rows) {
            case 3: return few_range<3>(begin, end, some, done);
            case 4: return few_range<4>(begin, end, some, done);
            case 5: return few_range<5>(begin, end, some, done);
            case 6: return few_range<6>(begin, end, some, done);
            case 7: return few_range<7>(begin, end, some, done);
            case 8: return few_range<8>(begin, end, some, done);
            default: return;
        }
    } else {
        if (rows == 1) few_range<1>(begin, end, some, done);
        else if (rows == 2) few_range<2>(begin, end, some, done);
    }
}

template <class V, class Way, class Done>
void few_rows(const Integers& m, const Rows& rows, int64_t begin, int64_t end, Done done) {
    const auto with = [&](auto more, const auto& scales) {
        few_rows<more>(rows.count, begin, end, [&](auto r, int64_t output, int64_t count, float* sums) {
            few_sums<V, Way, r>(m.weight, m.inputs / BLOCK, rows, scales, output, count, sums);
        }, done);
    };
    if (rows.count > 2) with(std::true_type(), GroupScales<ANY, Way::zeros>(m));
    else if (m.scale_type == FP32) with(std::false_type(), GroupScales<FP32, Way::zeros>(m));
    else if (m.scale_type == BF16) with(std::false_type(), GroupScales<BF16, Way::zeros>(m));
    else with(std::false_type(), GroupScales<FP16, Way::zeros>(m));
}

template <class V, class Way, class Done>
void few_rows(const MxSource& m, const Rows& rows, int64_t begin, int64_t end, Done done) {
    if (rows.count > 2) {
        PowerScales<ANY> scales{m.scales, m.count};
        return few_rows<true>(rows.count, begin, end, [&](auto r, int64_t output, int64_t count, float* sums) {
            scales.among = scales.any_end(output, count);
            few_sums<V, Way, r>(m.weight, m.count, rows, scales, output, count, sums);
        }, done);
    }
    const PowerScales<0> powers{m.scales, m.count};
    const PowerScales<1> ends{m.scales, m.count};
    few_rows<false>(rows.count, begin, end, [&](auto r, int64_t output, int64_t count, float* sums) {
        if (ends.any_end(output, count)) few_sums<V, Way, r>(m.weight, m.count, rows, ends, output, count, sums);
        else few_sums<V, Way, r>(m.weight, m.count, rows, powers, output, count, sums);
    }, done);
}

}  // namespace
}  // namespace quintet
