// Attention over the vectors of a level, which gives `Lanes`: for many tokens in blocks of keys that are packed once for
// all rows that see them, with a running maximum and sum (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao et al.
// 2022, arXiv 2205.14135); for a few tokens over the keys where they are, in pieces that are joined in their order.
//
// A row is a head of a token: the heads of a group stand side by side, as they see the same keys. What a row does not see
// has the share 0, which adds nothing: so a row's result is the same bits next to any others.
//
// Everything that is multiplied is in words of 32 bits: one float32, or two bfloat16 of neighbouring places.
#pragma once

#include "inner.h"

namespace quintet {
namespace {

using Vec = Lanes::vec;
constexpr int64_t WIDTH = Lanes::width, PANEL = Lanes::columns * WIDTH;
constexpr float LOG2_E = 1.44269504f, HIDDEN = -HUGE_VALF;
static_assert(KEY_BLOCK % PANEL == 0 && PANEL % (2 * WIDTH) == 0, "whole panels");

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t whole(int64_t count, int64_t step) { return (count + step - 1) / step * step; }
inline uint16_t half(const void* from, int64_t index) { return static_cast<const Loose16*>(from)[index]; }

// The ways to multiply: how many numbers a word holds, and what is done with words; rows that are multiplied together, perhaps in tiles of
// the CPU.
struct Singles {
    static constexpr int64_t numbers = 1, rows = Lanes::rows;
    static constexpr bool tiled = false;
    static Vec step(Vec sum, const uint32_t* x, const uint32_t* y) {
        float one;
        std::memcpy(&one, x, 4);
        return Lanes::fma(Lanes::set1(one), Lanes::load(reinterpret_cast<const float*>(y)), sum);
    }
    // two vectors of neighbouring shares
    static void put(uint32_t* to, Vec low, Vec high) {
        Lanes::store(reinterpret_cast<float*>(to), low);
        Lanes::store(reinterpret_cast<float*>(to) + WIDTH, high);
    }
    // the numbers of a query or a key
    static void row(int type, const void* from, int64_t count, uint32_t* to) {
        widen_all(type, from, reinterpret_cast<float*>(to), count);
    }
    // those of as many neighbouring values as a word holds; null for hidden ones
    static void column(int type, const void* const* from, int64_t count, uint32_t* to) {
        if (*from) widen_all(type, *from, reinterpret_cast<float*>(to), count);
        else std::memset(to, 0, size_t(count) * 4);
    }
};

#if defined(__AVX512BF16__)
struct Pairs {
    static constexpr int64_t numbers = 2, rows = Lanes::rows;
    static constexpr bool tiled = false;
    static Vec step(Vec sum, const uint32_t* x, const uint32_t* y) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(int(*x)), (__m512bh)_mm512_loadu_si512(y));
    }
    static void put(uint32_t* to, Vec low, Vec high) { _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low)); }
    static void row(int, const void* from, int64_t count, uint32_t* to) {
        if (count % 2) to[count / 2] = half(from, count - 1);
        std::memcpy(to, from, size_t(count / 2) * 4);
    }
    static void column(int, const void* const* from, int64_t count, uint32_t* to) {
        for (int64_t i = 0; i < count; ++i) to[i] = from[0] ? half(from[0], i) : 0;
        for (int64_t i = 0; i < count && from[1]; ++i) to[i] |= uint32_t(half(from[1], i)) << 16;
    }
};

