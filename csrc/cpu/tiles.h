// Products of bfloat16 in tiles (AMX): 16 outputs by 16 rows, 32 inputs at a time. They are for many rows; few ones with packed weights
// are faster in whole numbers (whole.h).
//
// The left matrix is the weight: a line of its tiles is 32 inputs of one output, as they lie in memory or are unpacked. The
// right one is x, which is turned once: strips of 16 rows, whose tiles hold pairs of inputs of all rows. So what comes out has a line
// for each output, and is turned again.
//
// Weights are never rounded: what their codes mean is exact in bfloat16, MXFP4 with its scales too, and other scales follow the sum
// of their group, in float32. Sums go by rising inputs, whatever the number of rows and threads: a row has the same bits in every
// batch. As all dot instructions of bfloat16 do, these take numbers below 2^-126 for zero.
#pragma once

#include <immintrin.h>

#include "amx.h"
#include "digits.h"

namespace quintet {
namespace {

constexpr int64_t STEP = 32;                // inputs of a tile
constexpr int64_t TILE = STRIP * STEP * 2;  // its bytes
constexpr int64_t PAIR = 2 * STRIP;         // outputs, or rows, that are multiplied together
constexpr int64_t RUN = 8;                  // steps of which weights are unpacked at a time: 16 KB of 32 outputs, which stay in the first cache
constexpr int64_t MOST_TILED = 1024;        // rows of a product

inline int64_t steps_of_tiles(int64_t inputs) { return (inputs + STEP - 1) / STEP; }
inline int64_t strip_bytes(int64_t inputs) { return steps_of_tiles(inputs) * TILE; }

// ---- instructions ------------------------------------------------------------------------------------------------

// Tiles of x and of sums have a line's bytes for as many rows as a strip has.
inline TileShapes shapes_of(int64_t rows) {
    TileShapes shapes;
    if (rows < STRIP)
        for (int tile : {0, 2, 6}) shapes.set(tile, STRIP, 4 * rows);
    return shapes;
}

// Sums are in tiles 0 to 3 (output tile * 2 + strip), weights in 4 and 5, x in 6 and 7.
template <int O, int S>
QUINTET_TILED inline void zero_sums() {
    QUINTET_TILE_ZERO(0);
    if (S == 2) QUINTET_TILE_ZERO(1);
    if (O == 2) QUINTET_TILE_ZERO(2);
    if (O == 2 && S == 2) QUINTET_TILE_ZERO(3);
}

// Weights are (O) tiles behind each other; of x a line has `width` bytes, and strips are `strip` bytes apart.
template <int O, int S>
QUINTET_TILED inline void add_step(const char* w, const char* x, int64_t width, int64_t strip) {
    QUINTET_TILE_LOAD(4, w, 64);
    QUINTET_TILE_LOAD(6, x, width);
    QUINTET_TILE_ADD(0, 4, 6);
    if (S == 2) {
        QUINTET_TILE_LOAD(7, x + strip, 64);
        QUINTET_TILE_ADD(1, 4, 7);
    }
    if (O == 2) {
        QUINTET_TILE_LOAD(5, w + TILE, 64);
        QUINTET_TILE_ADD(2, 5, 6);
    }
    if (O == 2 && S == 2) QUINTET_TILE_ADD(3, 5, 7);
}

constexpr int64_t SUMS = STRIP * STRIP;  // numbers of a tile of sums

// (O, S) tiles of sums, one behind the other.
template <int O, int S>
QUINTET_TILED inline void store_sums(float* to) {
    QUINTET_TILE_STORE(0, to, 64);
    if (S == 2) QUINTET_TILE_STORE(1, to + SUMS, 64);
    if (O == 2) QUINTET_TILE_STORE(2, to + S * SUMS, 64);
    if (O == 2 && S == 2) QUINTET_TILE_STORE(3, to + 3 * SUMS, 64);
}
template <int O, int S>
QUINTET_TILED inline void load_sums(const float* from) {
    QUINTET_TILE_LOAD(0, from, 64);
    if (S == 2) QUINTET_TILE_LOAD(1, from + SUMS, 64);
    if (O == 2) QUINTET_TILE_LOAD(2, from + S * SUMS, 64);
    if (O == 2 && S == 2) QUINTET_TILE_LOAD(3, from + 3 * SUMS, 64);
}

// ---- x -----------------------------------------------------------------------------------------------------------

// Rows of a strip of so many, of which the last ones are the last one again: a power of two.
inline int64_t strip_rows(int64_t count) { return count > 8 ? STRIP : count > 4 ? 8 : count > 2 ? 4 : count; }

// Of x: strips of 16 rows, or a narrower one of fewer.
struct Strips {
    const char* x;
    int64_t count;  // rows
    int64_t bytes;  // from a strip to the next
    const char* at(int64_t row) const { return x + row / STRIP * bytes; }
    int64_t rows() const { return strip_rows(count); }  // of a strip
};

// Codes of 4 bits come in this order: of 32 inputs every fourth, from the first on, then from the second on, ...
inline __m512i order_of_codes() {
    alignas(64) uint16_t places[32];
    for (int i = 0; i < 32; ++i) places[i] = uint16_t(4 * (i % 8) + i / 8);
    return _mm512_load_si512(places);
}

// 32 numbers, of which the last may be missing.
inline __m512i some_numbers(const uint16_t* from, __mmask32 there) { return _mm512_maskz_loadu_epi16(there, from); }
inline __m512i some_numbers(const float* from, __mmask32 there) {
    const __m512 low = _mm512_maskz_loadu_ps(__mmask16(there), from), high = _mm512_maskz_loadu_ps(__mmask16(there >> 16), from + 16);
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

// A strip of the rows `row(0)` to `row(count - 1)`, with lines for `rows` of them.
template <bool codes, class Row>
void turn_strip(Row row, int64_t count, int64_t rows, int64_t inputs, char* to) {
    const __m512i order = order_of_codes();
    const __mmask16 some = __mmask16((1u << rows) - 1);
    for (int64_t first = 0; first < inputs; first += STEP) {
        const int64_t left = inputs - first;
        const __mmask32 there = left < STEP ? (__mmask32(1) << left) - 1 : ~__mmask32(0);
        __m512i words[STRIP];
        for (int64_t r = 0; r < STRIP; ++r) {
            words[r] = some_numbers(row(r < count ? r : count - 1) + first, there);
            if (codes) words[r] = _mm512_permutexvar_epi16(order, words[r]);
        }
        transpose(words);
        for (int64_t i = 0; i < STRIP; ++i, to += 4 * rows) _mm512_mask_storeu_epi32(to, some, words[i]);
    }
}

// ---- weights -----------------------------------------------------------------------------------------------------

// What codes mean, in bfloat16: 16 numbers, twice, as the lookup takes five bits of which one belongs to another code.
struct Meanings {
    alignas(64) uint16_t power[256][32];  // of MXFP4, by the byte of the scale
    alignas(64) uint16_t whole[16][32];   // code - zero, by the zero
    constexpr Meanings() : power(), whole() {
        for (int scale = 0; scale < 256; ++scale)
            for (int i = 0; i < 32; ++i) power[scale][i] = scaled(i % 16, scale);
        for (int zero = 0; zero < 16; ++zero)
            for (int i = 0; i < 32; ++i) whole[zero][i] = number(i % 16 - zero);
    }
    static constexpr uint16_t number(int value) {
        int size = value < 0 ? -value : value, exponent = 127;
        if (!size) return 0;
        while (size >> (exponent - 126)) ++exponent;
        return uint16_t((value < 0 ? 0x8000 : 0) | exponent << 7 | (((size << 7) >> (exponent - 127)) & 127));
    }
    static constexpr uint16_t scaled(int code, int scale) {
        const int sign = code & 8 ? 0x8000 : 0, size = code & 7;
        if (scale == 255) return 0x7fc0;
        if (!size) return uint16_t(sign);
        const int exponent = scale + (size == 1 ? -1 : size / 2 - 1), half = size > 1 && size % 2 ? 64 : 0;
        if (exponent >= 255) return uint16_t(sign | 0x7f80);
        return uint16_t(sign | (exponent > 0 ? exponent << 7 | half : (128 | half) >> (1 - exponent)));
    }
};
constexpr Meanings meanings;

// A weight of any format.
struct TileWeight {
    const uint8_t* weight;
    int64_t pitch;   // bytes from an output to the next
    int64_t inputs;
    const void* scales;
    int scale_type;
    int64_t count;   // scales of an output
    int64_t each;    // tiles that share one; 0 for one of all, or none
    const uint8_t* zeros;
    int64_t steps() const { return steps_of_tiles(inputs); }
};

inline TileWeight tile_weight(const Integers& m) {
    return {m.weight, m.inputs * m.bits / 8, m.inputs, m.scales, m.scale_type, m.inputs / m.group, m.group == m.inputs ? 0 : m.group / STEP, m.zeros};
}
inline TileWeight tile_weight(const MxSource& m) { return {m.weight, m.count * GROUP_BYTES, m.count * GROUP, m.scales, FP32, m.count, 0, nullptr}; }
inline TileWeight tile_weight(const Matvec& m) {
    return {static_cast<const uint8_t*>(m.weight), 2 * m.weight_stride, m.inputs, nullptr, FP32, 0, 0, nullptr};
}

template <Code C>
constexpr int64_t step_bytes = C == PLAIN ? 64 : C == BYTES ? 32 : 16;

// Steps of N outputs, from `output` on; behind the last one it again.
template <Code C, int N>
struct Lines {
    const uint8_t *from, *by;  // weights of the first; scales of MXFP4
    int64_t output, last;      // which is the first, and how many lines follow it
    const uint8_t* zeros;
    int64_t pitch, count, each, whole;
    __mmask32 rest;            // of the step behind the whole ones
    __m512i shifts;
    explicit Lines(const TileWeight& m)
        : zeros(m.zeros), pitch(m.pitch), count(m.count), each(m.each), whole(m.inputs / STEP), rest((__mmask32(1) << m.inputs % STEP) - 1) {
        alignas(64) uint16_t of_lane[32];
        for (int i = 0; i < 32; ++i) of_lane[i] = uint16_t(i / 8 * 4);
        shifts = _mm512_load_si512(of_lane);
    }
    void move(const TileWeight& m, int64_t first, int64_t end) {
        output = first, last = (end - first < N ? end - first : N) - 1;
        from = m.weight + first * m.pitch;
        by = static_cast<const uint8_t*>(m.scales) + (C == MX ? first * m.count : 0);
    }
    QUINTET_INLINED __m512i at(int64_t i, int64_t step, __m512i shift) const {
        const uint8_t* weights = from + i * pitch + step * step_bytes<C>;
        if constexpr (C == PLAIN) {
            return step < whole ? _mm512_loadu_si512(weights) : _mm512_maskz_loadu_epi16(rest, weights);
        } else if constexpr (C == BYTES) {
            const __m256i bytes = step < whole ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights)) : _mm256_maskz_loadu_epi8(rest, weights);
            const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
            const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
            return (__m512i)_mm512_cvtne2ps_pbh(high, low);
        } else {
            const uint16_t* means = meanings.whole[8];
            if constexpr (C == MX) means = meanings.power[by[i * count + step]];
            if constexpr (C == ZERO) {
                const int64_t group = each ? uint32_t(step) / uint32_t(each) : 0;
                means = meanings.whole[zero_code(zeros + (output + i) / 8 * count * 4, group, int((output + i) % 8 * 4))];
            }
            const __m512i codes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights)));
            return _mm512_permutexvar_epi16(_mm512_srlv_epi16(codes, shift), _mm512_load_si512(means));
        }
    }
    // All lines of a step, 64 bytes each; `also(i)` is done with line i.
    template <class Also>
    QUINTET_INLINED void unpack(int64_t step, char* to, Also also) const {
        __m512i shift = shifts;
        __asm__("" : "+v"(shift));  // in a register
        if (last == N - 1) {
            quintet::each<N>([&](auto i) QUINTET_INLINED {
                also(i);
                _mm512_store_si512(to + 64 * i, at(i, step, shift));
            });
        } else {
            for (int64_t i = 0; i < N; ++i) _mm512_store_si512(to + 64 * i, at(i < last ? i : last, step, shift));
        }
    }
};

