// Products in whole numbers, by the dot instructions of bytes (AVX-512 VNNI): x becomes digits of 8 bits, weights bytes
// without a sign, sums over a block of 32 inputs are exact, and are scaled and added up in float32. What makes weights numbers
// without a sign is the same for all of a format, so that what it adds to a sum is known when x is prepared.
//
// With two digits x has 16 bits by a power of two for each block: numbers down to a 64th of the block's largest keep all
// bits that bfloat16 has, smaller ones are rounded to a 32,000th of it. With one digit x is rounded to 8 bits by the
// block's largest over 127.
//
// 16 outputs are computed at once, a lane each: four inputs of each stand in a vector, and are multiplied with four
// inputs of a row. The sum of an output goes by rising blocks, whatever the number of rows.
#pragma once

#include <immintrin.h>

#include "few_rows.h"
#include "many.h"
#include "transpose.h"

namespace quintet {
namespace {

constexpr int LANES = 16;      // outputs of a vector
constexpr int PANEL_LANES = 32;  // outputs that are unpacked at a time for many rows
constexpr int POWERS = 3;      // besides Type: scales of MXFP4

// A weight of any format: bytes of 8 bits, or two codes of 4 bits in each.
struct Digital {
    const uint8_t* weight;
    int64_t pitch;    // bytes of an output
    int64_t blocks;   // of 32 inputs, the last perhaps with fewer
    int64_t each;     // blocks that share a scale; 0 for one scale of all
    const void* scales;
    int scale_type;
    int64_t count;    // scales of an output
    const uint8_t* zeros;
};

inline Digital digital(const Integers& m) {
    const bool all = m.bits == 8 && m.group == m.inputs;
    return {m.weight, m.inputs * m.bits / 8, (m.inputs + BLOCK - 1) / BLOCK, all ? 0 : m.group / BLOCK, m.scales, m.scale_type,
            m.inputs / m.group, m.zeros};
}

inline Digital digital(const MxSource& from) {
    return {from.weight, from.count * GROUP_BYTES, from.count, 1, from.scales, POWERS, from.count, nullptr};
}

// ---- rows --------------------------------------------------------------------------------------------------------

// A prepared row: for each block its D digits, the highest first, 32 bytes each; scales; what sums begin with.
struct Row {
    const int8_t* digits;
    const float* scales;
    const int32_t* begins;
    template <int D>
    static Row at(const void* memory, int64_t blocks) {
        const auto* from = static_cast<const int8_t*>(memory);
        const int64_t digits = round_up(blocks * BLOCK * D, 64), numbers = round_up(blocks * 4, 64);
        return {from, reinterpret_cast<const float*>(from + digits), reinterpret_cast<const int32_t*>(from + digits + numbers)};
    }
    template <int D>
    Row from(int64_t block) const { return {digits + block * BLOCK * D, scales + block, begins + block}; }
};

// An odd number of cache lines, so that rows do not fall on the same places.
inline size_t digits_bytes(int64_t inputs, int planes) {
    const int64_t blocks = (inputs + BLOCK - 1) / BLOCK;
    return size_t((round_up(blocks * BLOCK * planes, 64) + 2 * round_up(blocks * 4, 64)) / 64 | 1) * 64;
}

// The power of two by which a block of 16 bits is counted: its largest number is at most 32,639, which two signed
// digits can say.
inline float power_of(float largest) {
    uint32_t bits;
    std::memcpy(&bits, &largest, 4);
    int exponent = int(bits >> 23) - 14;
    exponent = exponent < 1 ? 1 : exponent;
    const auto power = [](int at) {
        const uint32_t made = uint32_t(at) << 23;
        float value;
        std::memcpy(&value, &made, 4);
        return value;
    };
    return largest / power(exponent) < 32639.5f ? power(exponent) : power(exponent + 1);
}

// 32 numbers of which the last may be missing, and their sum. Codes of 4 bits want, of eight inputs, the even ones before the
// odd ones.
template <int D, bool nibbles>
inline void digits_of_block(const __m512* x, int8_t* digits, float* scale, int32_t* sum) {
    const __m512 size = _mm512_max_ps(_mm512_abs_ps(x[0]), _mm512_abs_ps(x[1]));
    const float largest = _mm512_reduce_max_ps(size);
    // max takes its second operand when one is not a number: look at all
    const bool finite = !(_mm512_fpclass_ps_mask(x[0], 0x99) | _mm512_fpclass_ps_mask(x[1], 0x99));
    const float unit = D == 2 ? power_of(largest) : largest / 127;
    const __m512i order = _mm512_set_epi32(15, 13, 11, 9, 14, 12, 10, 8, 7, 5, 3, 1, 6, 4, 2, 0);
    __m512i total = _mm512_setzero_si512();
    for (int half = 0; half < 2; ++half) {
        __m512i whole = _mm512_setzero_si512();
        if (finite && unit > 0) whole = _mm512_cvtps_epi32(_mm512_div_ps(x[half], _mm512_set1_ps(unit)));
        if (nibbles) whole = _mm512_permutexvar_epi32(order, whole);
        total = _mm512_add_epi32(total, whole);
        int8_t* to = digits + 16 * half;
        if (D == 2) {
            const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(high));
            to += BLOCK;
        }
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(whole));
    }
    *scale = finite ? unit : __builtin_nanf("");
    *sum = _mm512_reduce_add_epi32(total);
}

