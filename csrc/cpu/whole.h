// Products with packed weights in whole numbers, by dot instructions of bytes: of vectors (VNNI) for few rows, of tiles (AMX) for more.
//
// x has 16 bits by a power of two for each 128 inputs: numbers down to a 128th of the largest of these keep all bits that bfloat16
// has, smaller ones are rounded to a 32,000th of it. Weights are codes of 4 or 8 bits, as they are stored: nothing is looked up in
// floating point. So sums over 32 inputs are exact, in 32 bits, and those over 128 where these share a scale. Then
//
//     sum = sum over each 128 inputs of power * ((p0 + p1) + (p2 + p3)),   p = exact sum of 32 inputs * scale, in float32
//
// or of power * (exact sum of 128 inputs * scale). It goes by rising inputs, whatever the number of rows and threads: a row has the
// same bits in every batch.
//
// One or two rows are multiplied by vectors, as fast as memory brings the weights. For more a tile holds weights of 16 outputs, and
// another one both digits of 8 rows.
#pragma once

#include <immintrin.h>

#include "amx.h"
#include "digits.h"

namespace quintet {
namespace {

constexpr int64_t WIDE = 128;              // inputs that share a power of two: four blocks of 32
constexpr int64_t BY_VECTORS = 2;          // rows, up to here
constexpr int64_t SOME_ROWS = 8;           // whose digits are in one tile
constexpr int64_t LINES = 16;              // of a tile: outputs
constexpr int64_t TILE_LINE = 64;          // bytes
constexpr int64_t TILE_SIZE = LINES * TILE_LINE;

// What MXFP4's scales are times, and sums by the contrary: so no exact sum times a scale is too large for float32. Its numbers are
// doubled.
constexpr float LOWERED = 0x1p-22f, RAISED = 0x1p21f;

inline int64_t wide_blocks(int64_t inputs) { return (inputs + WIDE - 1) / WIDE; }

// ---- x -----------------------------------------------------------------------------------------------------------

// Each 32 inputs are in two halves of 16 bytes: of codes of 4 bits the even ones and the odd ones, of bytes the first and the last.
// By vectors a row is, for each 128 inputs, the high digits of first and of second halves, the low digits, and what sums begin with;
// behind all, powers of two. In tiles strips of 8 rows are, for each 128 inputs, lines with 4 bytes of a half for all rows: the high
// digits, then the low ones.
constexpr int64_t ROW_BYTES = 5 * 64;
constexpr int64_t STRIP_BYTES = 2 * TILE_SIZE;

// Bytes of a row that is multiplied by vectors: powers of two are read four at a time.
inline int64_t row_bytes(int64_t inputs) { return round_up(wide_blocks(inputs) * (ROW_BYTES + 4) + 12, 64); }
inline int64_t rows_bytes(int64_t inputs) { return wide_blocks(inputs) * (STRIP_BYTES + 64); }  // of a strip

// Digits of 128 inputs of a row, [high, low][block][half], and the sums of blocks.
struct Wide {
    alignas(64) int8_t digits[2][4][2][16];
    int32_t sums[4];
    float power;
};

template <bool nibbles>
inline void digits_of_wide(const __m512* x, Wide& to) {
    __m512 size = _mm512_setzero_ps();
    __mmask16 strange = 0;  // infinite, or no number
    each<8>([&](auto i) QUINTET_INLINED {
        size = _mm512_max_ps(size, _mm512_abs_ps(x[i]));
        strange |= _mm512_fpclass_ps_mask(x[i], 0x99);
    });
    to.power = strange ? __builtin_nanf("") : power_of(_mm512_reduce_max_ps(size));
    const __m512 by = _mm512_set1_ps(strange ? 0 : 1 / to.power);
    alignas(64) int32_t places[2][16];
    for (int i = 0; i < 16; ++i) places[0][i] = nibbles ? 2 * i : i, places[1][i] = nibbles ? 2 * i + 1 : 16 + i;
    for (int block = 0; block < 4; ++block) {
        __m512i some[2], total = _mm512_setzero_si512();
        for (int i = 0; i < 2; ++i) some[i] = strange ? total : _mm512_cvtps_epi32(_mm512_mul_ps(x[2 * block + i], by));
        for (int half = 0; half < 2; ++half) {
            const __m512i whole = _mm512_permutex2var_epi32(some[0], _mm512_load_si512(places[half]), some[1]);
            const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
            total = _mm512_add_epi32(total, whole);
            _mm_store_si128(reinterpret_cast<__m128i*>(to.digits[0][block][half]), _mm512_cvtepi32_epi8(high));
            _mm_store_si128(reinterpret_cast<__m128i*>(to.digits[1][block][half]), _mm512_cvtepi32_epi8(whole));
        }
        to.sums[block] = _mm512_reduce_add_epi32(total);
    }
}

// The 128 inputs of a row from `first` on.
template <class V, int T, bool nibbles>
inline void wide_of(const typename Element<T>::type* row, int64_t first, int64_t inputs, Wide& to) {
    typename Element<T>::type rest[WIDE];
    const typename Element<T>::type* from = row + first;
    if (inputs - first < WIDE) {
        std::memset(rest, 0, sizeof rest);
        std::memcpy(rest, from, size_t(inputs - first) * sizeof *rest);
        from = rest;
    }
    __m512 x[8];
    each<8>([&](auto i) QUINTET_INLINED { x[i] = V::template load<T>(from + 16 * i); });
    digits_of_wide<nibbles>(x, to);
}

template <class V, int T, bool nibbles>
void prepare_row(const typename Element<T>::type* row, int64_t inputs, int32_t added, char* to) {
    const int64_t blocks = wide_blocks(inputs);
    auto* powers = reinterpret_cast<float*>(to + blocks * ROW_BYTES);
    for (int64_t b = 0; b < blocks; ++b, to += ROW_BYTES) {
        Wide wide;
        wide_of<V, T, nibbles>(row, b * WIDE, inputs, wide);
        for (int digit = 0; digit < 2; ++digit)
            for (int block = 0; block < 4; ++block)
                for (int half = 0; half < 2; ++half) std::memcpy(to + digit * 128 + half * 64 + block * 16, wide.digits[digit][block][half], 16);
        int32_t begins[16] = {};
        for (int block = 0; block < 4; ++block) begins[4 * block] = -added * wide.sums[block];
        std::memcpy(to + 256, begins, sizeof begins);
        powers[b] = wide.power;
    }
}

// A strip of the rows `row(0)` to `row(count - 1)`.
template <class V, int T, bool nibbles, class Row>
void prepare_rows(Row row, int64_t count, int64_t inputs, char* to) {
    const int64_t blocks = wide_blocks(inputs);
    auto* powers = reinterpret_cast<float*>(to + blocks * STRIP_BYTES);
    Wide wide[SOME_ROWS];
    std::memset(wide, 0, sizeof wide);
    for (int64_t b = 0; b < blocks; ++b, powers += LANES) {
        for (int64_t r = 0; r < count; ++r) wide_of<V, T, nibbles>(row(r), b * WIDE, inputs, wide[r]);
        for (int64_t r = 0; r < LANES; ++r) powers[r] = wide[r % SOME_ROWS].power;
        for (int pair = 0; pair < 2; ++pair) {  // of blocks
            __m512i words[LANES];
            for (int64_t r = 0; r < LANES; ++r) words[r] = _mm512_load_si512(wide[r % SOME_ROWS].digits[r / SOME_ROWS][2 * pair]);
            transpose(words);
            for (int64_t i = 0; i < LANES; ++i, to += TILE_LINE) _mm512_storeu_si512(to, words[i]);
        }
    }
}

// ---- weights -----------------------------------------------------------------------------------------------------

// A weight of any format.
struct Whole {
    const uint8_t* weight;
    int64_t pitch;    // bytes of an output
    int64_t inputs;
    const void* scales;
    int scale_type;
    int64_t count;    // scales of an output
    int64_t each;     // blocks of 32 inputs that share one; 0 for one of all
    const uint8_t* zeros;
    bool by_block() const { return each % 4; }  // scales belong to sums of 32 inputs
};

inline Whole whole(const Integers& m) {
    return {m.weight, m.inputs * m.bits / 8, m.inputs, m.scales, m.scale_type, m.inputs / m.group, m.group == m.inputs ? 0 : m.group / BLOCK, m.zeros};
}
inline Whole whole(const MxSource& m) { return {m.weight, m.count * GROUP_BYTES, m.count * BLOCK, m.scales, POWERS, m.count, 1, nullptr}; }

template <Code C>
constexpr int64_t wide_bytes = C == BYTES ? 128 : 64;  // of an output, of 128 inputs

// What MXFP4's codes mean, doubled.
alignas(16) constexpr int8_t TWICE[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Codes of 128 inputs of an output, a byte each: the first and the second half of each block of 32, in a lane of 16.
struct Halves { __m512i first, second; };

template <Code C>
QUINTET_INLINED inline Halves split(__m512i a, __m512i b) {
    if constexpr (C == BYTES) return {_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd)};
    const __m512i low = _mm512_set1_epi8(15);
    return {_mm512_and_si512(a, low), _mm512_and_si512(_mm512_srli_epi16(a, 4), low)};
}

// `left` bytes of an output, wide_bytes at most, are read.
template <Code C>
QUINTET_INLINED inline void load_wide(const uint8_t* from, int64_t left, __m512i& a, __m512i& b) {
    const auto some = [](int64_t bytes) { return bytes >= 64 ? ~uint64_t(0) : bytes <= 0 ? 0 : (uint64_t(1) << bytes) - 1; };
    if (left >= wide_bytes<C>) {
        a = _mm512_loadu_si512(from);
        b = C == BYTES ? _mm512_loadu_si512(from + 64) : a;
    } else {
        a = _mm512_maskz_loadu_epi8(some(left), from);
        b = C == BYTES ? _mm512_maskz_loadu_epi8(some(left - 64), from + 64) : a;
    }
}

// Zeros of the four blocks from `block` on, in all bytes of their lanes; behind the last block anything, as x is 0 there.
inline __m512i zeros_of(const Whole& m, int64_t output, int64_t block) {
    const uint8_t* words = m.zeros + output / 8 * m.count * 4;
    const int shift = int(output % 8 * 4);
    __m128i four;
    if (m.each == 1) {
        const int64_t left = m.count - block;
        four = _mm_maskz_loadu_epi32(__mmask8(left < 4 ? (1 << left) - 1 : 15), words + 4 * block);
        four = _mm_and_si128(_mm_srl_epi32(four, _mm_cvtsi32_si128(shift)), _mm_set1_epi32(15));
    } else {
        int zero[4];
        for (int i = 0; i < 4; ++i) {
            const int64_t group = m.each ? uint32_t(block + i) / uint32_t(m.each) : 0;
            zero[i] = int(zero_code(words, group < m.count ? group : m.count - 1, shift));
        }
        four = _mm_set_epi32(zero[3], zero[2], zero[1], zero[0]);
    }
    const __m512i of_lane = _mm512_set_epi64(0x0c0c0c0c0c0c0c0c, 0x0c0c0c0c0c0c0c0c, 0x0808080808080808, 0x0808080808080808, 0x0404040404040404,
                                             0x0404040404040404, 0, 0);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(four), of_lane);
}

// With a sign, for tiles; or without, for vectors, with ADDED.
template <Code C>
QUINTET_INLINED inline __m512i with_sign(__m512i codes, __m512i zeros) {
    if constexpr (C == MX) return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(TWICE))), codes);
    if constexpr (C == EIGHT) return _mm512_sub_epi8(codes, _mm512_set1_epi8(8));
    if constexpr (C == ZERO) return _mm512_sub_epi8(codes, zeros);
    return codes;
}
template <Code C>
QUINTET_INLINED inline __m512i without_sign(__m512i codes, __m512i zeros) {
    if constexpr (C == MX) return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(DOUBLED))), codes);
    if constexpr (C == ZERO) return _mm512_sub_epi8(_mm512_add_epi8(codes, _mm512_set1_epi8(ADDED<ZERO>)), zeros);
    if constexpr (C == BYTES) return _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
    return codes;
}