// Scales of 16 outputs and `count` groups from `first` on, if there are so many, become (groups, 16), lines `apart` numbers from each
// other; behind the last output it again.
inline void turn_scales(const TileWeight& m, int64_t output, int64_t end, int64_t first, int64_t count, float* to, int64_t apart) {
    const int64_t stop = first + count < m.count ? first + count : m.count;
    for (int64_t group = first; group < stop; group += LANES) {
        const int64_t here = stop - group;
        __m512i words[LANES];
        for (int64_t o = 0; o < LANES; ++o)
            words[o] = _mm512_castps_si512(some_scales(m.scale_type, m.scales, (output + o < end ? output + o : end - 1) * m.count + group, here));
        transpose(words);
        for (int64_t g = 0; g < LANES && g < here; ++g) _mm512_store_si512(to + (group - first + g) * apart, words[g]);
    }
}

// ---- products ----------------------------------------------------------------------------------------------------

// Tiles (O, S) of outputs by rows become (rows, PAIR).
template <int O, int S>
inline void turn_sums(const float* from, float* to) {
    for (int o = 0; o < O; ++o)
        for (int s = 0; s < S; ++s, from += SUMS) {
            __m512i words[STRIP];
#pragma GCC unroll 16
            for (int i = 0; i < STRIP; ++i) words[i] = _mm512_load_si512(from + i * STRIP);
            transpose(words);
#pragma GCC unroll 16
            for (int i = 0; i < STRIP; ++i) _mm512_store_si512(to + (s * STRIP + i) * PAIR + o * STRIP, words[i]);
        }
}