template <class V, int T, int D, bool nibbles>
void digits_rows(int64_t begin, int64_t end, const void* x, int64_t stride, int64_t inputs, int32_t added, void* prepared) {
    using W = typename Element<T>::type;
    const int64_t blocks = (inputs + BLOCK - 1) / BLOCK;
    for (int64_t r = begin; r < end; ++r) {
        const Row row = Row::at<D>(static_cast<char*>(prepared) + size_t(r) * digits_bytes(inputs, D), blocks);
        const char* from = static_cast<const char*>(x) + r * stride * int64_t(sizeof(W));
        for (int64_t b = 0; b < blocks; ++b) {
            W some[BLOCK] = {};
            const int64_t here = inputs - b * BLOCK < BLOCK ? inputs - b * BLOCK : BLOCK;
            std::memcpy(some, from + b * BLOCK * int64_t(sizeof(W)), size_t(here) * sizeof(W));
            const __m512 wide[2] = {V::template load<T>(some), V::template load<T>(some + 16)};
            int32_t sum;
            digits_of_block<D, nibbles>(wide, const_cast<int8_t*>(row.digits) + b * BLOCK * D, const_cast<float*>(row.scales) + b, &sum);
            const_cast<int32_t*>(row.begins)[b] = -added * sum;
        }
    }
}

// ---- weights -----------------------------------------------------------------------------------------------------

// Up to 16 scales, widened; those of MXFP4 are halved, as its numbers are doubled.
inline __m512 some_scales(int type, const void* scales, int64_t at, int64_t here) {
    const __mmask16 some = here < LANES ? __mmask16((1u << here) - 1) : __mmask16(0xffff);
    if (type == FP32) return _mm512_maskz_loadu_ps(some, static_cast<const char*>(scales) + at * 4);
    if (type == POWERS) {
        const __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(some, static_cast<const char*>(scales) + at));
        return _mm512_mul_ps(powers_of(_mm512_slli_epi32(code, 23)), _mm512_set1_ps(0.5f));
    }
    const __m256i bits = _mm256_maskz_loadu_epi16(some, static_cast<const char*>(scales) + at * 2);
    return type == FP16 ? _mm512_cvtph_ps(bits) : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// What is added to a format's numbers, so that they have no sign.
template <Code C>
constexpr int32_t ADDED = C == BYTES ? 128 : C == EIGHT ? 8 : C == ZERO ? 16 : 12;

// Scales and zeros of 16 outputs, block after block.
template <Code C>
struct Walk {
    const Digital& m;
    int64_t output;
    int lanes;
    bool more;  // outputs follow, which are asked for in advance
    int64_t within = 0, index = 0;  // of the block that comes next: in what shares a scale, and which scale
    alignas(64) float scale[LANES * LANES];
    __m512i zeros_at, shifts;
    __m512 now = _mm512_setzero_ps();
    __m512i shift = _mm512_setzero_si512();  // bytes that are added to codes of ZERO