struct TiledPairs : Pairs {
    static constexpr int64_t rows = 16;
    static constexpr bool tiled = true;
    // As `tile` below, without factors.
    template <bool MORE>
    QUINTET_TILED static void multiply(const uint32_t* x, int64_t x_stride, const uint32_t* y, int64_t steps, float* sums, int64_t stride) {
        constexpr int64_t line = 4 * PANEL;
        static_assert(PANEL == 32, "two tiles side by side");
        if (MORE) {
            QUINTET_TILE_LOAD(0, sums, 4 * stride);
            QUINTET_TILE_LOAD(1, sums + 16, 4 * stride);
        } else {
            QUINTET_TILE_ZERO(0);
            QUINTET_TILE_ZERO(1);
        }
        int64_t s = 0;
        for (; s + 16 <= steps; s += 16) {
            QUINTET_TILE_LOAD(4, x + s, 4 * x_stride);
            QUINTET_TILE_LOAD(6, y + s * PANEL, line);
            QUINTET_TILE_ADD(0, 4, 6);
            QUINTET_TILE_LOAD(7, y + s * PANEL + 16, line);
            QUINTET_TILE_ADD(1, 4, 7);
        }
        if (s < steps) {
            QUINTET_TILE_LOAD(5, x + s, 4 * x_stride);
            QUINTET_TILE_LOAD(2, y + s * PANEL, line);
            QUINTET_TILE_ADD(0, 5, 2);
            QUINTET_TILE_LOAD(3, y + s * PANEL + 16, line);
            QUINTET_TILE_ADD(1, 5, 3);
        }
        QUINTET_TILE_STORE(0, sums, 4 * stride);
        QUINTET_TILE_STORE(1, sums + 16, 4 * stride);
    }
};

// The last words of a query may be fewer than 16: tiles of their own, 5 for queries, 2 and 3 for keys.
inline TileShapes shapes_of_attention(int64_t head) {
    TileShapes shapes;
    const int64_t rest = (head + 1) / 2 % 16;
    if (rest) shapes.set(5, 16, 4 * rest), shapes.set(2, rest, 64), shapes.set(3, rest, 64);
    return shapes;
}

#endif

// 2^y, and 0 below 2^-126; NaN stays one. The series is off by 1.1e-7 at most, and exact at 0.
inline Vec power(Vec y) {
    const Vec small = Lanes::set1(-127.0f), magic = Lanes::set1(12582912.0f);
    y = Lanes::largest(small, y);
    const Vec moved = y + magic, r = y - (moved - magic);  // r from -0.5 to 0.5
    constexpr float factors[] = {0.00967169832f, 0.0555089302f, 0.24022238f, 0.693146884f, 1.0f};
    Vec p = Lanes::set1(0.00132186722f);
    for (int i = 0; i < 5; ++i) p = Lanes::fma(p, r, Lanes::set1(factors[i]));
    return Lanes::scaled(p, moved, y);
}

inline float power_of(float y) {
    float all[WIDTH];
    Lanes::store(all, power(Lanes::set1(y)));
    return all[0];
}

inline float largest_of(Vec value) {
    float all[WIDTH];
    Lanes::store(all, value);
    for (int64_t n = WIDTH / 2; n; n /= 2)
        for (int64_t i = 0; i < n; ++i) all[i] = all[i] > all[i + n] ? all[i] : all[i + n];
    return all[0];
}

inline float total_of(const float* lanes) {
    float all[WIDTH];
    std::memcpy(all, lanes, sizeof all);
    for (int64_t n = WIDTH / 2; n; n /= 2)
        for (int64_t i = 0; i < n; ++i) all[i] += all[i + n];
    return all[0];
}

// ---- what a row sees -------------------------------------------------------------------------------------------------

inline int64_t low_of(const Attention& a, int64_t text, int64_t token) {
    const int64_t from = a.call->window ? a.call->past + token + 1 - a.call->window : 0;
    return most(from, a.first[text]);
}

inline int64_t high_of(const Attention& a, int64_t token) {
    return a.call->causal ? least(a.call->past + token + 1, a.call->keys) : a.call->keys;
}

inline const char* at(const AttentionCall& c, const void* base, const int64_t* strides, int64_t text, int64_t head, int64_t place) {
    return static_cast<const char*>(base) + (text * strides[0] + head * strides[1] + place * strides[2]) * bytes_of(c.type);
}