// Sums of a group are stored while those that follow are multiplied: what a tile is stored to cannot be read before long.
constexpr int64_t STORED = 4, LAG = 3;

// Sums of 16 outputs and rows, to which those of groups are added, each times its scale. They stay in registers: what a tile is stored
// to must be somewhere else.
struct Scaled {
    __m512 acc[STRIP];
    QUINTET_INLINED void clear() {
        each<STRIP>([&](auto o) QUINTET_INLINED { acc[o] = _mm512_setzero_ps(); });
    }
    QUINTET_INLINED void add(const float* stored, const float* scales) {
        each<STRIP>([&](auto o) QUINTET_INLINED {
            acc[o] = _mm512_fmadd_ps(_mm512_load_ps(stored + o * STRIP), _mm512_set1_ps(scales[o]), acc[o]);
        });
    }
    QUINTET_INLINED void load(const float* from) {
        each<STRIP>([&](auto o) QUINTET_INLINED { acc[o] = _mm512_load_ps(from + o * STRIP); });
    }
    QUINTET_INLINED void store(float* to) const {
        each<STRIP>([&](auto o) QUINTET_INLINED { _mm512_store_ps(to + o * STRIP, acc[o]); });
    }
};

// Weights of 32 outputs and a run of inputs, (steps, 2) tiles with scales (groups, 32); and what is asked for while they are multiplied:
// some lines of memory, in which those of the next run begin `further` bytes behind these.
template <Code C>
struct Unit {
    Lines<C, int(PAIR)> lines;
    char* tiles;
    float* scales;
    int64_t first = 0, steps = 0, further = 0;
    Unit(const TileWeight& m, char* memory) : lines(m), tiles(memory), scales(reinterpret_cast<float*>(memory + RUN * 2 * TILE)) {}
    void unpack() {
        for (int64_t step = 0; step < steps; ++step) lines.unpack(first + step, tiles + step * 2 * TILE, [](int64_t) {});
    }
    QUINTET_INLINED void ask(int64_t step, int64_t begin, int64_t end) const {
        const int64_t at = (first + step) * step_bytes<C>;
        if (at % 64) return;
        for (int64_t i = begin; i < end; ++i) ask_for_later(lines.from + i * lines.pitch + at + further);
    }
};