    Walk(const Digital& of, int64_t first, int64_t end)
        : m(of), output(first), lanes(end - first < LANES ? int(end - first) : LANES), more(end - first > LANES) {
        if (C != ZERO) return;
        const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const __m512i last = _mm512_min_epi32(lane, _mm512_set1_epi32(lanes - 1));
        const __m512i place = _mm512_add_epi32(last, _mm512_set1_epi32(int(first % 8)));
        zeros_at = _mm512_mullo_epi32(_mm512_srli_epi32(place, 3), _mm512_set1_epi32(int(m.count)));
        shifts = _mm512_slli_epi32(_mm512_and_si512(place, _mm512_set1_epi32(7)), 2);
    }
    __attribute__((noinline)) void refill() {
        __m512i rows[LANES];
        for (int o = 0; o < LANES; ++o) {
            const int64_t at = (output + (o < lanes ? o : lanes - 1)) * m.count + index;
            rows[o] = _mm512_castps_si512(some_scales(m.scale_type, m.scales, at, m.count - index));
        }
        // of the outputs that come next: as many lines as there are here
        const int64_t bytes = m.scale_type == POWERS ? 1 : bytes_of(m.scale_type);
        const char* ahead = static_cast<const char*>(m.scales) + ((output + LANES) * m.count + index * LANES) * bytes;
        if (more) ask_for_all(ahead, LANES * LANES * bytes);
        transpose(rows);
        for (int o = 0; o < LANES; ++o) _mm512_store_si512(scale + o * LANES, rows[o]);
    }
    void next() {
        if (!m.each) return;
        if (!within) {
            if (index % LANES == 0) refill();
            now = _mm512_load_ps(scale + index % LANES * LANES);
            if (C == ZERO) {
                const uint8_t* words = m.zeros + (output / 8 * m.count + index) * 4;
                const __m512i codes = _mm512_srlv_epi32(_mm512_i32gather_epi32(zeros_at, words, 4), shifts);
                const __m512i zero = _mm512_and_si512(codes, _mm512_set1_epi32(15));
                shift = _mm512_mullo_epi32(_mm512_sub_epi32(_mm512_set1_epi32(ADDED<C>), zero), _mm512_set1_epi32(0x01010101));
            }
        }
        if (++within == m.each) within = 0, ++index;
    }
};

// What MXFP4's codes mean, doubled, and 12 more: from 0 to 24.
alignas(16) constexpr uint8_t DOUBLED[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

// 64 bytes of each of 16 outputs, from block `first` on, with inputs in the order of prepared rows.
template <Code C>
struct Piece {
    static constexpr int blocks = C == BYTES ? 2 : 4;
    __m512i words[LANES];
    QUINTET_INLINED Piece(const Walk<C>& walk, int64_t first) {
        const Digital& m = walk.m;
        const int lanes = walk.lanes;
        const int64_t at = first / blocks * 64, left = m.pitch - at;
        const uint8_t* from = m.weight + walk.output * m.pitch + at;
        const char* ahead = reinterpret_cast<const char*>(m.weight) + (walk.output + LANES) * m.pitch + first / blocks * 64 * LANES;
        if (!walk.more) ahead = reinterpret_cast<const char*>(from);  // it is there
        if (lanes == LANES && left >= 64) {
#pragma GCC unroll 16
            for (int o = 0; o < LANES; ++o) {
                words[o] = _mm512_loadu_si512(from + o * m.pitch);
                ask_for(ahead + 64 * o);
            }
        } else {
            const __mmask64 some = left < 64 ? (uint64_t(1) << left) - 1 : ~uint64_t(0);
            for (int o = 0; o < LANES; ++o) words[o] = _mm512_maskz_loadu_epi8(some, from + (o < lanes ? o : lanes - 1) * m.pitch);
        }
        transpose(words);
    }
    // Eight vectors of bytes of a block of this piece, at which the walk is.
    QUINTET_INLINED void unpack(int block, const Walk<C>& walk, __m512i* to) const {
        if (C == BYTES) {
#pragma GCC unroll 8
            for (int j = 0; j < 8; ++j) to[j] = _mm512_xor_si512(words[8 * block + j], _mm512_set1_epi8(-128));
            return;
        }
        const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            to[2 * j] = _mm512_and_si512(words[4 * block + j], low);
            to[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(words[4 * block + j], 4), low);
        }
        if (C == ZERO) {
#pragma GCC unroll 8
            for (int j = 0; j < 8; ++j) to[j] = _mm512_add_epi8(to[j], walk.shift);
        }
        if (C != MX) return;
        const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(DOUBLED)));
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) to[j] = _mm512_shuffle_epi8(table, to[j]);
    }
};