// 2^(s - 127) of MXFP4's scales s, times LOWERED.
inline __m512 lowered_powers(__m512i codes) { return _mm512_mul_ps(powers_of(_mm512_slli_epi32(codes, 23)), _mm512_set1_ps(LOWERED)); }

// Up to 16 scales of an output from its scale `at` on, widened.
inline __m512 wide_scales(const Whole& m, int64_t output, int64_t at, int64_t here) {
    const int64_t index = output * m.count + at;
    if (m.scale_type != POWERS) return some_scales(m.scale_type, m.scales, index, here);
    const __mmask16 some = here < LANES ? __mmask16((1u << here) - 1) : __mmask16(0xffff);
    const __m128i ones = _mm_set1_epi8(127);  // behind the last one: sums are 0 there, and arithmetic is slow with numbers below 2^-126
    return lowered_powers(_mm512_cvtepu8_epi32(_mm_mask_loadu_epi8(ones, some, static_cast<const char*>(m.scales) + index)));
}

// Scales of 16 outputs become (blocks of 32, 16), or (128 inputs, 16) if these share one: SOME at a time, from a multiple of it on. Behind
// the last output it again.
struct LineScales {
    static constexpr int64_t SOME = 16;
    const Whole& m;
    int64_t each, first = 0, end = 0;
    alignas(64) float lines[SOME * LINES], groups[SOME * LINES];
    explicit LineScales(const Whole& of) : m(of), each(of.by_block() ? of.each : of.each / 4) {}
    // of the outputs that come next
    void ahead(int64_t output) const {
        const int64_t bytes = m.count * (m.scale_type == POWERS ? 1 : bytes_of(m.scale_type));
        if (m.each) ask_for_all(static_cast<const char*>(m.scales) + (output + LINES) * bytes, LINES * bytes);
    }
    // `unit` is a block of 32 or 128 inputs
    __attribute__((noinline)) void turn(int64_t output, int64_t last, int64_t unit) {
        first = unit / SOME * SOME, end = first + SOME;
        const int64_t begin = first / each;
        __m512i words[LINES];
        for (int64_t o = 0; o < LINES; ++o)
            words[o] = _mm512_castps_si512(wide_scales(m, output + o < last ? output + o : last - 1, begin, m.count - begin));
        transpose(words);
        float* to = each == 1 ? lines : groups;
        for (int64_t i = 0; i < LINES; ++i) _mm512_store_si512(to + i * LINES, words[i]);
        if (each == 1) return;
        for (int64_t i = 0; i < SOME; ++i) std::memcpy(lines + i * LINES, groups + ((first + i) / each - begin) * LINES, LINES * sizeof(float));
    }
    const float* at(int64_t output, int64_t last, int64_t unit) {
        if (unit >= end) turn(output, last, unit);
        return lines + (unit - first) * LINES;
    }
};