inline bool hidden(const Attention& a, int64_t text, int64_t key) {
    return a.holes[text] && !a.call->padding[text * a.call->padding_stride + key];
}

// Writes a head's result: sums of values, whose shares are 2^(score - largest) and add up to `total`.
void finish(const Attention& a, int64_t text, int64_t token, int64_t head, float largest, float total, float* sums) {
    const AttentionCall& c = *a.call;
    const int64_t group = head / (c.heads / c.groups), own = c.past + token;
    if (total == 0 && own < c.keys) {  // a token that sees nothing sees itself
        float score = 0;
        const char *q = at(c, c.queries, c.query_strides, text, head, token), *k = at(c, c.stored, c.key_strides, text, group, own);
        for (int64_t i = 0; i < c.head; ++i) score += number(c.type, q, i) * number(c.type, k, i);
        widen_all(c.type, at(c, c.values, c.value_strides, text, group, own), sums, c.head);
        largest = score * float(c.scale) * LOG2_E, total = 1;
    }
    float factor = 1 / total;
    if (c.sinks) {
        const float sink = number(c.sinks_type, c.sinks, head) * LOG2_E, whole = sink > largest ? sink : largest;
        const float part = power_of(largest - whole);
        factor = part / (total * part + power_of(sink - whole));
    }
    for (int64_t i = 0; i < c.head; ++i) sums[i] *= factor;
    narrow_all(c.type, sums, const_cast<char*>(at(c, c.out, c.out_strides, text, head, token)), c.head);
}

inline char* aligned_room(size_t floats) {
    float* memory = room.get(floats + 16);
    return memory ? reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64) : nullptr;
}

// ---- many tokens -------------------------------------------------------------------------------------------------------

// Words of a query or a key, and of a value with what fills its last panel; and of a block of both.
template <class P>
struct Sizes {
    int64_t key, value, keys, values;
    explicit Sizes(int64_t head)
        : key((head + P::numbers - 1) / P::numbers), value(whole(head, PANEL)), keys(key * KEY_BLOCK), values(value * KEY_BLOCK / P::numbers) {}
    int64_t block() const { return keys + values; }
};

// Keys as panels (words of a key, PANEL keys), values as panels (words along the keys, PANEL numbers).
template <class P>
void pack_block(const Attention& a, int64_t unit) {
    const AttentionCall& c = *a.call;
    const Sizes<P> sizes(c.head);
    const int64_t pair = a.first_pair + unit / a.count, block = unit % a.count, text = pair / c.groups, group = pair % c.groups;
    const int64_t begin = a.first[text] + (a.starts[text] + block) * KEY_BLOCK, count = least(KEY_BLOCK, high_of(a, c.tokens - 1) - begin);
    if (count <= 0) return;
    auto* keys = reinterpret_cast<uint32_t*>(a.memory + unit * a.bytes);
    uint32_t* values = keys + sizes.keys;
    const int64_t length = most(sizes.key, sizes.value);
    auto* rows = reinterpret_cast<uint32_t*>(aligned_room(size_t(PANEL * length)));
    if (!rows) return __atomic_store_n(a.no_memory, 1, __ATOMIC_RELAXED);
    std::memset(rows, 0, size_t(PANEL * length) * 4);
    for (int64_t first = 0; first < KEY_BLOCK; first += PANEL, keys += PANEL * sizes.key) {
        if (first >= count) {
            std::memset(keys, 0, size_t(PANEL * sizes.key) * 4);
            continue;
        }
        for (int64_t k = 0; k < PANEL; ++k) {
            if (first + k < count) P::row(c.type, at(c, c.stored, c.key_strides, text, group, begin + first + k), c.head, rows + k * sizes.key);
            else std::memset(rows + k * sizes.key, 0, size_t(sizes.key) * 4);
        }
        for (int64_t w = 0; w < sizes.key; w += WIDTH)
            for (int64_t k = 0; k < PANEL; k += WIDTH)
                Lanes::turn(rows + k * sizes.key + w, sizes.key, sizes.key - w, keys + w * PANEL + k, PANEL);
    }
    std::memset(rows, 0, size_t(length) * 4);
    constexpr int64_t steps = KEY_BLOCK / P::numbers;
    for (int64_t s = 0; s < steps; ++s) {
        const void* from[P::numbers];
        for (int64_t n = 0; n < P::numbers; ++n) {
            const int64_t k = s * P::numbers + n;
            from[n] = k < count && !hidden(a, text, begin + k) ? at(c, c.values, c.value_strides, text, group, begin + k) : nullptr;
        }
        P::column(c.type, from, c.head, rows);
        for (int64_t panel = 0; panel < sizes.value / PANEL; ++panel)
            std::memcpy(values + (panel * steps + s) * PANEL, rows + panel * PANEL, size_t(PANEL) * 4);
    }
}