// Where a run that begins with step `first` ends. It has whole groups, or so much of a long one: what is scaled together is the same for any
// number of rows.
inline int64_t end_of_run(const TileWeight& m, int64_t first) {
    const int64_t steps = steps_of_tiles(m.inputs);
    int64_t end = first + RUN;
    if (m.each > RUN) {
        const int64_t group = (first / m.each + 1) * m.each;
        end = end < group ? end : group;
    } else if (m.each) {
        end = first + RUN / m.each * m.each;
    }
    return end < steps ? end : steps;
}

// Which of the outputs one of several loops asks for.
struct Share {
    int64_t begin, end;
    Share(int64_t index, int64_t count) : begin(PAIR * index / count), end(PAIR * (index + 1) / count) {}
};

template <Code C, int S>
QUINTET_TILED __attribute__((noinline)) void unit_sums(const Unit<C>& m, const char* x, int64_t strip, float* sums, Share share) {
    if (m.first) load_sums<2, S>(sums);
    else zero_sums<2, S>();
    const char* w = m.tiles;
    x += m.first * TILE;
    for (int64_t step = 0; step < m.steps; ++step, w += 2 * TILE, x += TILE) {
        add_step<2, S>(w, x, 64, strip);
        m.ask(step, share.begin, share.end);
    }
    store_sums<2, S>(sums);
}