// ---- few rows ----------------------------------------------------------------------------------------------------

// Scales of an output, 512 inputs at a time.
struct RowScales {
    const Whole& m;
    int64_t output = 0;
    __m512i places;  // of the scale of block 4 j + g at 4 g + j
    explicit RowScales(const Whole& of) : m(of) {
        alignas(64) int32_t to[16];
        for (int i = 0; i < 16; ++i) to[i] = i % 4 * 4 + i / 4;
        if (m.each == 2)
            for (int i = 0; i < 16; ++i) to[i] /= 2;
        places = _mm512_load_si512(to);
    }
    // Of 16 blocks of 32 from `block` on, as far as there are so many: a lane for each block of 128 inputs, in which a place is one of these.
    QUINTET_INLINED __m512 of_blocks(int64_t block) const {
        if (m.each <= 2) {
            const int64_t at = m.each == 1 ? block : block / 2, here = m.count - at;
            return _mm512_permutexvar_ps(places, wide_scales(m, output, at, m.each == 2 && here > 8 ? 8 : here));
        }
        alignas(64) float found[16];
        for (int64_t i = 0; i < 16; ++i) found[i % 4 * 4 + i / 4] = at_most(uint32_t(block + i) / uint32_t(m.each));
        return _mm512_load_ps(found);
    }
    // Of four times 128 inputs, which share one each.
    QUINTET_INLINED __m128 of_wide(int64_t b) const {
        if (m.each == 4) return _mm512_castps512_ps128(wide_scales(m, output, b, m.count - b < 4 ? m.count - b : 4));
        alignas(16) float found[4];
        for (int64_t j = 0; j < 4; ++j) found[j] = at_most(uint32_t(4 * (b + j)) / uint32_t(m.each));
        return _mm_load_ps(found);
    }
    float at_most(int64_t scale) const { return scale < m.count ? _mm512_cvtss_f32(wide_scales(m, output, scale, 1)) : 0; }
};