inline __m512i four(const int8_t* from) {
    int32_t bits;
    std::memcpy(&bits, from, 4);
    return _mm512_set1_epi32(bits);
}

// ---- products ----------------------------------------------------------------------------------------------------

template <Code C, int D>
__attribute__((noinline)) void one_row(const Digital& m, const Row& x, int64_t output, int64_t end, float* sums) {
    __m512 acc = _mm512_setzero_ps();
    Walk<C> walk(m, output, end);
    auto add = [&](const Piece<C>& piece, int k, int64_t block) QUINTET_INLINED {
        __m512i bytes[8];
        walk.next();
        piece.unpack(k, walk, bytes);
        const int8_t* digits = x.digits + block * BLOCK * D;
        __m512i sum[2][2] = {};  // two of each digit, as one waits for the other
        sum[0][0] = _mm512_set1_epi32(x.begins[block]);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            sum[0][j % 2] = _mm512_dpbusd_epi32(sum[0][j % 2], bytes[j], four(digits + BLOCK * (D - 1) + 4 * j));
            if (D == 2) sum[1][j % 2] = _mm512_dpbusd_epi32(sum[1][j % 2], bytes[j], four(digits + 4 * j));
        }
        __m512i total = _mm512_add_epi32(sum[0][0], sum[0][1]);
        if (D == 2) total = _mm512_add_epi32(total, _mm512_slli_epi32(_mm512_add_epi32(sum[1][0], sum[1][1]), 8));
        const __m512 unit = _mm512_set1_ps(x.scales[block]);
        acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), m.each ? _mm512_mul_ps(walk.now, unit) : unit, acc);
    };
    constexpr int step = Piece<C>::blocks;
    int64_t first = 0;
    for (; first + step <= m.blocks; first += step) {
        const Piece<C> piece(walk, first);
#pragma GCC unroll 4
        for (int k = 0; k < step; ++k) add(piece, k, first + k);
    }
    if (first < m.blocks) {
        const Piece<C> piece(walk, first);
#pragma GCC unroll 4
        for (int k = 0; k < step; ++k)
            if (first + k < m.blocks) add(piece, k, first + k);
    }
    _mm512_storeu_ps(sums, acc);
}

// Weights of 32 outputs, unpacked: for each 16 outputs and each block of inputs 8 vectors; and scales.
struct Unpacked {
    int64_t blocks;
    uint8_t* bytes;
    float* scales;
    static constexpr int64_t BLOCK_BYTES = 8 * 64;
    static constexpr size_t size(int64_t blocks) { return size_t(blocks) * PANEL_LANES * (BLOCK + 4); }
    Unpacked(int64_t count, void* memory) : blocks(count), bytes(static_cast<uint8_t*>(memory)) {
        scales = reinterpret_cast<float*>(bytes + blocks * PANEL_LANES * BLOCK);
    }
    // Blocks `first` to `end` become those from 0 on.
    template <Code C>
    void fill(Walk<C>& walk, int64_t first, int64_t end, int part) {
        for (int64_t at = first; at < end; at += Piece<C>::blocks) {
            const Piece<C> piece(walk, at);
#pragma GCC unroll 4
            for (int k = 0; k < Piece<C>::blocks; ++k) {
                if (at + k >= end) break;
                const int64_t to = part * blocks + at + k - first;
                __m512i made[8];
                walk.next();
                piece.unpack(k, walk, made);
                for (int j = 0; j < 8; ++j) _mm512_store_si512(bytes + to * BLOCK_BYTES + j * 64, made[j]);
                _mm512_store_ps(scales + to * LANES, walk.now);
            }
        }
    }
};