// Sums of a group, of output tile and strip of its own, in tile Q.
template <int Q>
QUINTET_TILED inline void zero_one() {
    if (Q == 0) QUINTET_TILE_ZERO(0);
    if (Q == 1) QUINTET_TILE_ZERO(1);
    if (Q == 2) QUINTET_TILE_ZERO(2);
    if (Q == 3) QUINTET_TILE_ZERO(3);
}
template <int Q>
QUINTET_TILED inline void add_one(const char* w, const char* x) {
    QUINTET_TILE_LOAD(4, w, 64);
    QUINTET_TILE_LOAD(6, x, 64);
    if (Q == 0) QUINTET_TILE_ADD(0, 4, 6);
    if (Q == 1) QUINTET_TILE_ADD(1, 4, 6);
    if (Q == 2) QUINTET_TILE_ADD(2, 4, 6);
    if (Q == 3) QUINTET_TILE_ADD(3, 4, 6);
}

// Of output tile `o` and one strip, with groups of `size` steps. Four groups are stored at once, while the four before them are
// scaled: what a tile is stored to cannot be read before long, and who stores waits.
template <Code C>
struct ScaledUnit {
    const Unit<C>& m;
    const char *w, *x;
    Share share;
    int64_t size, step, end;  // the group that comes next
    template <int Q>
    QUINTET_TILED QUINTET_INLINED void group() {
        zero_one<Q>();
        for (const int64_t stop = end < m.steps ? end : m.steps; step < stop; ++step, w += 2 * TILE, x += TILE) {
            add_one<Q>(w, x);
            m.ask(step, share.begin, share.end);
        }
        end += size;
    }
};

template <Code C>
QUINTET_TILED __attribute__((noinline)) void unit_scaled(const Unit<C>& m, int64_t o, int64_t size, const char* x, float* sums, Share share) {
    alignas(64) float stored[2][4][SUMS];
    ScaledUnit<C> unit{m, m.tiles + o * TILE, x + m.first * TILE, share, size, 0, size - m.first % size};
    Scaled scaled;
    if (m.first) scaled.load(sums);
    else scaled.clear();
    const float* scales = m.scales + o * STRIP;
    int at = 0;
    int64_t before = 0;  // groups of those that are stored
    while (unit.step < m.steps || before) {
        int64_t count = 0;
        if (unit.step < m.steps) unit.template group<0>(), ++count;
        if (unit.step < m.steps) unit.template group<1>(), ++count;
        if (unit.step < m.steps) unit.template group<2>(), ++count;
        if (unit.step < m.steps) unit.template group<3>(), ++count;
        if (count > 0) QUINTET_TILE_STORE(0, stored[at][0], 64);
        if (count > 1) QUINTET_TILE_STORE(1, stored[at][1], 64);
        if (count > 2) QUINTET_TILE_STORE(2, stored[at][2], 64);
        if (count > 3) QUINTET_TILE_STORE(3, stored[at][3], 64);
        at ^= 1;
        for (int64_t i = 0; i < before; ++i, scales += PAIR) scaled.add(stored[at][i], scales);
        before = count;
    }
    scaled.store(sums);
}

constexpr size_t UNIT_BYTES = size_t(RUN * (2 * TILE + PAIR * 4));