constexpr int64_t LEAD = 8192;  // bytes of a weight that are on their way to the second cache

// Sums of some outputs and R rows. Weights are read in one stream: four times 128 inputs of an output, then those that follow.
template <Code C, bool by_block, int R>
__attribute__((noinline)) void few_sums(const Whole& m, const char* x, int64_t output, int64_t count, float* sums) {
    const int64_t blocks = wide_blocks(m.inputs), row = row_bytes(m.inputs);
    RowScales scales(m);
    for (int64_t o = 0; o < count; ++o) {
        scales.output = output + o;
        const uint8_t* weight = m.weight + scales.output * m.pitch;
        __m128 acc[R];  // in the lowest place
        each<R>([&](auto r) QUINTET_INLINED { acc[r] = _mm_setzero_ps(); });
        // Blocks b to b + 3 of which `here` are there, and of the last one `left` bytes.
        const auto add = [&](int64_t b, auto here, int64_t left) QUINTET_INLINED {
            __m512i first[4], second[4];
            each<4>([&](auto j) QUINTET_INLINED {
                if constexpr (j >= here) return;
                const uint8_t* from = weight + (b + j) * wide_bytes<C>;
                each<wide_bytes<C> / 64>([&](auto i) QUINTET_INLINED { ask_for_later(from + LEAD + 64 * i); });
                __m512i low, high, zeros = _mm512_setzero_si512();
                load_wide<C>(from, j == here - 1 ? left : wide_bytes<C>, low, high);
                const Halves codes = split<C>(low, high);
                if constexpr (C == ZERO) zeros = zeros_of(m, scales.output, 4 * (b + j));
                first[j] = without_sign<C>(codes.first, zeros), second[j] = without_sign<C>(codes.second, zeros);
            });
            __m512 of_blocks = _mm512_setzero_ps();
            __m128 of_wide = _mm_set1_ps(1);
            if constexpr (by_block) of_blocks = scales.of_blocks(4 * b);
            else if (m.each) of_wide = scales.of_wide(b);
            each<R>([&](auto r) QUINTET_INLINED {
                const char* its = x + r * row;
                __m512i sum[4];
                each<4>([&](auto j) QUINTET_INLINED {
                    sum[j] = _mm512_setzero_si512();
                    if constexpr (j >= here) return;
                    const auto part = [&](int i) QUINTET_INLINED { return _mm512_loadu_si512(its + (b + j) * ROW_BYTES + 64 * i); };
                    const __m512i high = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum[j], first[j], part(0)), second[j], part(1));
                    const __m512i low = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(part(4), first[j], part(2)), second[j], part(3));
                    sum[j] = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
                });
                // a lane stays that of a block of 32 inputs, places in it become those of 128 inputs
                const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[0], sum[1]), _mm512_unpackhi_epi32(sum[0], sum[1]));
                const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[2], sum[3]), _mm512_unpackhi_epi32(sum[2], sum[3]));
                const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
                __m128 total;
                if constexpr (by_block) {
                    const __m512 p = _mm512_mul_ps(_mm512_cvtepi32_ps(all), of_blocks), pairs = _mm512_add_ps(p, _mm512_shuffle_f32x4(p, p, 0xb1));
                    total = _mm_add_ps(_mm512_castps512_ps128(pairs), _mm512_extractf32x4_ps(pairs, 2));
                } else {
                    const __m512i pairs = _mm512_add_epi32(all, _mm512_shuffle_i32x4(all, all, 0xb1));
                    total = _mm_cvtepi32_ps(_mm_add_epi32(_mm512_castsi512_si128(pairs), _mm512_extracti32x4_epi32(pairs, 2)));
                    if (m.each) total = _mm_mul_ps(total, of_wide);
                }
                const __m128 powers = _mm_loadu_ps(reinterpret_cast<const Loose32*>(its + blocks * ROW_BYTES) + b);
                each<4>([&](auto j) QUINTET_INLINED {
                    constexpr int place = j * 0x55;
                    if constexpr (j < here) acc[r] = _mm_fmadd_ss(_mm_permute_ps(total, place), _mm_permute_ps(powers, place), acc[r]);
                });
            });
        };
        const int64_t full = m.inputs / WIDE / 4 * 4, here = blocks - full, left = m.pitch - (blocks - 1) * wide_bytes<C>;
        for (int64_t b = 0; b < full; b += 4) add(b, std::integral_constant<int, 4>(), wide_bytes<C>);
        if (here == 1) add(full, std::integral_constant<int, 1>(), left);
        else if (here == 2) add(full, std::integral_constant<int, 2>(), left);
        else if (here == 3) add(full, std::integral_constant<int, 3>(), left);
        else if (here == 4) add(full, std::integral_constant<int, 4>(), left);
        each<R>([&](auto r) QUINTET_INLINED { sums[r * LINES + o] = _mm_cvtss_f32(acc[r]); });
    }
}

