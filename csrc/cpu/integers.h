// Products with weights of 8 and 4 bits, written once over a vector type V.
//
// Weights are whole numbers, exact in bfloat16 and float32, and are scaled after the sum over a block of 32 inputs; so a
// product is that of the dequantised weights, without rounding any of them. The order of the sums is that of body.h.
#pragma once

#include "body.h"

namespace quintet {
namespace {

constexpr int64_t BLOCK = 32;     // inputs that are scaled together; groups are one or more of these
constexpr int64_t SEGMENT = 256;  // blocks whose scales are widened at a time: they stay in the first cache

// ---- ways to multiply --------------------------------------------------------------------------------------------

template <class V>
struct BytesWidened {  // 8 bits, float32 arithmetic; x in its own order
    using X = float;
    using Acc = typename V::vec;
    using Zero = float;
    static constexpr int bits = 8;
    static constexpr bool zeros = false;
    static constexpr int64_t blocks = 1;  // in a step
    static constexpr int vectors = int(BLOCK / V::width);
    struct Loaded { typename V::vec value[vectors], scale; };
    static Loaded load(const uint8_t* w) {
        Loaded loaded;
        V::bytes(w, loaded.value);
        return loaded;
    }
    static Loaded load(const uint8_t* w, const float* scale, const Zero*, int64_t) {
        Loaded loaded = load(w);
        loaded.scale = V::set1(*scale);
        return loaded;
    }
    static Acc add(const Loaded& w, const X* x, Acc acc) {
        for (int v = 0; v < vectors; ++v) acc = V::fma(w.value[v], V::loadf(x + v * V::width), acc);
        return acc;
    }
    static Acc add_scaled(const Loaded& w, const X* x, Acc acc) {
        Acc part = V::mul(w.value[0], V::loadf(x));
        for (int v = 1; v < vectors; ++v) part = V::fma(w.value[v], V::loadf(x + v * V::width), part);
        return V::fma(part, w.scale, acc);
    }
    template <class From>
    static void prepare(From from, int64_t count, X* to) {
        for (int64_t i = 0; i < round_up(count, BLOCK); ++i) to[i] = i < count ? from(i) : 0;
    }
};

template <class V, bool Zeros>
struct NibblesWidened {  // 4 bits, float32 arithmetic; x as `PackedWidened` has it: even numbers of a block, then odd ones
    using X = float;
    using Acc = typename V::vec;
    using Zero = float;
    static constexpr int bits = 4;
    static constexpr bool zeros = Zeros;
    static constexpr int64_t blocks = 1;
    static constexpr int vectors = int(BLOCK / V::width);
    struct Loaded { typename V::vec value[vectors], scale; };
    static Zero zero_of(uint32_t code) { return float(code); }
    static Loaded load(const uint8_t* w, const float* scale, const Zero* zero, int64_t) {
        Loaded loaded;
        V::nibbles(w, V::set1(Zeros ? *zero : 8.0f), loaded.value);
        loaded.scale = V::set1(*scale);
        return loaded;
    }
    static Acc add_scaled(const Loaded& w, const X* x, Acc acc) {
        Acc part = V::mul(w.value[0], V::loadf(x));
        for (int v = 1; v < vectors; ++v) part = V::fma(w.value[v], V::loadf(x + v * V::width), part);
        return V::fma(part, w.scale, acc);
    }
    template <class From>
    static void prepare(From from, int64_t count, X* to) {
        PackedWidened<V, FP32>::prepare(from, count / BLOCK, to);
    }
};

// ---- scales ------------------------------------------------------------------------------------------------------

template <class V, int T>
inline void widen_scales(const Integers& m, int64_t output, int64_t first, int64_t count, float* to) {
    const int64_t each = m.group / BLOCK;  // blocks of a group
    using W = typename Element<T>::type;
    const W* from = static_cast<const W*>(m.scales) + output * (m.inputs / m.group);
    int64_t i = 0;
    if (each == 1)
        for (; i + V::width <= count; i += V::width) V::storef(to + i, V::template load<T>(from + first + i));
    while (i < count) {
        const int64_t g = (first + i) / each;
        const float value = widen<V, T>(from, g);
        for (const int64_t stop = (g + 1) * each - first < count ? (g + 1) * each - first : count; i < stop; ++i) to[i] = value;
    }
}

template <class V>
inline void fill_scales(const Integers& m, int64_t output, int64_t first, int64_t count, float* to) {
    if (m.scale_type == FP32) widen_scales<V, FP32>(m, output, first, count, to);
    else if (m.scale_type == BF16) widen_scales<V, BF16>(m, output, first, count, to);
    else widen_scales<V, FP16>(m, output, first, count, to);
}

template <class Way>
inline void fill_zeros(const Integers& m, int64_t output, int64_t first, int64_t count, typename Way::Zero* to) {
    const int64_t each = m.group / BLOCK;
    const uint8_t* from = m.zeros + output / 8 * (m.inputs / m.group) * 4 + output % 8 / 2;
    const int shift = int(output % 2 * 4);
    if (each == 1) {
        for (int64_t i = 0; i < count; ++i) to[i] = Way::zero_of(from[4 * (first + i)] >> shift & 15);
        return;
    }
    for (int64_t i = 0; i < count;) {
        const int64_t g = (first + i) / each;
        const auto value = Way::zero_of(from[4 * g] >> shift & 15);
        for (const int64_t stop = (g + 1) * each - first < count ? (g + 1) * each - first : count; i < stop; ++i) to[i] = value;
    }
}

// ---- products ----------------------------------------------------------------------------------------------------

template <class V, class Way, int R, int O, class Done>
inline void grouped_block(const Integers& m, int64_t output, Done done) {
    constexpr int64_t bytes = BLOCK * Way::bits / 8;
    const int64_t count = m.inputs / BLOCK, padded = round_up(count, Way::blocks) * BLOCK;
    const auto* x = static_cast<const typename Way::X*>(m.prepared);
    const uint8_t* w[O];
    float scale[O][SEGMENT];
    typename Way::Zero zero[O][SEGMENT];
    typename Way::Acc acc[O][R];
    for (int o = 0; o < O; ++o) {
        w[o] = m.weight + (output + o) * count * bytes;
        for (int r = 0; r < R; ++r) acc[o][r] = V::zero();
    }
    for (int64_t first = 0; first < count; first += SEGMENT) {
        const int64_t here = count - first < SEGMENT ? count - first : SEGMENT;
        for (int o = 0; o < O; ++o) {
            fill_scales<V>(m, output + o, first, here, scale[o]);
            if constexpr (Way::zeros) fill_zeros<Way>(m, output + o, first, here, zero[o]);
        }
        for (int64_t i = 0; i < here; i += Way::blocks) {
            for (int o = 0; o < O; ++o) {
                V::prefetch(w[o] + (first + i + O * count) * bytes);  // the same place of the next O outputs
                const auto loaded = Way::load(w[o] + (first + i) * bytes, scale[o] + i, zero[o] + i, here - i);
                for (int r = 0; r < R; ++r)
                    acc[o][r] = Way::add_scaled(loaded, x + r * padded + (first + i) * BLOCK, acc[o][r]);
            }
        }
    }
    for (int o = 0; o < O; ++o)
        for (int r = 0; r < R; ++r) done(r, output + o, V::sum(acc[o][r]));
}

// One scale for an output: it multiplies the whole sum, and the number of inputs need not be one of blocks.
template <class V, class Way, int R, int O, class Done>
inline void channel_block(const Integers& m, int64_t output, Done done) {
    const int64_t padded = round_up(m.inputs, BLOCK), whole = m.inputs / BLOCK * BLOCK;
    const auto* x = static_cast<const typename Way::X*>(m.prepared);
    const uint8_t* w[O];
    typename Way::Acc acc[O][R];
    for (int o = 0; o < O; ++o) {
        w[o] = m.weight + (output + o) * m.inputs;
        for (int r = 0; r < R; ++r) acc[o][r] = V::zero();
    }
    for (int64_t i = 0; i < whole; i += BLOCK) {
        for (int o = 0; o < O; ++o) {
            V::prefetch(w[o] + i + O * m.inputs);
            const auto loaded = Way::load(w[o] + i);
            for (int r = 0; r < R; ++r) acc[o][r] = Way::add(loaded, x + r * padded + i, acc[o][r]);
        }
    }
    if (whole < m.inputs) {
        for (int o = 0; o < O; ++o) {
            uint8_t rest[BLOCK] = {};
            std::memcpy(rest, w[o] + whole, size_t(m.inputs - whole));
            const auto loaded = Way::load(rest);
            for (int r = 0; r < R; ++r) acc[o][r] = Way::add(loaded, x + r * padded + whole, acc[o][r]);
        }
    }
    for (int o = 0; o < O; ++o) {
        const float scale = widen_any<V>(m.scale_type, m.scales, output + o);
        for (int r = 0; r < R; ++r) done(r, output + o, V::sum(acc[o][r]) * scale);
    }
}

inline bool by_channel(const Integers& m) { return m.bits == 8 && m.group == m.inputs; }

template <class V, class Way, int R>
void integers_rows(const Integers& m, int64_t begin, int64_t end) {
    auto done = [&](int r, int64_t output, float sum) {
        if (m.bias) sum += widen_any<V>(m.type, m.bias, output);
        narrow_any<V>(m.type, m.out, r * m.outputs + output, sum);
    };
    constexpr int O = R == 1 ? 4 : R * 2 <= V::sums ? 2 : 1;
    int64_t output = begin;
    if constexpr (Way::bits == 8) {
        if (by_channel(m)) {
            for (; output + O <= end; output += O) channel_block<V, Way, R, O>(m, output, done);
            for (; output < end; ++output) channel_block<V, Way, R, 1>(m, output, done);
            return;
        }
    }
    for (; output + O <= end; output += O) grouped_block<V, Way, R, O>(m, output, done);
    for (; output < end; ++output) grouped_block<V, Way, R, 1>(m, output, done);
}

template <class V, class Way>
void integers_way(const Integers& m, int64_t begin, int64_t end) {
    switch (m.rows) {
        case 1: return integers_rows<V, Way, 1>(m, begin, end);
        case 2: return integers_rows<V, Way, 2>(m, begin, end);
        case 3: return integers_rows<V, Way, 3>(m, begin, end);
        case 4: return integers_rows<V, Way, 4>(m, begin, end);
        case 5: return integers_rows<V, Way, 5>(m, begin, end);
        case 6: return integers_rows<V, Way, 6>(m, begin, end);
        case 7: return integers_rows<V, Way, 7>(m, begin, end);
        case 8: return integers_rows<V, Way, 8>(m, begin, end);
    }
}

template <class V, int T>
void integers_of(const Integers& m, int64_t begin, int64_t end) {
    if (m.bits == 8) integers_way<V, typename V::template Bytes<T>>(m, begin, end);
    else if (m.zeros) integers_way<V, typename V::template Nibbles<T, true>>(m, begin, end);
    else integers_way<V, typename V::template Nibbles<T, false>>(m, begin, end);
}

template <class V, int T>
size_t integers_bytes_of(int64_t inputs) {  // of a prepared row, for either number of bits
    return size_t(round_up(inputs, 2 * BLOCK)) * sizeof(typename V::template Bytes<T>::X);
}

template <class Way, class V, int T>
void integers_prepare_way(const Integers& m) {
    const int64_t padded = round_up(m.inputs, Way::blocks * BLOCK);
    auto* to = static_cast<typename Way::X*>(m.prepared);
    for (int64_t r = 0; r < m.rows; ++r)
        Way::prepare([&](int64_t i) { return widen<V, T>(m.x, r * m.x_stride + i); }, m.inputs, to + r * padded);
}

template <class V, int T>
void integers_prepare_of(const Integers& m) {
    if (m.bits == 8) integers_prepare_way<typename V::template Bytes<T>, V, T>(m);
    else integers_prepare_way<typename V::template Nibbles<T, true>, V, T>(m);
}

}  // namespace
}  // namespace quintet