// sums (P::rows, PANEL) = sums * factors + x (P::rows, steps) y (steps, PANEL), in words; without factors it begins at 0.
template <class P, bool MORE>
inline void tile(const uint32_t* x, int64_t x_stride, const uint32_t* y, int64_t steps, float* sums, int64_t stride, const float* factors) {
    constexpr int R = P::rows, C = Lanes::columns;
    Vec acc[R][C];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < C; ++v)
            acc[r][v] = MORE ? Lanes::load(sums + r * stride + v * WIDTH) * Lanes::set1(factors[r]) : Lanes::set1(0);
    for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < C; ++v) acc[r][v] = P::step(acc[r][v], x + r * x_stride + s, y + s * PANEL + v * WIDTH);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < C; ++v) Lanes::store(sums + r * stride + v * WIDTH, acc[r][v]);
}

// Some rows and what they have of all blocks so far.
template <class P>
struct Rows {
    static constexpr int64_t ROWS = P::rows, TILE = (ROWS + WIDTH - 1) / WIDTH * WIDTH;  // in whole vectors
    static_assert(ROW_BLOCK % ROWS == 0, "whole tiles");
    const Attention& a;
    const Sizes<P> sizes;
    int64_t text, group, begin, count;  // rows of this text and group
    uint32_t *queries, *shares;         // (ROW_BLOCK, words), (ROWS, KEY_BLOCK / numbers)
    float *scores, *sums, *totals;      // (ROWS, KEY_BLOCK), (ROW_BLOCK, sizes.value), (ROW_BLOCK, WIDTH)
    float largest[ROW_BLOCK];

    int64_t token(int64_t row) const { return (begin + least(row, count - 1)) / (a.call->heads / a.call->groups); }

    // Scores of a tile's rows with the keys `from` to `to` of a block become shares, and the factors of what was before.
    void weigh(int64_t row, int64_t key, int64_t from, int64_t to, float* factors) {
        const float scale = float(a.call->scale) * LOG2_E;
        float before[TILE], now[TILE] = {};
        for (int64_t r = 0; r < ROWS; ++r) {
            float* own = scores + r * KEY_BLOCK;
            const int64_t low = low_of(a, text, token(row + r)) - key, high = high_of(a, token(row + r)) - key;
            for (int64_t k = from; k < least(low, to); ++k) own[k] = HIDDEN;
            for (int64_t k = most(high, from); k < to; ++k) own[k] = HIDDEN;
            if (a.holes[text])
                for (int64_t k = most(low, from); k < least(high, to); ++k)
                    if (hidden(a, text, key + k)) own[k] = HIDDEN;
            Vec top = Lanes::set1(largest[row + r]);
            for (int64_t k = from; k < to; k += WIDTH) {
                const Vec score = Lanes::load(own + k) * Lanes::set1(scale);
                Lanes::store(own + k, score);
                top = Lanes::largest(top, score);
            }
            before[r] = largest[row + r];
            largest[row + r] = largest_of(top);
            now[r] = largest[row + r] == HIDDEN ? 0 : largest[row + r];
            before[r] -= now[r];
        }
        for (int64_t r = ROWS; r < TILE; ++r) before[r] = 0;
        for (int64_t r = 0; r < ROWS; r += WIDTH) Lanes::store(factors + r, power(Lanes::load(before + r)));
        for (int64_t r = 0; r < ROWS; ++r) {
            const float* own = scores + r * KEY_BLOCK;
            uint32_t* to_words = shares + r * (KEY_BLOCK / P::numbers);
            const Vec top = Lanes::set1(now[r]);
            // rounded here, whatever is added first
            Vec total = Lanes::fma(Lanes::load(totals + (row + r) * WIDTH), Lanes::set1(factors[r]), Lanes::set1(0));
            for (int64_t k = from; k < to; k += 2 * WIDTH) {
                const Vec one = power(Lanes::load(own + k) - top), other = power(Lanes::load(own + k + WIDTH) - top);
                total = (total + one) + other;
                P::put(to_words + k / P::numbers, one, other);
            }
            Lanes::store(totals + (row + r) * WIDTH, total);
        }
    }