// ---- tiles -------------------------------------------------------------------------------------------------------

// Weights are in tiles 4 (a block of 32 inputs) and 5 (two blocks), x in 6 and 7, sums in 0 to 3.
inline TileShapes shapes_of_bytes() {
    TileShapes shapes;
    shapes.set(4, LINES, BLOCK);
    shapes.set(6, BLOCK / 4, TILE_LINE);
    return shapes;
}

// Lines of two tiles of 16 outputs: 64 inputs each.
template <Code C>
struct TileLines {
    const Whole& m;
    int64_t output, last;  // the first one, and how many follow it
    // Of 128 inputs; `also(i)` is done with line i.
    template <class Also>
    QUINTET_INLINED void fill(int64_t b, char* to, Also also) const {
        const int64_t left = m.pitch - b * wide_bytes<C>;
        const uint8_t* from = m.weight + output * m.pitch + b * wide_bytes<C>;
        const __m512i in_turn = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), rest = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
        const auto line = [&](int64_t i, int64_t which, int64_t bytes) QUINTET_INLINED {
            __m512i a, c;
            load_wide<C>(from + which * m.pitch, bytes, a, c);
            if constexpr (C != BYTES) {
                const Halves codes = split<C>(a, c);
                __m512i zeros = a;
                if constexpr (C == ZERO) zeros = zeros_of(m, output + which, 4 * b);
                const __m512i first = with_sign<C>(codes.first, zeros), second = with_sign<C>(codes.second, zeros);
                a = _mm512_permutex2var_epi64(first, in_turn, second), c = _mm512_permutex2var_epi64(first, rest, second);
            }
            _mm512_store_si512(to + i * TILE_LINE, a);
            _mm512_store_si512(to + TILE_SIZE + i * TILE_LINE, c);
        };
        if (last == LINES - 1 && left >= wide_bytes<C>) {
            each<LINES>([&](auto i) QUINTET_INLINED {
                also(i);
                line(i, i, wide_bytes<C>);
            });
        } else {
            for (int64_t i = 0; i < LINES; ++i) line(i, i < last ? i : last, left);
        }
    }
};

