// The parts of a block between its products, in loops over 16 numbers that compilers turn into vectors. Each level
// includes this file and is compiled with its own instructions; sums go over 16 lanes in rising order and are added up
// in one way, so that a row's result depends on nothing but the row.
//
// Everything is in an unnamed namespace: the linker must not take one level's code for another's.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "blocks.h"
#include "numbers.h"

namespace quintet {
namespace {

constexpr int64_t LANES = 16;

void widen_all(int type, const void* from, float* to, int64_t count) {
    if (type == FP32) {
        std::memcpy(to, from, size_t(count) * 4);
    } else if (type == BF16) {
        const Loose16* bits = static_cast<const Loose16*>(from);
        for (int64_t i = 0; i < count; ++i) to[i] = bf16_to_float(bits[i]);
    } else {
        widen_fp16(static_cast<const Loose16*>(from), to, count);
    }
}

void narrow_all(int type, const float* from, void* to, int64_t count) {
    if (type == FP32) {
        std::memcpy(to, from, size_t(count) * 4);
    } else if (type == BF16) {
        Loose16* bits = static_cast<Loose16*>(to);
        for (int64_t i = 0; i < count; ++i) bits[i] = float_to_bf16(from[i]);
    } else {
        narrow_fp16(from, static_cast<Loose16*>(to), count);
    }
}

inline float number(int type, const void* from, int64_t index) {
    if (type == FP32) return static_cast<const Loose32*>(from)[index];
    const uint16_t bits = static_cast<const Loose16*>(from)[index];
    return type == BF16 ? bf16_to_float(bits) : from_fp16(bits);
}

void add_all(int type, const void* from, float* to, int64_t count) {
    if (type == FP32) {
        const Loose32* other = static_cast<const Loose32*>(from);
        for (int64_t i = 0; i < count; ++i) to[i] += other[i];
    } else if (type == BF16) {
        const Loose16* bits = static_cast<const Loose16*>(from);
        for (int64_t i = 0; i < count; ++i) to[i] += bf16_to_float(bits[i]);
    } else {
        const Loose16* bits = static_cast<const Loose16*>(from);
        for (int64_t i = 0; i < count; ++i) to[i] += from_fp16(bits[i]);
    }
}

// Sixteen numbers as one; compilers make of it what the level has.
typedef float Sixteen __attribute__((vector_size(64), aligned(4), may_alias));

template <int T>
inline Sixteen load(const void* from) {
    Sixteen value;
    if constexpr (T == FP32) {
        std::memcpy(&value, from, sizeof value);
    } else if constexpr (T == EIGHT_BITS) {  // without their scale
        typedef int8_t Bytes __attribute__((vector_size(16)));
        typedef int16_t Halves __attribute__((vector_size(32)));
        typedef int32_t Numbers __attribute__((vector_size(64)));
        typedef float Floats __attribute__((vector_size(64)));
        Bytes bytes;
        std::memcpy(&bytes, from, sizeof bytes);
        // twice as wide each time: GCC makes four times as wide number by number
        const Halves halves = __builtin_convertvector(bytes, Halves);
        const Floats floats = __builtin_convertvector(__builtin_convertvector(halves, Numbers), Floats);
        std::memcpy(&value, &floats, sizeof value);
    } else if constexpr (T == BF16) {
        typedef uint16_t Halves __attribute__((vector_size(32)));
        typedef uint32_t Words __attribute__((vector_size(64)));
        Halves bits;
        std::memcpy(&bits, from, sizeof bits);
        const Words words = __builtin_convertvector(bits, Words) << 16;
        std::memcpy(&value, &words, sizeof value);
    } else {
        float wide[LANES];
        widen_fp16(static_cast<const Loose16*>(from), wide, LANES);
        std::memcpy(&value, wide, sizeof value);
    }
    return value;
}

inline float together(Sixteen value) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    Eight eight[2];
    std::memcpy(eight, &value, sizeof value);
    eight[0] += eight[1];
    Four four[2];
    std::memcpy(four, eight, sizeof four);
    four[0] += four[1];
    return (four[0][0] + four[0][2]) + (four[0][1] + four[0][3]);
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define QUINTET_SHUFFLES
#endif
#endif

// The sums that `together` gives, of four at once: halves are added up side by side.
inline void together4(const Sixteen* v, float* to) {
#if defined(QUINTET_SHUFFLES)
    Sixteen eight[2];
    for (int i = 0; i < 2; ++i)
        eight[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                   __builtin_shufflevector(v[2 * i], v[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    const Sixteen four = __builtin_shufflevector(eight[0], eight[1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                         __builtin_shufflevector(eight[0], eight[1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    const Sixteen two = four + __builtin_shufflevector(four, four, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    const Sixteen one = two + __builtin_shufflevector(two, two, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    for (int i = 0; i < 4; ++i) to[i] = one[4 * i];
#else
    for (int i = 0; i < 4; ++i) to[i] = together(v[i]);
#endif
}

// What is left of a row behind the last sixteen, with zeros.
inline Sixteen rest_of(const float* x, int64_t count) {
    float padded[LANES] = {};
    std::memcpy(padded, x, size_t(count) * sizeof(float));
    return load<FP32>(padded);
}

inline float sum_of(const float* x, int64_t count) {
    Sixteen sum = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) sum += load<FP32>(x + i);
    return together(i < count ? sum + rest_of(x + i, count - i) : sum);
}

inline float product_of(const float* a, const float* b, int64_t count) {
    Sixteen sum = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) sum += load<FP32>(a + i) * load<FP32>(b + i);
    if (i < count) sum += rest_of(a + i, count - i) * rest_of(b + i, count - i);
    return together(sum);
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// The error function by Abramowitz and Stegun, 7.1.26: off by 1.5e-7 at most.
inline float error_function(float x) {
    const float size = x < 0 ? -x : x;
    const float t = 1.0f / fused(0.3275911f, size, 1.0f);
    float p = 1.061405429f;
    p = fused(p, t, -1.453152027f);
    p = fused(p, t, 1.421413741f);
    p = fused(p, t, -0.284496736f);
    p = fused(p, t, 0.254829592f);
    const float value = 1.0f - p * t * exponential(-size * size);
    return x < 0 ? -value : value;
}

// NaN in, NaN out: comparisons in `exponential` would turn it into a number.
template <int A>
inline float activated(float x) {
    float y;
    if (A == RELU) y = x > 0 ? x : 0;
    else if (A == SILU) y = x * sigmoid(x);
    else if (A == GELU) y = 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    else y = x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));  // 0.5 (1 + tanh u) is the sigmoid of 2 u
    return x != x ? x : y;
}

template <int A>
void activate_as(int type, const void* gate, const void* up, void* out, int64_t count) {
    constexpr int64_t PART = 256;
    const int64_t size = bytes_of(type);
    float values[PART], others[PART];
    for (int64_t begin = 0; begin < count; begin += PART) {
        const int64_t n = count - begin < PART ? count - begin : PART;
        widen_all(type, static_cast<const char*>(gate) + begin * size, values, n);
        for (int64_t i = 0; i < n; ++i) values[i] = activated<A>(values[i]);
        if (up) {
            // rounded as a layer of its own would, so that both ways give the same numbers
            narrow_all(type, values, static_cast<char*>(out) + begin * size, n);
            widen_all(type, static_cast<const char*>(out) + begin * size, values, n);
            widen_all(type, static_cast<const char*>(up) + begin * size, others, n);
            for (int64_t i = 0; i < n; ++i) values[i] *= others[i];
        }
        narrow_all(type, values, static_cast<char*>(out) + begin * size, n);
    }
}

void activate_all(int activation, int type, const void* gate, const void* up, void* out, int64_t count) {
    if (activation == RELU) activate_as<RELU>(type, gate, up, out, count);
    else if (activation == SILU) activate_as<SILU>(type, gate, up, out, count);
    else if (activation == GELU) activate_as<GELU>(type, gate, up, out, count);
    else activate_as<GELU_TANH>(type, gate, up, out, count);
}

void norm_row(const Norm& norm, const float* x, int64_t size, float* out) {
    float mean = 0;
    if (norm.kind == 0) {
        mean = sum_of(x, size) / float(size);
        for (int64_t i = 0; i < size; ++i) out[i] = x[i] - mean;
        x = out;
    }
    const float variance = product_of(x, x, size) / float(size);
    const float factor = 1.0f / std::sqrt(variance + float(norm.eps));
    if (norm.type == FP32) {
        const Loose32* weight = static_cast<const Loose32*>(norm.weight);
        for (int64_t i = 0; i < size; ++i) out[i] = x[i] * factor * weight[i];
    } else {
        for (int64_t i = 0; i < size; ++i) out[i] = x[i] * factor * number(norm.type, norm.weight, i);
    }
    if (norm.bias) add_all(norm.type, norm.bias, out, size);
}

// Memory of a thread, kept for its next call.
struct Room {
    float* memory = nullptr;
    size_t size = 0;
    ~Room() { std::free(memory); }
    float* get(size_t wanted) {
        if (wanted > size) {
            std::free(memory);
            memory = static_cast<float*>(std::malloc(wanted * sizeof(float)));
            size = memory ? wanted : 0;
        }
        return memory;
    }
};
thread_local Room room;

void norm_all(const Norm& norm, const float* x, int64_t rows, int64_t size, int type, void* out) {
    float* row = room.get(size_t(size));
    if (!row) return;
    for (int64_t r = 0; r < rows; ++r) {
        norm_row(norm, x + r * size, size, row);
        narrow_all(type, row, static_cast<char*>(out) + r * size * bytes_of(type), size);
    }
}

void norm_wide_all(const Norm& norm, float* x, int64_t rows, int64_t size) {
    for (int64_t r = 0; r < rows; ++r) norm_row(norm, x + r * size, size, x + r * size);
}

void rotate_one(int type, const void* cosines, const void* sines, int64_t size, float* x) {
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a * number(type, cosines, i) - b * number(type, sines, i);
        x[i + half] = b * number(type, cosines, i + half) + a * number(type, sines, i + half);
    }
}

void softmax_all(float* x, int64_t count) {
    float most = x[0];
    for (int64_t i = 1; i < count; ++i) most = x[i] > most ? x[i] : most;
    for (int64_t i = 0; i < count; ++i) x[i] = exponential(x[i] - most);
    const float total = sum_of(x, count);
    for (int64_t i = 0; i < count; ++i) x[i] /= total;
}

// ---- heads in 8 bits ---------------------------------------------------------------------------------------------

void encode_all(const float* x, int64_t count, void* to) {
    auto* codes = static_cast<signed char*>(to);
    Loose16* scales = reinterpret_cast<Loose16*>(codes + count);
    for (int64_t begin = 0; begin < count; begin += EIGHT_GROUP) {
        const int64_t end = begin + EIGHT_GROUP < count ? begin + EIGHT_GROUP : count;
        float most = 0;
        for (int64_t i = begin; i < end; ++i) {
            const float size = std::fabs(x[i]);
            most = size > most || size != size ? size : most;
            if (most != most) break;
        }
        const uint16_t bits = float_to_bf16(most / 127.0f);
        const float scale = bf16_to_float(bits);
        *scales++ = bits;
        for (int64_t i = begin; i < end; ++i) {
            float code = scale > 0 ? x[i] / scale : 0.0f;
            code = code > 127.0f ? 127.0f : code < -127.0f ? -127.0f : code;
            code = (code + 12582912.0f) - 12582912.0f;  // to the nearest whole number, ties to even
            codes[i] = code == code ? static_cast<signed char>(code) : 0;
        }
    }
}

inline float scale_of(const char* stored, int64_t head, int64_t group) {
    return bf16_to_float(reinterpret_cast<const Loose16*>(stored + head)[group]);
}

// Numbers of a head of any type in float32.
template <int T>
inline void widen_head(const char* from, float* to, int64_t head) {
    if constexpr (T == EIGHT_BITS) {
        for (int64_t i = 0; i < head; ++i) to[i] = float(reinterpret_cast<const signed char*>(from)[i]) * scale_of(from, head, i / EIGHT_GROUP);
    } else {
        widen_all(T, from, to, head);
    }
}

// A head's numbers as they are stored, widened; S sixteens of them.
template <int T, int S>
inline void load_head(const char* from, int64_t head, Sixteen* to) {
    constexpr int64_t size = T == EIGHT_BITS ? 1 : bytes_of(T);
    for (int s = 0; s < S; ++s) {
        to[s] = load<T>(from + s * LANES * size);
        if constexpr (T == EIGHT_BITS) to[s] *= scale_of(from, head, s * LANES / EIGHT_GROUP);
    }
}

// The heads of one group over its keys, whole sixteens of a head at a time; S of them, 0 for any number, in the case of which
// keys and values are widened first.
template <int T, int S>
struct Unit {
    static constexpr int64_t size = T == EIGHT_BITS ? 1 : bytes_of(T);  // of what is stored
    static constexpr int64_t NEAR = 64;                                 // values that stay in the first cache for all heads
    static constexpr int SIXTEENS = S > 0 ? S : 1;
    const Block& m;
    int64_t each, head, count;
    const float* queries;      // (each, head)
    const char *keys, *values; // of the first key that is seen
    float scale;
    float *scores, *sums, *wide, *factors;  // (each, count), (each, head), (head,), (each,): what scores become shares by

    const char* key(int64_t j) const { return keys + j * m.key_strides[2] * size; }
    const char* value(int64_t j) const { return values + j * m.value_strides[2] * size; }
    Sixteen product(int64_t h, const Sixteen* numbers) const {
        Sixteen sum = load<FP32>(queries + h * head) * numbers[0];
        for (int s = 1; s < S; ++s) sum += load<FP32>(queries + h * head + s * LANES) * numbers[s];
        return sum;
    }
    // Scores of key j, four heads at a time.
    void meet(int64_t j) {
        Sixteen numbers[SIXTEENS];
        load_head<T, S>(key(j), head, numbers);
        int64_t h = 0;
        for (; h + 4 <= each; h += 4) {
            Sixteen products[4];
            for (int i = 0; i < 4; ++i) products[i] = product(h + i, numbers);
            float four[4];
            together4(products, four);
            for (int i = 0; i < 4; ++i) scores[(h + i) * count + j] = four[i] * scale;
        }
        for (; h < each; ++h) scores[h * count + j] = together(product(h, numbers)) * scale;
    }
    // Scores of four keys.
    void meet_four(int64_t j) {
        for (int64_t h = 0; h < each; ++h) {
            Sixteen products[4];
            for (int i = 0; i < 4; ++i) {
                Sixteen numbers[SIXTEENS];
                load_head<T, S>(key(j + i), head, numbers);
                products[i] = product(h, numbers);
            }
            float* four = scores + h * count + j;
            together4(products, four);
            for (int i = 0; i < 4; ++i) four[i] *= scale;
        }
    }
    void meet_all() {
        int64_t j = 0;
        if constexpr (S > 0) {
            if (each < 4)
                for (; j + 4 <= count; j += 4) meet_four(j);
            for (; j < count; ++j) meet(j);
        } else {
            for (; j < count; ++j) {
                widen_head<T>(key(j), wide, head);
                for (int64_t h = 0; h < each; ++h) scores[h * count + j] = product_of(queries + h * head, wide, head) * scale;
            }
        }
    }
    // Adds what values `begin` to `end` give to H heads.
    template <int H>
    void add_values(int64_t first, int64_t begin, int64_t end) {
        Sixteen own[H][SIXTEENS];
        for (int h = 0; h < H; ++h)
            for (int s = 0; s < S; ++s) own[h][s] = load<FP32>(sums + (first + h) * head + s * LANES);
        for (int64_t j = begin; j < end; ++j) {
            const float* share = scores + first * count + j;
            float shares[H];
            bool any = false;
            for (int h = 0; h < H; ++h) shares[h] = share[h * count] * factors[first + h], any |= shares[h] != 0;
            if (!any) continue;  // what is hidden may hold anything
            Sixteen numbers[SIXTEENS];
            load_head<T, S>(value(j), head, numbers);
            for (int h = 0; h < H; ++h)
                for (int s = 0; s < S; ++s) own[h][s] += numbers[s] * shares[h];
        }
        for (int h = 0; h < H; ++h) std::memcpy(sums + (first + h) * head, own[h], sizeof own[h]);
    }
    void add_all_values() {
        constexpr int H = S > 4 ? 2 : 4;  // sums of so many heads stay in registers
        std::memset(sums, 0, size_t(each * head) * sizeof(float));
        for (int64_t begin = 0; begin < count; begin += NEAR) {
            const int64_t end = begin + NEAR < count ? begin + NEAR : count;
            if constexpr (S > 0) {
                int64_t h = 0;
                for (; h + H <= each; h += H) add_values<H>(h, begin, end);
                for (; h < each; ++h) add_values<1>(h, begin, end);
            } else {
                for (int64_t j = begin; j < end; ++j) {
                    widen_head<T>(value(j), wide, head);
                    for (int64_t h = 0; h < each; ++h) {
                        const float share = scores[h * count + j] * factors[h];
                        if (share == 0) continue;
                        for (int64_t i = 0; i < head; ++i) sums[h * head + i] += share * wide[i];
                    }
                }
            }
        }
    }
};

template <int T, int S>
void attend_unit(const Attend& a, int64_t unit) {
    constexpr int64_t size = Unit<T, S>::size;
    const int64_t out_size = bytes_of(a.type);
    const Block& m = *a.block;
    const int64_t row = unit / m.groups, group = unit % m.groups, text = row / a.tokens, token = row % a.tokens;
    const int64_t each = m.heads / m.groups, head = S ? S * LANES : m.head;
    const int64_t end = m.place + token + 1, begin = m.window && end > m.window ? end - m.window : 0, count = end - begin;
    const float blind = -HUGE_VALF;
    float* scores = room.get(size_t(each * (count + head + 1) + head));
    if (!scores) return;
    const char* keys = static_cast<const char*>(m.keys) + (text * m.key_strides[0] + group * m.key_strides[1] + begin * m.key_strides[2]) * size;
    const char* values = static_cast<const char*>(m.values) + (text * m.value_strides[0] + group * m.value_strides[1] + begin * m.value_strides[2]) * size;
    Unit<T, S> u{m, each, head, count, a.queries + (row * m.heads + group * each) * head, keys, values,
                 float(m.scale), scores, scores + each * count, scores + each * (count + head), scores + each * (count + head) + head};
    u.meet_all();
    if (m.padding) {
        const uint8_t* padding = m.padding + text * m.padding_stride;
        auto hidden = [&](int64_t j) {
            const int64_t slot = m.slot + begin + j;
            return slot < 0 || slot >= m.padding_length || !padding[slot];
        };
        bool seen = false;
        for (int64_t j = 0; j < count && !seen; ++j) seen = !hidden(j);
        // a token that sees nothing sees itself
        for (int64_t j = 0; j < count - !seen; ++j)
            if (hidden(j))
                for (int64_t h = 0; h < each; ++h) scores[h * count + j] = blind;
    }
    for (int64_t h = 0; h < each; ++h) {
        float* own = scores + h * count;
        const float sink = m.sinks ? number(m.sinks_type, m.sinks, group * each + h) : blind;
        float most = sink;
        for (int64_t j = 0; j < count; ++j) most = own[j] > most ? own[j] : most;
        // what is hidden comes to e^-87, and is made to nothing
        for (int64_t j = 0; j < count; ++j) own[j] = own[j] == blind ? 0.0f : exponential(own[j] - most);
        u.factors[h] = 1.0f / (sum_of(own, count) + (m.sinks ? exponential(sink - most) : 0.0f));
    }
    u.add_all_values();
    char* out = static_cast<char*>(a.out) + (row * m.heads + group * each) * head * out_size;
    narrow_all(T == EIGHT_BITS ? a.type : T, u.sums, out, each * head);
}

template <int T>
void attend_as(const Attend& a, int64_t begin, int64_t end) {
    const int64_t head = a.block->head;
    for (int64_t unit = begin; unit < end; ++unit) {
        if (head == 64) attend_unit<T, 4>(a, unit);
        else if (head == 128) attend_unit<T, 8>(a, unit);
        else if (head == 96) attend_unit<T, 6>(a, unit);
        else if (head == 80) attend_unit<T, 5>(a, unit);
        else if (head == 32) attend_unit<T, 2>(a, unit);
        else attend_unit<T, 0>(a, unit);
    }
}

void attend_range(const Attend& a, int64_t begin, int64_t end) {
    if (a.block->stored == EIGHT_BITS) attend_as<EIGHT_BITS>(a, begin, end);
    else if (a.type == FP32) attend_as<FP32>(a, begin, end);
    else if (a.type == BF16) attend_as<BF16>(a, begin, end);
    else attend_as<FP16>(a, begin, end);
}

// ---- the best of many --------------------------------------------------------------------------------------------

// Into the heap; of a full one the worst goes, which the new one must be above. Not std's: the linker would take one
// level's code for another's.
inline void keep_rank(Best& best, int64_t rank) {
    int64_t* ranks = best.ranks;
    int64_t at;
    if (best.held < best.wanted) {
        for (at = best.held++; at && ranks[(at - 1) / 2] > rank; at = (at - 1) / 2) ranks[at] = ranks[(at - 1) / 2];
    } else {
        for (at = 0;;) {
            int64_t next = 2 * at + 1;
            if (next >= best.held) break;
            if (next + 1 < best.held && ranks[next + 1] < ranks[next]) ++next;
            if (ranks[next] >= rank) break;
            ranks[at] = ranks[next];
            at = next;
        }
    }
    ranks[at] = rank;
}

void pick_all(const float* x, int64_t count, int64_t first, Best& best, Total* total) {
    constexpr int64_t AT_ONCE = 64;
    int32_t highest = INT32_MIN;
    for (int64_t begin = 0; begin < count; begin += AT_ONCE) {
        const int64_t n = count - begin < AT_ONCE ? count - begin : AT_ONCE;
        int32_t keys[AT_ONCE], most = INT32_MIN;
        for (int64_t i = 0; i < n; ++i) keys[i] = key_of(x[begin + i]);
        for (int64_t i = 0; i < n; ++i) most = keys[i] > most ? keys[i] : most;
        highest = most > highest ? most : highest;
        int64_t least = best.held == best.wanted && best.ranks[0] > best.floor ? best.ranks[0] : best.floor;
        if (most < int32_t(least >> 32)) continue;
        for (int64_t i = 0; i < n; ++i) {
            const int64_t rank = rank_of(keys[i], first + begin + i);
            if (rank <= least) continue;
            keep_rank(best, rank);
            least = best.held == best.wanted && best.ranks[0] > best.floor ? best.ranks[0] : best.floor;
        }
    }
    if (!total) return;
    const float most = number_of(rank_of(highest, 0));
    if (most != most) total->sum = most;
    if (!(most > -HUGE_VALF) || total->sum != total->sum) return;  // nothing, or no number
    if (most > total->most) {
        total->sum *= std::exp(double(total->most) - double(most));
        total->most = most;
    }
    if (total->most == HUGE_VALF) {
        total->sum = 1;
        return;
    }
    float sums[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int64_t lane = 0; lane < LANES; ++lane) sums[lane] += exponential(x[i + lane] - total->most);
    for (int64_t lane = 0; i < count; ++i, ++lane) sums[lane] += exponential(x[i] - total->most);
    double sum = 0;
    for (float one : sums) sum += one;
    total->sum += sum;
}

// A weight stored (inputs, outputs) is read in its order: `PIECES` runs of inputs give a sum each for every output, and
// these are added up in rising order. Their number is fixed, so that threads do not change the result.
constexpr int64_t PART = 256;  // outputs at a time, four inputs of which stay in the first cache for all rows

void columns_all(const Linear& m, int64_t rows, const float* x, float* partial, int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t from = m.inputs * piece / PIECES, to = m.inputs * (piece + 1) / PIECES;
        float* sums = partial + piece * rows * m.outputs;
        std::memset(sums, 0, size_t(rows * m.outputs) * sizeof(float));
        int64_t i = from;
        for (; i + 4 <= to; i += 4) {
            const Loose32* w = static_cast<const Loose32*>(m.weight) + i * m.stride;
            const Loose32 *w1 = w + m.stride, *w2 = w1 + m.stride, *w3 = w2 + m.stride;
            for (int64_t first = 0; first < m.outputs; first += PART) {
                const int64_t last = first + PART < m.outputs ? first + PART : m.outputs;
                for (int64_t r = 0; r < rows; ++r) {
                    const float *f = x + r * m.inputs + i, f0 = f[0], f1 = f[1], f2 = f[2], f3 = f[3];
                    float* sum = sums + r * m.outputs;
                    for (int64_t c = first; c < last; ++c)
                        sum[c] = fused(f3, w3[c], fused(f2, w2[c], fused(f1, w1[c], fused(f0, w[c], sum[c]))));
                }
            }
        }
        for (; i < to; ++i) {
            const Loose32* w = static_cast<const Loose32*>(m.weight) + i * m.stride;
            for (int64_t r = 0; r < rows; ++r) {
                const float f = x[r * m.inputs + i];
                float* sum = sums + r * m.outputs;
                for (int64_t c = 0; c < m.outputs; ++c) sum[c] = fused(f, w[c], sum[c]);
            }
        }
    }
}

void columns_sum_all(const Linear& m, int64_t rows, const float* partial, float* out, int64_t begin, int64_t end) {
    const Loose32* bias = static_cast<const Loose32*>(m.bias);
    for (int64_t r = 0; r < rows; ++r) {
        float* to = out + r * m.outputs;
        for (int64_t c = begin; c < end; ++c) to[c] = partial[r * m.outputs + c];
        for (int64_t piece = 1; piece < PIECES; ++piece) {
            const float* more = partial + (piece * rows + r) * m.outputs;
            for (int64_t c = begin; c < end; ++c) to[c] += more[c];
        }
        if (bias)
            for (int64_t c = begin; c < end; ++c) to[c] += bias[c];
    }
}

}  // namespace
}  // namespace quintet