    // Sums of a tile's rows times their factors.
    void scale(float* own, const float* factors) {
        for (int64_t r = 0; r < ROWS; ++r, own += sizes.value)
            for (int64_t i = 0; i < sizes.value; i += WIDTH) Lanes::store(own + i, Lanes::load(own + i) * Lanes::set1(factors[r]));
    }

    void meet(int64_t block, const uint32_t* packed) {
        const int64_t key = a.first[text] + block * KEY_BLOCK;
        for (int64_t row = 0; row < count; row += ROWS) {
            const int64_t low = low_of(a, text, token(row)) - key, high = high_of(a, token(row + ROWS - 1)) - key;
            const int64_t from = most(low, 0) / PANEL * PANEL, to = least(whole(most(high, 0), PANEL), KEY_BLOCK);
            if (from >= to) continue;
            const uint32_t* x = queries + row * sizes.key;
            for (int64_t k = from; k < to; k += PANEL) {
                if constexpr (P::tiled) P::template multiply<false>(x, sizes.key, packed + k * sizes.key, sizes.key, scores + k, KEY_BLOCK);
                else tile<P, false>(x, sizes.key, packed + k * sizes.key, sizes.key, scores + k, KEY_BLOCK, nullptr);
            }
            float factors[TILE];
            weigh(row, key, from, to, factors);
            constexpr int64_t steps = KEY_BLOCK / P::numbers;
            const uint32_t *values = packed + sizes.keys + from / P::numbers * PANEL, *given = shares + from / P::numbers;
            float* own = sums + row * sizes.value;
            if constexpr (P::tiled) scale(own, factors);
            for (int64_t panel = 0; panel < sizes.value / PANEL; ++panel, values += steps * PANEL, own += PANEL) {
                if constexpr (P::tiled) P::template multiply<true>(given, steps, values, (to - from) / P::numbers, own, sizes.value);
                else tile<P, true>(given, steps, values, (to - from) / P::numbers, own, sizes.value, factors);
            }
        }
    }
};