// Exact sums of 128 inputs, where `by_block` of each 32, are stored: lines of an output, with the high digits of all rows before the
// low ones.
template <bool by_block>
QUINTET_TILED QUINTET_INLINED inline void multiply_wide(const char* w, const char* x, int32_t* to) {
    if constexpr (by_block) {
        constexpr int64_t block = TILE_SIZE / 2;  // of x
        QUINTET_TILE_LOAD(4, w, TILE_LINE);
        QUINTET_TILE_LOAD(6, x, TILE_LINE);
        QUINTET_TILE_ZERO(0);
        QUINTET_TILE_ADD_BYTES(0, 4, 6);
        QUINTET_TILE_LOAD(4, w + BLOCK, TILE_LINE);
        QUINTET_TILE_LOAD(6, x + block, TILE_LINE);
        QUINTET_TILE_ZERO(1);
        QUINTET_TILE_ADD_BYTES(1, 4, 6);
        QUINTET_TILE_LOAD(4, w + TILE_SIZE, TILE_LINE);
        QUINTET_TILE_LOAD(6, x + 2 * block, TILE_LINE);
        QUINTET_TILE_ZERO(2);
        QUINTET_TILE_ADD_BYTES(2, 4, 6);
        QUINTET_TILE_LOAD(4, w + TILE_SIZE + BLOCK, TILE_LINE);
        QUINTET_TILE_LOAD(6, x + 3 * block, TILE_LINE);
        QUINTET_TILE_ZERO(3);
        QUINTET_TILE_ADD_BYTES(3, 4, 6);
        // all at once: who stores a tile waits for what is added to it
        QUINTET_TILE_STORE(0, to, TILE_LINE);
        QUINTET_TILE_STORE(1, to + 256, TILE_LINE);
        QUINTET_TILE_STORE(2, to + 512, TILE_LINE);
        QUINTET_TILE_STORE(3, to + 768, TILE_LINE);
    } else {
        QUINTET_TILE_ZERO(0);
        QUINTET_TILE_LOAD(5, w, TILE_LINE);
        QUINTET_TILE_LOAD(7, x, TILE_LINE);
        QUINTET_TILE_ADD_BYTES(0, 5, 7);
        QUINTET_TILE_LOAD(5, w + TILE_SIZE, TILE_LINE);
        QUINTET_TILE_LOAD(7, x + TILE_SIZE, TILE_LINE);
        QUINTET_TILE_ADD_BYTES(0, 5, 7);
        QUINTET_TILE_STORE(0, to, TILE_LINE);
    }
}