// Many rows, MOST_TILED at most: a unit is multiplied with all of them.
template <Code C, class Done>
QUINTET_TILED void many_tiles(const TileWeight& m, const Strips& x, int64_t begin, int64_t end, void* memory, Done done) {
    const int64_t steps = steps_of_tiles(m.inputs), pairs = (x.count + PAIR - 1) / PAIR;
    const int64_t loops = m.each ? 2 * ((x.count + STRIP - 1) / STRIP) : pairs;
    Unit<C> unit(m, static_cast<char*>(memory));
    auto* sums = reinterpret_cast<float*>(static_cast<char*>(memory) + UNIT_BYTES);
    alignas(64) float turned[PAIR * PAIR];
    for (; begin < end; begin += PAIR) {
        const int64_t here = end - begin < PAIR ? end - begin : PAIR;
        unit.lines.move(m, begin, end);
        for (int64_t first = 0; first < steps; first += unit.steps) {
            unit.first = first, unit.steps = end_of_run(m, first) - first;
            const bool last = first + unit.steps == steps;
            unit.further = last ? PAIR * m.pitch - first * step_bytes<C> : unit.steps * step_bytes<C>;
            unit.unpack();
            if (m.each) {
                const int64_t group = first / m.each, count = (first + unit.steps - 1) / m.each - group + 1;
                turn_scales(m, begin, end, group, count, unit.scales, PAIR);
                turn_scales(m, begin + STRIP < end ? begin + STRIP : end - 1, end, group, count, unit.scales + STRIP, PAIR);
            }
            for (int64_t pair = 0, loop = 0; pair < pairs; ++pair) {
                const int64_t row = pair * PAIR, rows = x.count - row < PAIR ? x.count - row : PAIR;
                float* own = sums + pair * PAIR * PAIR;
                const int strips = rows > STRIP ? 2 : 1;
                if (m.each) {
                    for (int64_t o = 0; o < 2; ++o)
                        for (int64_t s = 0; s < strips; ++s, ++loop)
                            unit_scaled<C>(unit, o, m.each, x.at(row + s * STRIP), own + (o * strips + s) * SUMS, Share(loop, loops));
                } else if (strips == 2) {
                    unit_sums<C, 2>(unit, x.at(row), x.bytes, own, Share(loop++, loops));
                } else {
                    unit_sums<C, 1>(unit, x.at(row), x.bytes, own, Share(loop++, loops));
                }
                if (!last) continue;
                if (strips == 2) turn_sums<2, 2>(own, turned);
                else turn_sums<2, 1>(own, turned);
                for (int64_t r = 0; r < rows; ++r) done(row + r, begin, here, turned + r * PAIR);
            }
        }
    }
}

// Weights of 16 outputs on their way from memory: unpacked some steps before they are multiplied, as what was just written is not
// there yet for tiles.
template <Code C>
struct Stream {
    static constexpr int64_t LEAD = 1, SLOTS = 2;
    Lines<C, int(STRIP)> lines;
    int64_t steps;
    const char* further;  // the outputs that follow, whose lines are asked for in their order
    alignas(64) char tiles[SLOTS * TILE];
    QUINTET_INLINED Stream(const TileWeight& m, int64_t first, int64_t last)
        : lines(m), steps(steps_of_tiles(m.inputs)), further(reinterpret_cast<const char*>(m.weight) + (first + STRIP) * m.pitch) {
        lines.move(m, first, last);
        for (int64_t step = 0; step < LEAD && step < steps; ++step) unpack(step);
    }
    QUINTET_INLINED void unpack(int64_t step) {
        lines.unpack(step, tiles + step % SLOTS * TILE, [&](int64_t i) QUINTET_INLINED {
            if (i * step_bytes<C> % 64 == 0) ask_for_later(further + i * step_bytes<C>);
        });
        further += STRIP * step_bytes<C>;
    }
    // One after the other.
    QUINTET_INLINED const char* at(int64_t step) {
        if (step + LEAD < steps) unpack(step + LEAD);
        return tiles + step % SLOTS * TILE;
    }
};

// Sums of 16 outputs and a strip.
template <Code C>
QUINTET_TILED __attribute__((noinline)) void stream_sums(const TileWeight& m, const Strips& x, int64_t output, int64_t end, float* turned) {
    alignas(64) float stored[SUMS];
    const int64_t width = 4 * x.rows();
    const char* from = x.x;
    Stream<C> stream(m, output, end);
    zero_sums<1, 1>();
    for (int64_t step = 0; step < stream.steps; ++step, from += STRIP * width) add_step<1, 1>(stream.at(step), from, width, 0);
    store_sums<1, 1>(stored);
    turn_sums<1, 1>(stored, turned);
}