template <class P>
void rows_unit(const Attention& a, int64_t unit) {
    constexpr int64_t ROWS = P::rows;
    const AttentionCall& c = *a.call;
    const int64_t repeated = c.heads / c.groups, all = c.tokens * repeated, pieces = (all + ROW_BLOCK - 1) / ROW_BLOCK;
    const int64_t pair = unit / pieces, place = pieces - 1 - unit % pieces;  // what takes longest comes first
    Rows<P> rows{a, Sizes<P>(c.head), (a.first_pair + pair) / c.groups, (a.first_pair + pair) % c.groups, place * ROW_BLOCK,
                 least(ROW_BLOCK, all - place * ROW_BLOCK), nullptr, nullptr, nullptr, nullptr, nullptr, {}};
    const Sizes<P>& sizes = rows.sizes;
    char* memory = aligned_room(size_t(ROW_BLOCK * (sizes.key + 16 + sizes.value + WIDTH) + 2 * ROWS * KEY_BLOCK));
    if (!memory) return __atomic_store_n(a.no_memory, 1, __ATOMIC_RELAXED);
    rows.scores = reinterpret_cast<float*>(memory), rows.sums = rows.scores + ROWS * KEY_BLOCK;
    rows.totals = rows.sums + ROW_BLOCK * sizes.value;
    rows.shares = reinterpret_cast<uint32_t*>(rows.totals + ROW_BLOCK * WIDTH);
    rows.queries = rows.shares + ROWS * KEY_BLOCK;
    std::memset(rows.sums, 0, size_t(ROW_BLOCK * (sizes.value + WIDTH)) * 4);
    std::memset(rows.queries, 0, size_t(ROW_BLOCK * sizes.key) * 4);
    for (int64_t r = 0; r < ROW_BLOCK; ++r) rows.largest[r] = HIDDEN;
    for (int64_t r = 0; r < rows.count; ++r)
        P::row(c.type, at(c, c.queries, c.query_strides, rows.text, rows.group * repeated + (rows.begin + r) % repeated, rows.token(r)),
               c.head, rows.queries + r * sizes.key);
    const int64_t start = a.starts[rows.text], low = low_of(a, rows.text, rows.token(0)) - a.first[rows.text];
    const int64_t high = high_of(a, rows.token(rows.count - 1)) - a.first[rows.text];
    for (int64_t block = low / KEY_BLOCK; block * KEY_BLOCK < high; ++block)
        rows.meet(block, reinterpret_cast<const uint32_t*>(a.memory + (pair * a.count + block - start) * a.bytes));
    for (int64_t r = 0; r < rows.count; ++r)
        finish(a, rows.text, rows.token(r), rows.group * repeated + (rows.begin + r) % repeated, rows.largest[r],
               total_of(rows.totals + r * WIDTH), rows.sums + r * sizes.value);
}

// ---- a few tokens --------------------------------------------------------------------------------------------------------

// Numbers of what a piece gives for each head: its largest score, the sum of shares, and of values.
inline int64_t given_by(int64_t head) { return whole(head + 2, 16); }

// Shares of a piece's values added up for N heads; S sixteens of a value.
template <int T, int S, int N>
inline void add_values(const Attention& a, const char* values, int64_t count, const float* scores, float* sums, int64_t stride) {
    Sixteen sum[N][S] = {};
    for (int64_t k = 0; k < count; ++k) {
        float share[N], any = 0;
        for (int n = 0; n < N; ++n) share[n] = scores[n * KEY_PIECE + k], any = share[n] != 0 ? 1 : any;
        if (any == 0) continue;  // what is hidden may hold anything
        for (int s = 0; s < S; ++s) {
            const Sixteen value = load<T>(values + k * a.call->value_strides[2] * bytes_of(T) + s * LANES * bytes_of(T));
            for (int n = 0; n < N; ++n) sum[n][s] += value * share[n];
        }
    }
    for (int n = 0; n < N; ++n) std::memcpy(sums + n * stride, sum[n], sizeof sum[n]);
}