inline __m256i half_line(const int32_t* from) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(from)); }

// Of two outputs, sums of both digits of eight rows.
QUINTET_INLINED inline __m512 exact_sums(const int32_t* stored) {
    const __m512i high = _mm512_inserti64x4(_mm512_castsi256_si512(half_line(stored)), half_line(stored + 16), 1);
    const __m512i low = _mm512_inserti64x4(_mm512_castsi256_si512(half_line(stored + 8)), half_line(stored + 24), 1);
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
}

// Sums of 16 outputs and up to eight rows. What is stored of a tile cannot be read before long: sums of 128 inputs are scaled while
// those of the next are multiplied, and weights are unpacked one step before.
template <Code C, bool by_block>
QUINTET_TILED __attribute__((noinline)) void some_sums(const Whole& m, const char* x, int64_t output, int64_t end, int64_t rows, float* sums) {
    constexpr int parts = by_block ? 4 : 1;  // of 128 inputs, each with a scale
    const int64_t blocks = wide_blocks(m.inputs);
    const auto* powers = reinterpret_cast<const float*>(x + blocks * STRIP_BYTES);
    alignas(64) char tiles[2][2 * TILE_SIZE];
    alignas(64) int32_t stored[2][parts * 256];
    LineScales scales(m);
    scales.ahead(output);
    TileLines<C> lines{m, output, end - output < LINES ? end - output - 1 : LINES - 1};
    const char* further = reinterpret_cast<const char*>(m.weight) + (output + LINES) * m.pitch;
    const auto fill = [&](int64_t b) QUINTET_INLINED {
        lines.fill(b, tiles[b % 2], [&](int64_t i) QUINTET_INLINED {
            for (int64_t line = 0; line < wide_bytes<C>; line += 64) ask_for_later(further + i * wide_bytes<C> + line);
        });
        further += LINES * wide_bytes<C>;
    };
    __m512 acc[SOME_ROWS];  // of two outputs each
    each<SOME_ROWS>([&](auto v) QUINTET_INLINED { acc[v] = _mm512_setzero_ps(); });
    const __m512i own = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    fill(0);
    for (int64_t b = 0; b <= blocks; ++b) {
        if (b + 1 < blocks) fill(b + 1);
        if (b < blocks) multiply_wide<by_block>(tiles[b % 2], x + b * STRIP_BYTES, stored[b % 2]);
        if (!b) continue;
        const int32_t* from = stored[(b - 1) % 2];
        const float* by = m.each ? scales.at(output, end, (b - 1) * parts) : nullptr;
        const __m512 power = _mm512_load_ps(powers + (b - 1) * LANES);
        each<SOME_ROWS>([&](auto v) QUINTET_INLINED {
            const auto scale = [&](int g) QUINTET_INLINED {
                return _mm512_permutexvar_ps(_mm512_add_epi32(own, _mm512_set1_epi32(2 * v)), _mm512_load_ps(by + g * LINES));
            };
            __m512 sum = exact_sums(from + v * 32);
            if constexpr (by_block) {
                __m512 p[4];
                each<4>([&](auto g) QUINTET_INLINED { p[g] = _mm512_mul_ps(g ? exact_sums(from + g * 256 + v * 32) : sum, scale(g)); });
                sum = _mm512_add_ps(_mm512_add_ps(p[0], p[1]), _mm512_add_ps(p[2], p[3]));
            } else if (by) {
                sum = _mm512_mul_ps(sum, scale(0));
            }
            acc[v] = _mm512_fmadd_ps(sum, power, acc[v]);
        });
    }
    alignas(64) float flat[SOME_ROWS * LINES];
    each<SOME_ROWS>([&](auto v) QUINTET_INLINED { _mm512_store_ps(flat + v * LANES, acc[v]); });
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t o = 0; o < LINES; ++o) sums[r * LINES + o] = flat[o * SOME_ROWS + r];
}

// ---- entries -----------------------------------------------------------------------------------------------------