// Adds to `sums` (R, PANEL_LANES) what `count` blocks of 16 P outputs give.
template <int D, int R, int P>
__attribute__((noinline)) void tile(const Unpacked& m, int64_t count, bool scaled, const Row* x, float* sums) {
    __m512 acc[R][P];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) acc[r][p] = _mm512_loadu_ps(sums + r * PANEL_LANES + p * LANES);
    for (int64_t block = 0; block < count; ++block) {
        __m512i sum[D][R][P];
        for (int r = 0; r < R; ++r)
            for (int p = 0; p < P; ++p) {
                sum[0][r][p] = _mm512_set1_epi32(x[r].begins[block]);
                if (D == 2) sum[D - 1][r][p] = _mm512_setzero_si512();
            }
        const uint8_t* w = m.bytes + block * Unpacked::BLOCK_BYTES;
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            __m512i bytes[P];
            for (int p = 0; p < P; ++p) bytes[p] = _mm512_load_si512(w + p * m.blocks * Unpacked::BLOCK_BYTES + j * 64);
            for (int r = 0; r < R; ++r)
                for (int d = 0; d < D; ++d) {
                    const __m512i digit = four(x[r].digits + (block * D + D - 1 - d) * BLOCK + 4 * j);
                    for (int p = 0; p < P; ++p) sum[d][r][p] = _mm512_dpbusd_epi32(sum[d][r][p], bytes[p], digit);
                }
        }
        for (int r = 0; r < R; ++r) {
            const __m512 unit = _mm512_set1_ps(x[r].scales[block]);
            for (int p = 0; p < P; ++p) {
                __m512i total = sum[0][r][p];
                if (D == 2) total = _mm512_add_epi32(total, _mm512_slli_epi32(sum[D - 1][r][p], 8));
                const float* scale = m.scales + (p * m.blocks + block) * LANES;
                const __m512 both = scaled ? _mm512_mul_ps(_mm512_load_ps(scale), unit) : unit;
                acc[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), both, acc[r][p]);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) _mm512_storeu_ps(sums + r * PANEL_LANES + p * LANES, acc[r][p]);
}

// Rows that a tile takes: what fits into registers.
template <int D>
constexpr int64_t TILE_MOST_ROWS = D == 2 ? 4 : 6;

template <int D, int P>
void tile_of(int64_t rows, const Unpacked& m, int64_t count, bool scaled, const Row* x, float* sums) {
    switch (rows) {
        case 1: return tile<D, 1, P>(m, count, scaled, x, sums);
        case 2: return tile<D, 2, P>(m, count, scaled, x, sums);
        case 3: return tile<D, 3, P>(m, count, scaled, x, sums);
        case 4: return tile<D, 4, P>(m, count, scaled, x, sums);
        case 5: return tile<D, D == 2 ? 4 : 5, P>(m, count, scaled, x, sums);
        default: return tile<D, TILE_MOST_ROWS<D>, P>(m, count, scaled, x, sums);
    }
}

// Weights are unpacked a few blocks at a time, into the first cache.
template <Code C, int D>
void few_rows(const Digital& m, const Rows& rows, int64_t output, int64_t last, float* sums) {
    constexpr int64_t AT_ONCE = 16;
    alignas(64) char memory[Unpacked::size(AT_ONCE)];
    Unpacked some(AT_ONCE, memory);
    std::memset(sums, 0, size_t(rows.count) * PANEL_LANES * sizeof(float));
    Walk<C> walk(m, output, last);
    Row x[FEW_ROWS];
    for (int64_t r = 0; r < rows.count; ++r) x[r] = Row::at<D>(rows.at(r), m.blocks);
    for (int64_t first = 0; first < m.blocks; first += AT_ONCE) {
        const int64_t end = first + AT_ONCE < m.blocks ? first + AT_ONCE : m.blocks;
        some.fill<C>(walk, first, end, 0);
        for (int64_t r = 0; r < rows.count; r += TILE_MOST_ROWS<D>)
            tile_of<D, 1>(rows.count - r, some, end - first, m.each, x + r, sums + r * PANEL_LANES);
        for (int64_t r = 0; r < rows.count; ++r) x[r] = x[r].from<D>(AT_ONCE);
    }
}