// The same with scales of groups, for strips whose lines are of W rows: what is stored of a tile are W vectors, each of 16 / W outputs.
template <Code C, int W>
QUINTET_TILED __attribute__((noinline)) void stream_scaled(const TileWeight& m, const Strips& x, int64_t output, int64_t end, float* turned) {
    constexpr int64_t SOME = 64;  // groups whose scales are turned at a time
    constexpr int each_of_vector = int(STRIP) / W;
    alignas(64) float scales[SOME * STRIP], stored[STORED][STRIP * W];
    alignas(64) int32_t of_lane[STRIP];
    for (int i = 0; i < STRIP; ++i) of_lane[i] = i / W;
    const __m512i lanes = _mm512_load_si512(of_lane);
    const char* from = x.x;
    Stream<C> stream(m, output, end);
    __m512 acc[W];
    each<W>([&](auto v) QUINTET_INLINED { acc[v] = _mm512_setzero_ps(); });
    int64_t step = 0, group = 0, left = LAG, group_of[STORED], turned_from = -SOME;
    for (int64_t part = 0; left; ++part) {  // of a group, or all of it
        if (step < stream.steps) {
            zero_sums<1, 1>();
            const int64_t behind = (group + 1) * m.each, stop = behind - step < RUN ? behind : step + RUN;
            for (; step < stop; ++step, from += TILE * W / STRIP) add_step<1, 1>(stream.at(step), from, 4 * W, 0);
            QUINTET_TILE_STORE(0, stored[part % STORED], 4 * W);
            group_of[part % STORED] = group;
            group += step == behind;
        } else {
            --left;
        }
        const int64_t before = part - LAG;
        if (before < 0) continue;
        const int64_t its_group = group_of[before % STORED];
        if (its_group >= turned_from + SOME) turn_scales(m, output, end, turned_from = its_group, SOME, scales, STRIP);
        const __m512 of_group = _mm512_load_ps(scales + (its_group - turned_from) * STRIP);
        each<W>([&](auto v) QUINTET_INLINED {
            const __m512i which = _mm512_add_epi32(lanes, _mm512_set1_epi32(v * each_of_vector));
            const __m512 sum = _mm512_load_ps(stored[before % STORED] + v * STRIP);
            acc[v] = _mm512_fmadd_ps(sum, W == 1 ? of_group : _mm512_permutexvar_ps(which, of_group), acc[v]);
        });
    }
    alignas(64) float flat[STRIP * W];
    each<W>([&](auto v) QUINTET_INLINED { _mm512_store_ps(flat + v * STRIP, acc[v]); });
    for (int64_t r = 0; r < x.count; ++r)
        for (int64_t o = 0; o < STRIP; ++o) turned[r * PAIR + o] = flat[o * W + r];
}

// `done(row, output, count, sums)` takes the sums of a row and up to PAIR outputs, not yet times the scale of an output. No memory is
// needed for a strip.
template <Code C, class Done>
QUINTET_TILED void tiles_range(const TileWeight& m, const Strips& x, int64_t begin, int64_t end, void* memory, Done done) {
    const Tiles tiles(shapes_of(x.rows()));
    if (x.count > STRIP) return many_tiles<C>(m, x, begin, end, memory, done);
    alignas(64) float turned[STRIP * PAIR];
    const int64_t of_scales = m.count * (C == MX ? 1 : bytes_of(m.scale_type));
    ask_for_all(m.weight + begin * m.pitch, STRIP * m.pitch < 16384 ? STRIP * m.pitch : 16384);
    for (; begin < end; begin += STRIP) {
        if (of_scales) ask_for_all(static_cast<const char*>(m.scales) + (begin + STRIP) * of_scales, STRIP * of_scales);
        if (!m.each) {
            stream_sums<C>(m, x, begin, end, turned);
        } else {
            switch (x.rows()) {
                case 1: stream_scaled<C, 1>(m, x, begin, end, turned); break;
                case 2: stream_scaled<C, 2>(m, x, begin, end, turned); break;
                case 4: stream_scaled<C, 4>(m, x, begin, end, turned); break;
                case 8: stream_scaled<C, 8>(m, x, begin, end, turned); break;
                default: stream_scaled<C, STRIP>(m, x, begin, end, turned);
            }
        }
        for (int64_t r = 0; r < x.count; ++r) done(r, begin, end - begin < STRIP ? end - begin : STRIP, turned + r * PAIR);
    }
}

// ---- entries -----------------------------------------------------------------------------------------------------