template <int T, int S>
void piece_unit(const Attention& a, int64_t unit) {
    const AttentionCall& c = *a.call;
    const int64_t piece = unit % a.count, one = unit / a.count, group = one % c.groups;
    const int64_t token = one / c.groups % c.tokens, text = one / c.groups / c.tokens, repeated = c.heads / c.groups;
    const int64_t begin = a.first[text] + (a.starts[text] + piece) * KEY_PIECE, head = S ? S * LANES : c.head;
    const int64_t from = most(begin, low_of(a, text, token)), to = least(begin + KEY_PIECE, high_of(a, token)), count = to - from;
    auto* given = reinterpret_cast<float*>(a.memory + unit * a.bytes);
    const int64_t each = given_by(head);
    for (int64_t r = 0; r < repeated; ++r) given[r * each] = HIDDEN, given[r * each + 1] = 0;
    if (count <= 0) return;
    auto* queries = reinterpret_cast<float*>(aligned_room(size_t(repeated * (whole(head, 16) + KEY_PIECE) + head)));
    if (!queries) return __atomic_store_n(a.no_memory, 1, __ATOMIC_RELAXED);
    float *scores = queries + repeated * whole(head, 16), *wide = scores + repeated * KEY_PIECE;
    for (int64_t r = 0; r < repeated; ++r)
        widen_all(T, at(c, c.queries, c.query_strides, text, group * repeated + r, token), queries + r * head, head);
    const char *keys = at(c, c.stored, c.key_strides, text, group, from), *values = at(c, c.values, c.value_strides, text, group, from);
    const int64_t key_step = c.key_strides[2] * bytes_of(T), value_step = c.value_strides[2] * bytes_of(T);
    const float scale = float(c.scale) * LOG2_E;
    for (int64_t k = 0; k < count; ++k) {
        if (hidden(a, text, from + k)) {
            for (int64_t r = 0; r < repeated; ++r) scores[r * KEY_PIECE + k] = HIDDEN;
        } else if constexpr (S > 0) {
            Sixteen numbers[S > 0 ? S : 1];
            for (int s = 0; s < S; ++s) numbers[s] = load<T>(keys + k * key_step + s * LANES * bytes_of(T));
            for (int64_t r = 0; r < repeated; ++r) {
                Sixteen product = load<FP32>(queries + r * head) * numbers[0];
                for (int s = 1; s < S; ++s) product += load<FP32>(queries + r * head + s * LANES) * numbers[s];
                scores[r * KEY_PIECE + k] = together(product) * scale;
            }
        } else {
            widen_all(T, keys + k * key_step, wide, head);
            for (int64_t r = 0; r < repeated; ++r) scores[r * KEY_PIECE + k] = product_of(queries + r * head, wide, head) * scale;
        }
    }
    const int64_t filled = whole(count, WIDTH);
    for (int64_t r = 0; r < repeated; ++r) {
        float* own = scores + r * KEY_PIECE;
        for (int64_t k = count; k < filled; ++k) own[k] = HIDDEN;
        Vec top = Lanes::load(own), total = Lanes::set1(0);
        for (int64_t k = WIDTH; k < filled; k += WIDTH) top = Lanes::largest(top, Lanes::load(own + k));
        const float largest = largest_of(top), base = largest == HIDDEN ? 0 : largest;
        for (int64_t k = 0; k < filled; k += WIDTH) {
            const Vec share = power(Lanes::load(own + k) - Lanes::set1(base));
            Lanes::store(own + k, share);
            total += share;
        }
        float lanes[WIDTH];
        Lanes::store(lanes, total);
        given[r * each] = largest, given[r * each + 1] = total_of(lanes);
    }
    if constexpr (S > 0) {
        constexpr int N = S <= 4 ? 4 : 2;  // heads that fit the registers
        int64_t r = 0;
        for (; r + N <= repeated; r += N) add_values<T, S, N>(a, values, count, scores + r * KEY_PIECE, given + r * each + 2, each);
        for (; r < repeated; ++r) add_values<T, S, 1>(a, values, count, scores + r * KEY_PIECE, given + r * each + 2, each);
    } else {
        for (int64_t r = 0; r < repeated; ++r) {
            float* sums = given + r * each + 2;
            std::memset(sums, 0, size_t(head) * sizeof(float));
            for (int64_t k = 0; k < count; ++k) {
                const float share = scores[r * KEY_PIECE + k];
                if (share == 0) continue;
                widen_all(T, values + k * value_step, wide, head);
                for (int64_t i = 0; i < head; ++i) sums[i] += share * wide[i];
            }
        }
    }
}