template <Code C, int D, class Done>
void many_rows(const Digital& m, const Rows& rows, int64_t begin, int64_t end, void* memory, Done done) {
    Unpacked panel(m.blocks, memory);
    float sums[TILE_MOST_ROWS<D> * PANEL_LANES];
    // While a panel is multiplied, the weights of the next one are asked for, some with each tile; behind the last one begin those
    // of who comes next, or what does not matter.
    const int64_t tiles = (rows.count + TILE_MOST_ROWS<D> - 1) / TILE_MOST_ROWS<D>;
    const int64_t ahead = (PANEL_LANES * m.pitch / tiles + 64) / 64 * 64;
    for (; begin < end; begin += PANEL_LANES) {
        const int here = int(end - begin < PANEL_LANES ? end - begin : PANEL_LANES);
        for (int part = 0; part * LANES < here; ++part) {
            Walk<C> walk(m, begin + part * LANES, begin + here);
            panel.fill<C>(walk, 0, m.blocks, part);
        }
        const char* next = reinterpret_cast<const char*>(m.weight) + (begin + PANEL_LANES) * m.pitch;
        for (int64_t row = 0; row < rows.count; row += TILE_MOST_ROWS<D>) {
            const int64_t left = rows.count - row < TILE_MOST_ROWS<D> ? rows.count - row : TILE_MOST_ROWS<D>;
            Row x[TILE_MOST_ROWS<D>];
            for (int64_t r = 0; r < left; ++r) x[r] = Row::at<D>(rows.at(row + r), m.blocks);
            ask_for_all(next, ahead);
            next += ahead;
            std::memset(sums, 0, sizeof sums);
            if (here > LANES) tile_of<D, 2>(left, panel, m.blocks, m.each, x, sums);
            else tile_of<D, 1>(left, panel, m.blocks, m.each, x, sums);
            for (int64_t r = 0; r < left; ++r) done(row + r, begin, here, sums + r * PANEL_LANES);
        }
    }
}

// `done(row, output, count, sums)` takes the sums of a row and some outputs, not yet times the scale of an output.
template <Code C, int D, class Done>
void digits_range(const Digital& m, const Rows& rows, int64_t begin, int64_t end, void* memory, Done done) {
    if (rows.count > FEW_ROWS) return many_rows<C, D>(m, rows, begin, end, memory, done);
    float sums[FEW_ROWS * PANEL_LANES];
    // what follows is asked for on the way, the first outputs here
    const auto* first = reinterpret_cast<const char*>(m.weight + begin * m.pitch);
    const int64_t at_once = LANES * m.pitch < 16384 ? LANES * m.pitch : 16384;
    ask_for_all(first, at_once);
    for (; begin < end; begin += LANES) {
        const int here = int(end - begin < LANES ? end - begin : LANES);
        if (rows.count == 1) one_row<C, D>(m, Row::at<D>(rows.at(0), m.blocks), begin, end, sums);
        else few_rows<C, D>(m, rows, begin, end, sums);
        for (int64_t r = 0; r < rows.count; ++r) done(r, begin, here, sums + r * PANEL_LANES);
    }
}