// Adds the bias to sums of a row, perhaps scaled first, and rounds them.
template <class M>
inline void finish_tiles(const M& m, int64_t row, int64_t output, int64_t count, const float* sums, const void* scales, int scale_type) {
    for (int64_t i = 0; i < count; i += LANES) {
        const __mmask16 there = count - i < LANES ? __mmask16((1u << (count - i)) - 1) : __mmask16(0xffff);
        __m512 sum = _mm512_loadu_ps(sums + i);
        if (scales) sum = _mm512_mul_ps(sum, some_scales(scale_type, scales, output + i, count - i));
        if (m.bias) sum = _mm512_add_ps(sum, some_scales(BF16, m.bias, output + i, count - i));
        _mm256_mask_storeu_epi16(static_cast<uint16_t*>(m.out) + row * m.outputs + output + i, there, (__m256i)_mm512_cvtneps_pbh(sum));
    }
}

// Rows `begin` to `end`, `begin` the first of a strip.
template <bool codes, class X>
inline void turn_rows(const X* x, int64_t stride, int64_t begin, int64_t end, int64_t inputs, void* prepared) {
    const int64_t rows = strip_rows(begin ? STRIP : end);
    for (; begin < end; begin += STRIP) {
        const int64_t count = end - begin < STRIP ? end - begin : STRIP;
        turn_strip<codes>([=](int64_t r) { return x + (begin + r) * stride; }, count, rows, inputs,
                          static_cast<char*>(prepared) + begin / STRIP * strip_bytes(inputs));
    }
}

inline size_t tiles_memory(int64_t) { return UNIT_BYTES + size_t(MOST_TILED * PAIR * 4); }

inline size_t matmul_bytes(int64_t inputs) { return size_t(strip_bytes(inputs) / STRIP); }
inline void matmul_strips(const Matvec& m, int64_t begin, int64_t end) {
    turn_rows<false>(static_cast<const uint16_t*>(m.x), m.x_stride, begin, end, m.inputs, m.prepared);
}
inline void matmul_tiles(const Matvec& m, int64_t begin, int64_t end, void* memory) {
    const Strips x{static_cast<const char*>(m.prepared), m.rows, strip_bytes(m.inputs)};
    tiles_range<PLAIN>(tile_weight(m), x, begin, end, memory, [&](int64_t row, int64_t output, int64_t count, float* sums) {
        finish_tiles(m, row, output, count, sums, nullptr, FP32);
    });
}
constexpr Matmul by_tiles{PAIR, 512, matmul_bytes, matmul_strips, [](int64_t, int64_t inputs) { return tiles_memory(inputs); },
                          matmul_tiles};

// Products of bfloat16 with packed weights.
struct InTiles {
    static constexpr bool strips = true;
    static size_t bytes(int64_t inputs) { return matmul_bytes(inputs); }
    static size_t memory(int64_t inputs) { return tiles_memory(inputs); }
    template <int T, Code C>
    static void prepare(int, int64_t begin, int64_t end, const void* x, int64_t stride, int64_t inputs, void* to) {
        using X = typename std::conditional<T == FP32, float, uint16_t>::type;
        turn_rows<C != BYTES>(static_cast<const X*>(x), stride, begin, end, inputs, to);
    }
    template <class Done>
    static void product(const MxSource& from, const Rows& rows, int64_t begin, int64_t end, void* memory, Done done) {
        const Strips x{static_cast<const char*>(rows.x), rows.count, strip_bytes(from.count * GROUP)};
        tiles_range<MX>(tile_weight(from), x, begin, end, memory, done);
    }
    static void integers(const Integers& m, int64_t begin, int64_t end, void* memory) {
        const Strips x{static_cast<const char*>(m.prepared), m.rows, strip_bytes(m.inputs)};
        const TileWeight w = tile_weight(m);
        auto done = [&](int64_t row, int64_t output, int64_t count, float* sums) {
            finish_tiles(m, row, output, count, sums, w.each ? nullptr : m.scales, m.scale_type);
        };
        if (m.bits == 8) tiles_range<BYTES>(w, x, begin, end, memory, done);
        else if (m.zeros) tiles_range<ZERO>(w, x, begin, end, memory, done);
        else tiles_range<EIGHT>(w, x, begin, end, memory, done);
    }
    // `count` rows of a strip, of `all`.
    template <int, Code C, class Row>
    static void strip(Row row, int64_t count, int64_t all, int64_t inputs, char* to) {
        turn_strip<C != BYTES>(row, count, strip_rows(all), inputs, to);
    }
};

}  // namespace
}  // namespace quintet
