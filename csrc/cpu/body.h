// The products, written once over a vector type V; each level of instructions includes this file with its own V.
//
// A result is a sum over vectors of inputs in rising order, kept in one register for each (row, output) and added up
// across its lanes at the end: the same whatever else is computed at the same time, so a row's result does not depend
// on its batch, nor on how outputs are shared among threads.
//
// Everything is in an unnamed namespace: the linker must not take one level's code for another's.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels.h"

namespace quintet {
namespace {

template <int T>
struct Element { using type = uint16_t; };
template <>
struct Element<FP32> { using type = float; };

inline float bf16_to_float(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline uint16_t float_to_bf16(float value) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);  // NaN stays one
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <class V, int T>
inline float widen(const void* from, int64_t index) {
    if (T == FP32) return static_cast<const float*>(from)[index];
    uint16_t bits = static_cast<const uint16_t*>(from)[index];
    return T == BF16 ? bf16_to_float(bits) : V::half_to_float(bits);
}

template <class V, int T>
inline void narrow(void* to, int64_t index, float value) {
    if (T == FP32) static_cast<float*>(to)[index] = value;
    else static_cast<uint16_t*>(to)[index] = T == BF16 ? float_to_bf16(value) : V::float_to_half(value);
}

template <class V>
inline float widen_any(int type, const void* from, int64_t index) {
    return type == FP32 ? widen<V, FP32>(from, index) : type == BF16 ? widen<V, BF16>(from, index) : widen<V, FP16>(from, index);
}

template <class V>
inline void narrow_any(int type, void* to, int64_t index, float value) {
    if (type == FP32) narrow<V, FP32>(to, index, value);
    else if (type == BF16) narrow<V, BF16>(to, index, value);
    else narrow<V, FP16>(to, index, value);
}

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// 2^(s - 127) of a scale; 255 stands for NaN. Made by the compiler: code that runs at load would be this level's code
// on a CPU that may not have its instructions.
struct Scales {
    float value[256];
    constexpr Scales() : value() {
        double power = 1;
        for (int s = 127; s < 255; ++s, power *= 2) value[s] = float(power);
        power = 1;
        for (int s = 127; s >= 0; --s, power /= 2) value[s] = float(power);
        value[255] = __builtin_nanf("");
    }
};
constexpr Scales scale_table;

// ---- ways to multiply: what x is prepared as, and one step along the inputs --------------------------------------

// Weights of any type, widened to float32.
template <class V, int T>
struct Widened {
    using W = typename Element<T>::type;
    using X = float;
    using Acc = typename V::vec;
    using Loaded = typename V::vec;
    static constexpr int64_t step = V::width;
    static Loaded load(const W* w) { return V::template load<T>(w); }
    static Loaded load_tail(const W* w, int64_t count) {
        W padded[step] = {};
        std::memcpy(padded, w, size_t(count) * sizeof(W));
        return V::template load<T>(padded);
    }
    static Acc add(Loaded w, const X* x, Acc acc) { return V::fma(w, V::loadf(x), acc); }
    static void prepare(const void* from, int64_t begin, int64_t count, X* to) {
        for (int64_t i = 0; i < count; ++i) to[i] = widen<V, T>(from, begin + i);
        for (int64_t i = count; i < round_up(count, step); ++i) to[i] = 0;
    }
};

template <class V, class Way, int R, int O, class Done>
inline void matvec_block(const Matvec& m, int64_t output, Done done) {
    const int64_t padded = int64_t(m.inputs + Way::step - 1) / Way::step * Way::step;
    const auto* x = static_cast<const typename Way::X*>(m.prepared);
    const typename Way::W* w[O];
    typename Way::Acc acc[O][R];
    for (int o = 0; o < O; ++o) {
        w[o] = static_cast<const typename Way::W*>(m.weight) + (output + o) * m.weight_stride;
        for (int r = 0; r < R; ++r) acc[o][r] = V::zero();
    }
    const int64_t whole = m.inputs / Way::step * Way::step;
    int64_t i = 0;
    for (; i < whole; i += Way::step) {
        for (int o = 0; o < O; ++o) {
            V::prefetch(reinterpret_cast<const char*>(w[o] + i) + 8192);
            typename Way::Loaded loaded = Way::load(w[o] + i);
            for (int r = 0; r < R; ++r) acc[o][r] = Way::add(loaded, x + r * padded + i, acc[o][r]);
        }
    }
    if (i < m.inputs) {
        for (int o = 0; o < O; ++o) {
            typename Way::Loaded loaded = Way::load_tail(w[o] + i, m.inputs - i);
            for (int r = 0; r < R; ++r) acc[o][r] = Way::add(loaded, x + r * padded + i, acc[o][r]);
        }
    }
    for (int o = 0; o < O; ++o)
        for (int r = 0; r < R; ++r) done(r, output + o, V::sum(acc[o][r]));
}

template <class V, class Way, int T, int R>
void matvec_rows(const Matvec& m, int64_t begin, int64_t end) {
    auto done = [&](int r, int64_t output, float sum) {
        if (m.bias) sum += widen<V, T>(m.bias, output);
        narrow<V, T>(m.out, r * m.outputs + output, sum);
    };
    // For one row memory is the limit, and one stream in rising order is read fastest.
    constexpr int O = R > 1 && R * 2 <= V::sums ? 2 : 1;
    int64_t output = begin;
    for (; output + O <= end; output += O) matvec_block<V, Way, R, O>(m, output, done);
    for (; output < end; ++output) matvec_block<V, Way, R, 1>(m, output, done);
}

template <class V, int T>
void matvec_of(const Matvec& m, int64_t begin, int64_t end) {
    using Way = typename V::template Way<T>;
    switch (m.rows) {
        case 1: return matvec_rows<V, Way, T, 1>(m, begin, end);
        case 2: return matvec_rows<V, Way, T, 2>(m, begin, end);
        case 3: return matvec_rows<V, Way, T, 3>(m, begin, end);
        case 4: return matvec_rows<V, Way, T, 4>(m, begin, end);
        case 5: return matvec_rows<V, Way, T, 5>(m, begin, end);
        case 6: return matvec_rows<V, Way, T, 6>(m, begin, end);
        case 7: return matvec_rows<V, Way, T, 7>(m, begin, end);
        case 8: return matvec_rows<V, Way, T, 8>(m, begin, end);
    }
}

// ---- MXFP4 -------------------------------------------------------------------------------------------------------

// float32 arithmetic. x is prepared as, for each group, its 16 even and then its 16 odd numbers: low halves of the
// bytes, then high ones.
template <class V, int T>
struct PackedWidened {
    using X = float;
    using Acc = typename V::vec;
    static constexpr int64_t groups = 1;              // in a step
    static constexpr int64_t numbers = GROUP;         // of x in a step
    static constexpr int vectors = int(GROUP / V::width);
    struct Loaded { typename V::vec value[vectors], scale; };
    static Loaded load(const uint8_t* blocks, const uint8_t* scales, int64_t) {
        Loaded loaded;
        V::unpack(blocks, loaded.value);
        loaded.scale = V::set1(scale_table.value[*scales]);
        return loaded;
    }
    static Acc add(const Loaded& w, const X* x, Acc acc) {
        Acc part = V::mul(w.value[0], V::loadf(x));
        for (int v = 1; v < vectors; ++v) part = V::fma(w.value[v], V::loadf(x + v * V::width), part);
        return V::fma(part, w.scale, acc);
    }
    template <class From>
    static void prepare(From from, int64_t count_groups, X* to) {
        for (int64_t g = 0; g < count_groups; ++g, to += GROUP)
            for (int64_t i = 0; i < GROUP / 2; ++i) {
                to[i] = from(g * GROUP + 2 * i);
                to[GROUP / 2 + i] = from(g * GROUP + 2 * i + 1);
            }
    }
};

template <class V, class Way, int R, int O, class Done>
inline void packed_block(const uint8_t* blocks, const uint8_t* scales, int64_t groups, const void* prepared,
                         int64_t output, Done done) {
    const int64_t steps = (groups + Way::groups - 1) / Way::groups;
    const int64_t padded = steps * Way::numbers;
    const auto* x = static_cast<const typename Way::X*>(prepared);
    const uint8_t *b[O], *s[O];
    typename Way::Acc acc[O][R];
    for (int o = 0; o < O; ++o) {
        b[o] = blocks + (output + o) * groups * GROUP_BYTES;
        s[o] = scales + (output + o) * groups;
        for (int r = 0; r < R; ++r) acc[o][r] = V::zero();
    }
    for (int64_t i = 0; i < steps; ++i) {
        const int64_t g = i * Way::groups;
        for (int o = 0; o < O; ++o) {
            // the same place of the next O outputs; measured better than any fixed distance
            V::prefetch(b[o] + (g + O * groups) * GROUP_BYTES);
            V::prefetch(s[o] + g + O * groups);
            const auto loaded = Way::load(b[o] + g * GROUP_BYTES, s[o] + g, groups - g);
            for (int r = 0; r < R; ++r) acc[o][r] = Way::add(loaded, x + r * padded + i * Way::numbers, acc[o][r]);
        }
    }
    for (int o = 0; o < O; ++o)
        for (int r = 0; r < R; ++r) done(r, output + o, V::sum(acc[o][r]));
}

template <class V, class Way, int R, class Done>
inline void packed_range(const uint8_t* blocks, const uint8_t* scales, int64_t groups, const void* prepared,
                         int64_t begin, int64_t end, Done done) {
    constexpr int O = R == 1 ? 4 : R * 2 <= V::sums ? 2 : 1;
    int64_t output = begin;
    for (; output + O <= end; output += O) packed_block<V, Way, R, O>(blocks, scales, groups, prepared, output, done);
    for (; output < end; ++output) packed_block<V, Way, R, 1>(blocks, scales, groups, prepared, output, done);
}

template <class V, int T, int R>
void packed_rows(const Packed& m, int64_t begin, int64_t end) {
    packed_range<V, typename V::template PackedWay<T>, R>(
        m.blocks, m.scales, m.groups, m.prepared, begin, end, [&](int r, int64_t output, float sum) {
            if (m.bias) sum += widen<V, T>(m.bias, output);
            narrow<V, T>(m.out, r * m.outputs + output, sum);
        });
}

template <class V, int T>
void packed_of(const Packed& m, int64_t begin, int64_t end) {
    switch (m.rows) {
        case 1: return packed_rows<V, T, 1>(m, begin, end);
        case 2: return packed_rows<V, T, 2>(m, begin, end);
        case 3: return packed_rows<V, T, 3>(m, begin, end);
        case 4: return packed_rows<V, T, 4>(m, begin, end);
        case 5: return packed_rows<V, T, 5>(m, begin, end);
        case 6: return packed_rows<V, T, 6>(m, begin, end);
        case 7: return packed_rows<V, T, 7>(m, begin, end);
        case 8: return packed_rows<V, T, 8>(m, begin, end);
    }
}

// ---- routed experts of one row -----------------------------------------------------------------------------------

template <class V, int T>
void experts_inner_of(const Experts& m, int64_t begin, int64_t end) {
    using Way = typename V::template PackedWay<T>;
    const int64_t groups = m.hidden / GROUP;
    float both[2] = {};
    for (int64_t at = begin; at < end;) {
        const int64_t choice = at / m.inner, first = at % m.inner;
        const int64_t last = end - at < m.inner - first ? first + (end - at) : m.inner;
        const int64_t row = m.indices[choice] * 2 * m.inner;  // of this expert's gates and ups, which stand in turn
        packed_range<V, Way, 1>(
            m.gate_up_blocks + row * groups * GROUP_BYTES, m.gate_up_scales + row * groups, groups, m.prepared,
            2 * first, 2 * last, [&](int, int64_t output, float sum) {
                both[output & 1] = sum + widen<V, T>(m.gate_up_bias, row + output);
                if (!(output & 1)) return;
                // as clamping in torch does, a NaN stays one
                const float gate = both[0] > m.limit ? m.limit : both[0];
                const float up = both[1] > m.limit ? m.limit : both[1] < -m.limit ? -m.limit : both[1];
                m.values[choice * m.inner + output / 2] = (up + 1) * gate / (1 + std::exp(-m.alpha * gate));
            });
        at += last - first;
    }
}

template <class V, int T>
void experts_outer_of(const Experts& m, int64_t begin, int64_t end) {
    using Way = typename V::template PackedWay<T>;
    constexpr int64_t most = 64;
    const int64_t groups = m.inner / GROUP;
    const size_t bytes = size_t((groups + Way::groups - 1) / Way::groups * Way::numbers) * sizeof(typename Way::X);
    for (; begin < end; begin += most) {
        const int64_t stop = end - begin < most ? end : begin + most;
        float total[most] = {};
        for (int64_t choice = 0; choice < m.chosen; ++choice) {
            const int64_t row = m.indices[choice] * m.hidden;
            const void* prepared = static_cast<const char*>(m.prepared_values) + size_t(choice) * bytes;
            packed_range<V, Way, 1>(
                m.down_blocks + row * groups * GROUP_BYTES, m.down_scales + row * groups, groups, prepared, begin, stop,
                [&](int, int64_t output, float sum) {
                    total[output - begin] += m.weights[choice] * (sum + widen<V, T>(m.down_bias, row + output));
                });
        }
        for (int64_t output = begin; output < stop; ++output) narrow<V, T>(m.out, output, total[output - begin]);
    }
}

// Values of the 16 codes: a sign, two bits of exponent, one of mantissa.
constexpr float CODES[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

}  // namespace
}  // namespace quintet