// Products with packed weights in whole numbers, x with D digits.
template <class V, int D>
struct InDigits {
    static constexpr bool strips = false;
    static size_t bytes(int64_t inputs) { return digits_bytes(inputs, D); }
    static size_t memory(int64_t inputs) { return Unpacked::size((inputs + BLOCK - 1) / BLOCK); }
    template <int T, Code C>
    static void prepare(int, int64_t begin, int64_t end, const void* x, int64_t stride, int64_t inputs, void* to) {
        digits_rows<V, T, D, C != BYTES>(begin, end, x, stride, inputs, ADDED<C>, to);
    }
    template <class Done>
    static void product(const MxSource& from, const Rows& rows, int64_t begin, int64_t end, void* memory, Done done) {
        digits_range<MX, D>(digital(from), rows, begin, end, memory, done);
    }
    static void integers(const Integers& m, int64_t begin, int64_t end, void* memory) {
        const Rows rows{m.prepared, int64_t(bytes(m.inputs)), nullptr, m.rows};
        const Digital w = digital(m);
        auto done = [&](int64_t row, int64_t output, int64_t count, float* sums) { finish<V>(m, row, output, count, sums); };
        if (m.bits == 4 && m.zeros) return digits_range<ZERO, D>(w, rows, begin, end, memory, done);
        if (m.bits == 4) return digits_range<EIGHT, D>(w, rows, begin, end, memory, done);
        if (w.each) return digits_range<BYTES, D>(w, rows, begin, end, memory, done);
        digits_range<BYTES, D>(w, rows, begin, end, memory, [&](int64_t row, int64_t output, int64_t count, float* sums) {
            float scale[PANEL_LANES];
            widen_scales<V>(m.scale_type, m.scales, output, count, scale);
            for (int64_t i = 0; i < count; ++i) sums[i] *= scale[i];
            done(row, output, count, sums);
        });
    }
};

// Products of bfloat16 with packed weights, whose numbers it holds exactly: for one to eight rows they are as fast as memory,
// and faster than two digits. Weights of 8 bits have but one scale for an output here, those of 4 bits the usual groups.
template <class V>
struct InBfloat16 {
    static constexpr bool strips = false;
    using Bytes = typename V::BytesDot;
    template <Code C>
    using Nibbles = typename V::template NibblesDot<C>;
    static bool takes(const Integers& m) { return m.bits == 4 ? GroupScales<ANY, false>::takes(m) : m.group == m.inputs; }
    static size_t bytes(int64_t inputs) { return prepared_bytes<Nibbles<MX>>(inputs); }
    static size_t memory(int64_t inputs) {
        const size_t four = many_bytes<Nibbles<ZERO>>(inputs), eight = many_bytes<Channel<Bytes>>(inputs);
        return four > eight ? four : eight;
    }
    template <int T, Code C>
    static void prepare(int, int64_t begin, int64_t end, const void* x, int64_t stride, int64_t inputs, void* to) {
        for (int64_t r = begin; r < end; ++r) {
            using Way = typename std::conditional<C == BYTES, Bytes, Nibbles<MX>>::type;
            auto* row = reinterpret_cast<uint16_t*>(static_cast<char*>(to) + size_t(r) * prepared_bytes<Way>(inputs));
            if constexpr (T == BF16) Way::prepare_same(static_cast<const uint16_t*>(x) + r * stride, inputs, row);
            else Way::prepare([&](int64_t i) { return widen<V, T>(x, r * stride + i); }, inputs, row);
        }
    }
    template <class Done>
    static void product(const MxSource& from, const Rows& rows, int64_t begin, int64_t end, void* memory, Done done) {
        if (rows.count <= FEW_ROWS) few_rows<V, Nibbles<MX>>(from, rows, begin, end, done);
        else many_grouped<V, Nibbles<MX>>(from, rows, begin, end, memory, done);
    }
    template <Code C>
    static void nibbles(const Integers& m, int64_t begin, int64_t end, void* memory) {
        const Rows rows{m.prepared, int64_t(bytes(m.inputs)), nullptr, m.rows};
        auto done = [&](int64_t row, int64_t output, int64_t count, float* sums) { finish<V>(m, row, output, count, sums); };
        if (m.rows > FEW_ROWS) return many_grouped<V, Nibbles<C>>(IntegerSource(m), rows, begin, end, memory, done);
        few_rows<V, Nibbles<C>>(m, rows, begin, end, done);
    }
    static void integers(const Integers& m, int64_t begin, int64_t end, void* memory) {
        if (m.bits == 8) {
            channel<V, Bytes>(m, begin, end, memory, [&](int64_t row, int64_t output, int64_t count, float* sums) {
                finish<V>(m, row, output, count, sums);
            });
        } else if (m.zeros) {
            nibbles<ZERO>(m, begin, end, memory);
        } else {
            nibbles<EIGHT>(m, begin, end, memory);
        }
    }
};

}  // namespace
}  // namespace quintet