void joined_unit(const Attention& a, int64_t unit) {
    const AttentionCall& c = *a.call;
    const int64_t group = unit % c.groups, token = unit / c.groups % c.tokens, text = unit / c.groups / c.tokens;
    const int64_t repeated = c.heads / c.groups, each = given_by(c.head);
    float* sums = room.get(size_t(c.head));
    if (!sums) return __atomic_store_n(a.no_memory, 1, __ATOMIC_RELAXED);
    for (int64_t r = 0; r < repeated; ++r) {
        float largest = HIDDEN, total = 0;
        std::memset(sums, 0, size_t(c.head) * sizeof(float));
        for (int64_t piece = 0; piece < a.count; ++piece) {
            const float* given = reinterpret_cast<const float*>(a.memory + (unit * a.count + piece) * a.bytes) + r * each;
            if (given[1] == 0) continue;
            const float top = given[0] > largest ? given[0] : largest;
            const float before = power_of(largest - top), now = power_of(given[0] - top);
            total = total * before + given[1] * now;
            for (int64_t i = 0; i < c.head; ++i) sums[i] = sums[i] * before + given[2 + i] * now;
            largest = top;
        }
        finish(a, text, token, group * repeated + r, largest, total, sums);
    }
}

// ---- by types --------------------------------------------------------------------------------------------------------------

template <class F>
inline auto by_way(int type, F with) {
#if defined(__AVX512BF16__)
    if (type == BF16) return with(Pairs());
#endif
    return with(Singles());
}

int64_t attention_bytes_of(int type, int64_t head) {
    return by_way(type, [&](auto way) { return whole(Sizes<decltype(way)>(head).block() * 4, 64); });
}

void attention_pack_all(const Attention& a, int64_t begin, int64_t end) {
    by_way(a.call->type, [&](auto way) {
        for (int64_t unit = begin; unit < end; ++unit) pack_block<decltype(way)>(a, unit);
    });
}

void attention_rows_all(const Attention& a, int64_t begin, int64_t end) {
    by_way(a.call->type, [&](auto way) {
        for (int64_t unit = begin; unit < end; ++unit) rows_unit<decltype(way)>(a, unit);
    });
}

#if defined(__AVX512BF16__)
QUINTET_TILED void attention_rows_tiled(const Attention& a, int64_t begin, int64_t end) {
    if (a.call->type != BF16) return attention_rows_all(a, begin, end);
    const Tiles tiles(shapes_of_attention(a.call->head));
    for (int64_t unit = begin; unit < end; ++unit) rows_unit<TiledPairs>(a, unit);
}
#endif

template <int T>
void pieces_as(const Attention& a, int64_t begin, int64_t end) {
    const int64_t head = a.call->head;
    for (int64_t unit = begin; unit < end; ++unit) {
        if (head == 64) piece_unit<T, 4>(a, unit);
        else if (head == 128) piece_unit<T, 8>(a, unit);
        else piece_unit<T, 0>(a, unit);
    }
}

void attention_pieces_all(const Attention& a, int64_t begin, int64_t end) {
    if (a.call->type == FP32) pieces_as<FP32>(a, begin, end);
    else if (a.call->type == BF16) pieces_as<BF16>(a, begin, end);
    else pieces_as<FP16>(a, begin, end);
}

void attention_joined_all(const Attention& a, int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) joined_unit(a, unit);
}

}  // namespace
}  // namespace quintet

// `rows` does the rows of attention.
#define QUINTET_INNER_WITH(level, rows)                                                                                            \
    namespace quintet {                                                                                                 \
    const Inner level##_inner = {#level,                                                                                \
                                 norm_all, norm_wide_all, widen_all, narrow_all, add_all, rotate_one, encode_all,       \
                                 attend_range, activate_all, softmax_all, columns_all, columns_sum_all,                 \
                                 attention_bytes_of, attention_pack_all, rows, attention_pieces_all,                    \
                                 attention_joined_all, pick_all};                                                       \
    }

#define QUINTET_INNER(level) QUINTET_INNER_WITH(level, attention_rows_all)