// `done(row, output, count, sums)` takes the sums of a row and some outputs, not yet times the scale of an output.
template <Code C, bool by_block, class Done>
QUINTET_TILED void whole_range(const Whole& m, const Rows& rows, int64_t begin, int64_t end, Done done) {
    alignas(64) float sums[SOME_ROWS * LINES];
    const auto* x = static_cast<const char*>(rows.x);
    const auto finished = [&](int64_t row, int64_t count, int64_t output, int64_t here) QUINTET_INLINED {
        for (int64_t r = 0; r < count; ++r) done(row + r, output, here, sums + r * LINES);
    };
    if (rows.count <= BY_VECTORS) {
        for (; begin < end; begin += LINES) {
            const int64_t here = end - begin < LINES ? end - begin : LINES;
            if (rows.count == 1) few_sums<C, by_block, 1>(m, x, begin, here, sums);
            else few_sums<C, by_block, 2>(m, x, begin, here, sums);
            finished(0, rows.count, begin, here);
        }
        return;
    }
    const Tiles tiles(shapes_of_bytes());
    ask_for_all(m.weight + begin * m.pitch, LINES * m.pitch < 16384 ? LINES * m.pitch : 16384);
    for (; begin < end; begin += LINES) {
        const int64_t here = end - begin < LINES ? end - begin : LINES;
        for (int64_t row = 0; row < rows.count; row += SOME_ROWS) {
            const int64_t count = rows.count - row < SOME_ROWS ? rows.count - row : SOME_ROWS;
            some_sums<C, by_block>(m, x + row / SOME_ROWS * rows_bytes(m.inputs), begin, end, count, sums);
            finished(row, count, begin, here);
        }
    }
}

template <class V>
struct InWhole {
    static constexpr bool strips = true;
    // of a row where all are in strips of 8; a panel has room for 16 rows, so that two by vectors fit too
    static size_t bytes(int64_t inputs) { return size_t(rows_bytes(inputs) / SOME_ROWS); }
    static size_t memory(int64_t) { return 0; }
    // `count` rows from the first one of a strip on, of `all`: they may be more than a strip has.
    template <int T, Code C, class Row>
    static void strip(Row row, int64_t count, int64_t all, int64_t inputs, char* to) {
        for (int64_t r = 0; r < count; r += all <= BY_VECTORS ? 1 : SOME_ROWS) {
            if (all <= BY_VECTORS) prepare_row<V, T, C != BYTES>(row(r), inputs, ADDED<C>, to + r * row_bytes(inputs));
            else prepare_rows<V, T, C != BYTES>([&](int64_t i) { return row(r + i); }, count - r < SOME_ROWS ? count - r : SOME_ROWS, inputs,
                                                to + r / SOME_ROWS * rows_bytes(inputs));
        }
    }
    // Rows `begin` to `end`: where there are more than STRIP of them, a multiple of it the first one.
    template <int T, Code C>
    static void prepare(int, int64_t begin, int64_t end, const void* x, int64_t stride, int64_t inputs, void* to) {
        const auto* from = static_cast<const typename Element<T>::type*>(x) + begin * stride;
        strip<T, C>([=](int64_t r) { return from + r * stride; }, end - begin, begin ? STRIP : end, inputs,
                    static_cast<char*>(to) + begin / SOME_ROWS * rows_bytes(inputs));
    }
    template <class Done>
    static void product(const MxSource& from, const Rows& rows, int64_t begin, int64_t end, void*, Done done) {
        whole_range<MX, true>(whole(from), rows, begin, end, [&](int64_t row, int64_t output, int64_t count, float* sums) {
            for (int64_t i = 0; i < count; ++i) sums[i] *= RAISED;
            done(row, output, count, sums);
        });
    }
    template <Code C>
    static void integers_of(const Integers& m, int64_t begin, int64_t end) {
        const Rows rows{m.prepared, int64_t(bytes(m.inputs)), nullptr, m.rows};
        const Whole w = whole(m);
        auto done = [&](int64_t row, int64_t output, int64_t count, float* sums) {
            if (!w.each) {
                float scale[LINES];
                widen_scales<V>(m.scale_type, m.scales, output, count, scale);
                for (int64_t i = 0; i < count; ++i) sums[i] *= scale[i];
            }
            finish<V>(m, row, output, count, sums);
        };
        if (w.by_block()) whole_range<C, true>(w, rows, begin, end, done);
        else whole_range<C, false>(w, rows, begin, end, done);
    }
    static void integers(const Integers& m, int64_t begin, int64_t end, void*) {
        if (m.bits == 8) integers_of<BYTES>(m, begin, end);
        else if (m.zeros) integers_of<ZERO>(m, begin, end);
        else integers_of<EIGHT>(m, begin, end);
    }
};

}  // namespace
}  // namespace quintet
