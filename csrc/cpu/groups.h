// Products with weights whose numbers share a scale in groups: MXFP4, and whole numbers of 4 and 8 bits.
//
// The numbers themselves are exact in bfloat16 and float32, and sums over a step of one or more blocks of 32 inputs are
// scaled; so a product is that of the dequantised weights without rounding any of them. The order of the sums is that of
// body.h: a row's result depends neither on its batch nor on the threads.
#pragma once

#include <type_traits>

#include "body.h"

namespace quintet {
namespace {

constexpr int64_t BLOCK = 32;     // inputs that are scaled together; groups are one or more of these
constexpr int64_t SEGMENT = 256;  // blocks whose scales are widened at a time: they stay in the first cache

constexpr int64_t AHEAD = 8192;   // bytes of a weight that are asked for in advance; measured

// For one row memory is the limit, and one stream in rising order is read fastest.
template <class V, int R>
constexpr int outputs_at_once = R > 1 && R * 2 <= V::sums ? 2 : 1;

// Codes of 4 bits: MXFP4's numbers, code - 8, code - zero.
enum Code { MX, EIGHT, ZERO };

// Values of MXFP4's codes: a sign, two bits of exponent, one of mantissa.
constexpr float CODES[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

// 2^(s - 127) of MXFP4's scales; 255 stands for NaN. Made by the compiler: code that runs at load would be this level's
// code on a CPU that may not have its instructions.
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

template <class V>
struct BytesWidened {  // 8 bits, float32 arithmetic; x in its own order
    using X = float;
    using Acc = typename V::vec;
    using Zero = float;
    static constexpr int bits = 8;
    static constexpr bool zeros = false;
    static constexpr int64_t blocks = 1;  // in a step
    static constexpr int64_t unit = 1;    // blocks that share a scale, as far as is known here
    static constexpr int64_t numbers = BLOCK;
    static constexpr int tile_outputs = 2;
    static constexpr int vectors = int(BLOCK / V::width);
    struct Values { typename V::vec value[vectors]; };
    struct Loaded { typename V::vec value[vectors], scale; };
    static Values load(const uint8_t* w) {
        Values values;
        V::bytes(w, values.value);
        return values;
    }
    static Loaded load(const uint8_t* w, const float* scale, const Zero*) {
        Loaded loaded;
        V::bytes(w, loaded.value);
        loaded.scale = V::set1(*scale);
        return loaded;
    }
    static Loaded load_tail(const uint8_t* w, const float* scale, const Zero* zero, int64_t) { return load(w, scale, zero); }
    static Acc add(const Values& w, const X* x, Acc acc) {
        for (int v = 0; v < vectors; ++v) acc = V::fma(w.value[v], V::loadf(x + v * V::width), acc);
        return acc;
    }
    template <int O>
    static void add_scaled(const Loaded* w, const X* x, Acc* acc) {
        Acc part[O];
        for (int v = 0; v < vectors; ++v) {
            const Acc value = V::loadf(x + v * V::width);
            for (int o = 0; o < O; ++o) part[o] = v ? V::fma(w[o].value[v], value, part[o]) : V::mul(w[o].value[v], value);
        }
        for (int o = 0; o < O; ++o) acc[o] = V::fma(part[o], w[o].scale, acc[o]);
    }
    template <class From>
    static void prepare(From from, int64_t count, X* to) {
        for (int64_t i = 0; i < round_up(count, BLOCK); ++i) to[i] = i < count ? from(i) : 0;
    }
};

// 4 bits, float32 arithmetic. x is prepared as, for each block, its 16 even and then its 16 odd numbers: low halves of the
// bytes, then high ones.
template <class V, Code C>
struct NibblesWidened {
    using X = float;
    using Acc = typename V::vec;
    using Zero = float;
    static constexpr int bits = 4;
    static constexpr bool zeros = C == ZERO;
    static constexpr int64_t blocks = 1, unit = 1, numbers = BLOCK;
    static constexpr int tile_outputs = 2;
    static constexpr int vectors = int(BLOCK / V::width);
    struct Loaded { typename V::vec value[vectors], scale; };
    static Zero zero_of(uint32_t code) { return float(code); }
    static Loaded load(const uint8_t* w, const float* scale, const Zero* zero) {
        Loaded loaded;
        if (C == MX) V::unpack(w, loaded.value);
        else V::nibbles(w, V::set1(C == ZERO ? *zero : 8.0f), loaded.value);
        loaded.scale = V::set1(*scale);
        return loaded;
    }
    static Loaded load_tail(const uint8_t* w, const float* scale, const Zero* zero, int64_t) { return load(w, scale, zero); }
    template <int O>
    static void add_scaled(const Loaded* w, const X* x, Acc* acc) {
        Acc part[O];
        for (int v = 0; v < vectors; ++v) {
            const Acc value = V::loadf(x + v * V::width);
            for (int o = 0; o < O; ++o) part[o] = v ? V::fma(w[o].value[v], value, part[o]) : V::mul(w[o].value[v], value);
        }
        for (int o = 0; o < O; ++o) acc[o] = V::fma(part[o], w[o].scale, acc[o]);
    }
    template <class From>
    static void prepare(From from, int64_t count, X* to) {
        for (int64_t begin = 0; begin < count; begin += BLOCK, to += BLOCK)
            for (int64_t i = 0; i < BLOCK / 2; ++i) {
                to[i] = from(begin + 2 * i);
                to[BLOCK / 2 + i] = from(begin + 2 * i + 1);
            }
    }
};

// Bytes of a prepared row of a way, a multiple of 64.
template <class Way>
inline size_t prepared_bytes(int64_t inputs) {
    return size_t(round_up(inputs, Way::blocks * BLOCK)) * sizeof(typename Way::X);
}

template <class V, class Way, int T>
inline void prepare_rows(int64_t rows, const void* x, int64_t stride, int64_t inputs, void* prepared) {
    for (int64_t r = 0; r < rows; ++r) {
        void* to = static_cast<char*>(prepared) + size_t(r) * prepared_bytes<Way>(inputs);
        if constexpr (T == BF16 && std::is_same<typename Way::X, uint16_t>::value)
            Way::prepare_same(static_cast<const uint16_t*>(x) + r * stride, inputs, static_cast<uint16_t*>(to));
        else
            Way::prepare([&](int64_t i) { return widen<V, T>(x, r * stride + i); }, inputs, static_cast<typename Way::X*>(to));
    }
}

// ---- where weights come from: `fill` widens the scales and zeros of some blocks of an output ---------------------

template <class V>
inline void prefetch_all(const void* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) V::prefetch(static_cast<const char*>(from) + i);
}

struct MxSource {
    const uint8_t *weight, *scales;
    int64_t count;  // blocks of an output
    template <class V, class Way>
    void fill(int64_t output, int64_t first, int64_t here, float* scale, typename Way::Zero*) const {
        V::powers(scales + output * count + first, here, scale);
    }
    template <class V>
    void ahead(int64_t output) const { prefetch_all<V>(scales + output * count, count); }
};

template <class V, int T>
inline void widen_scales(const void* scales, int64_t count, float* to) {
    using W = typename Element<T>::type;
    const W* from = static_cast<const W*>(scales);
    int64_t i = 0;
    for (; i + V::width <= count; i += V::width) V::storef(to + i, V::template load<T>(from + i));
    for (; i < count; ++i) to[i] = widen<V, T>(from, i);
}

template <class V>
inline void widen_scales(int type, const void* scales, int64_t at, int64_t count, float* to) {
    if (type == FP32) widen_scales<V, FP32>(static_cast<const float*>(scales) + at, count, to);
    else if (type == BF16) widen_scales<V, BF16>(static_cast<const uint16_t*>(scales) + at, count, to);
    else widen_scales<V, FP16>(static_cast<const uint16_t*>(scales) + at, count, to);
}

inline uint32_t zero_code(const uint8_t* words, int64_t index, int shift) {
    uint32_t word;
    std::memcpy(&word, words + 4 * index, 4);
    return word >> shift & 15;
}

struct IntegerSource {
    const uint8_t* weight;
    int64_t count;
    const Integers& m;
    template <class V, class Way>
    void fill(int64_t output, int64_t first, int64_t here, float* scale, typename Way::Zero* zero) const {
        constexpr int64_t unit = BLOCK * Way::unit;  // inputs that one of the numbers filled in is for
        const int64_t groups = m.inputs / m.group, each = m.group / unit;
        first /= Way::unit;
        here /= Way::unit;
        const int64_t begin = each == 1 ? first : first / each, end = each == 1 ? first + here : (first + here - 1) / each + 1;
        const uint8_t* words = m.zeros + (output / 8 * groups + begin) * 4;
        const int shift = int(output % 8 * 4);
        if (each == 1) {
            widen_scales<V>(m.scale_type, m.scales, output * groups + begin, here, scale);
            if constexpr (Way::zeros)
                for (int64_t i = 0; i < here; ++i) zero[i] = Way::zero_of(zero_code(words, i, shift));
            return;
        }
        float wide[SEGMENT + 1];
        widen_scales<V>(m.scale_type, m.scales, output * groups + begin, end - begin, wide);
        int64_t i = 0;
        for (int64_t g = begin; g < end; ++g) {
            const int64_t stop = (g + 1) * each - first < here ? (g + 1) * each - first : here;
            typename Way::Zero shared{};
            if constexpr (Way::zeros) shared = Way::zero_of(zero_code(words, g - begin, shift));
            for (; i < stop; ++i) {
                scale[i] = wide[g - begin];
                if constexpr (Way::zeros) zero[i] = shared;
            }
        }
    }
    template <class V>
    void ahead(int64_t output) const {
        const int64_t bytes = m.inputs / m.group * (m.scale_type == FP32 ? 4 : 2);
        prefetch_all<V>(static_cast<const char*>(m.scales) + output * bytes, bytes);
    }
};

// ---- products ----------------------------------------------------------------------------------------------------

template <class V, class Way, int R, int O, class Source, class Done>
inline void grouped_block(const Source& from, const void* prepared, int64_t output, Done done) {
    constexpr int64_t bytes = BLOCK * Way::bits / 8;
    const int64_t count = from.count, padded = round_up(count, Way::blocks) * BLOCK;
    const auto* x = static_cast<const typename Way::X*>(prepared);
    const uint8_t* w[O];
    float scale[O][SEGMENT];
    typename Way::Zero zero[O][Way::zeros ? SEGMENT : 1] = {};
    typename Way::Acc acc[R][O];
    typename Way::Loaded loaded[O];
    for (int o = 0; o < O; ++o) {
        w[o] = from.weight + (output + o) * count * bytes;
        for (int r = 0; r < R; ++r) acc[r][o] = V::zero();
    }
    for (int64_t first = 0; first < count; first += SEGMENT) {
        const int64_t here = count - first < SEGMENT ? count - first : SEGMENT, whole = here / Way::blocks * Way::blocks;
        for (int o = 0; o < O; ++o) from.template fill<V, Way>(output + o, first, here, scale[o], zero[o]);
        if (!first)
            for (int o = 0; o < O; ++o) from.template ahead<V>(output + O + o);
        const auto* at = x + first * BLOCK;
        for (int64_t i = 0; i < whole; i += Way::blocks, at += Way::blocks * BLOCK) {
            for (int o = 0; o < O; ++o) {
                V::prefetch(w[o] + (first + i) * bytes + AHEAD);
                loaded[o] = Way::load(w[o] + (first + i) * bytes, scale[o] + i / Way::unit, zero[o] + (Way::zeros ? i / Way::unit : 0));
            }
            for (int r = 0; r < R; ++r) Way::template add_scaled<O>(loaded, at + r * padded, acc[r]);
        }
        if (whole < here) {
            for (int o = 0; o < O; ++o)
                loaded[o] = Way::load_tail(w[o] + (first + whole) * bytes, scale[o] + whole, zero[o] + (Way::zeros ? whole : 0),
                                           here - whole);
            for (int r = 0; r < R; ++r) Way::template add_scaled<O>(loaded, at + r * padded, acc[r]);
        }
    }
    for (int o = 0; o < O; ++o)
        for (int r = 0; r < R; ++r) done(r, output + o, V::sum(acc[r][o]));
}

template <class V, class Way, int R, class Source, class Done>
inline void grouped_range(const Source& from, const void* prepared, int64_t begin, int64_t end, Done done) {
    constexpr int O = outputs_at_once<V, R>;
    int64_t output = begin;
    for (; output + O <= end; output += O) grouped_block<V, Way, R, O>(from, prepared, output, done);
    for (; output < end; ++output) grouped_block<V, Way, R, 1>(from, prepared, output, done);
}

// 8 bits with one scale for an output: it multiplies the whole sum, and inputs need not be a multiple of a block.
template <class V, class Way, int R, int O, class Done>
inline void channel_block(const Integers& m, int64_t output, Done done) {
    const int64_t padded = round_up(m.inputs, BLOCK), whole = m.inputs / BLOCK * BLOCK;
    const auto* x = static_cast<const typename Way::X*>(m.prepared);
    const uint8_t* w[O];
    typename Way::Acc acc[O][R];
    typename Way::Values loaded[O];
    for (int o = 0; o < O; ++o) {
        w[o] = m.weight + (output + o) * m.inputs;
        for (int r = 0; r < R; ++r) acc[o][r] = V::zero();
    }
    for (int64_t i = 0; i < whole; i += BLOCK) {
        for (int o = 0; o < O; ++o) {
            V::prefetch(w[o] + i + AHEAD);
            loaded[o] = Way::load(w[o] + i);
        }
        for (int r = 0; r < R; ++r)
            for (int o = 0; o < O; ++o) acc[o][r] = Way::add(loaded[o], x + r * padded + i, acc[o][r]);
    }
    if (whole < m.inputs) {
        for (int o = 0; o < O; ++o) {
            uint8_t rest[BLOCK] = {};
            std::memcpy(rest, w[o] + whole, size_t(m.inputs - whole));
            loaded[o] = Way::load(rest);
            for (int r = 0; r < R; ++r) acc[o][r] = Way::add(loaded[o], x + r * padded + whole, acc[o][r]);
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
    if constexpr (Way::bits == 8) {
        if (by_channel(m)) {
            constexpr int O = outputs_at_once<V, R>;
            int64_t output = begin;
            for (; output + O <= end; output += O) channel_block<V, Way, R, O>(m, output, done);
            for (; output < end; ++output) channel_block<V, Way, R, 1>(m, output, done);
            return;
        }
    }
    grouped_range<V, Way, R>(IntegerSource{m.weight, m.inputs / BLOCK, m}, m.prepared, begin, end, done);
}

template <class V, class Way, int R>
void mx_rows(const Packed& m, int64_t begin, int64_t end) {
    auto done = [&](int r, int64_t output, float sum) {
        if (m.bias) sum += widen_any<V>(m.type, m.bias, output);
        narrow_any<V>(m.type, m.out, r * m.outputs + output, sum);
    };
    grouped_range<V, Way, R>(MxSource{m.blocks, m.scales, m.groups}, m.prepared, begin, end, done);
}

// in many.h
template <class V, class Way>
void integers_many(const Integers& m, int64_t begin, int64_t end, void* memory);
template <class V, class Way>
void mx_many(const Packed& m, int64_t begin, int64_t end, void* memory);

#define QUINTET_BY_ROWS(name, Args)                                     \
    template <class V, class Way>                                       \
    void name##_way(const Args& m, int64_t begin, int64_t end, void* memory) { \
        switch (m.rows) {                                               \
            case 1: return name##_rows<V, Way, 1>(m, begin, end);       \
            case 2: return name##_rows<V, Way, 2>(m, begin, end);       \
            case 3: return name##_rows<V, Way, 3>(m, begin, end);       \
            case 4: return name##_rows<V, Way, 4>(m, begin, end);       \
            case 5: return name##_rows<V, Way, 5>(m, begin, end);       \
            case 6: return name##_rows<V, Way, 6>(m, begin, end);       \
            case 7: return name##_rows<V, Way, 7>(m, begin, end);       \
            case 8: return name##_rows<V, Way, 8>(m, begin, end);       \
            default: return name##_many<V, Way>(m, begin, end, memory); \
        }                                                               \
    }
QUINTET_BY_ROWS(integers, Integers)
QUINTET_BY_ROWS(mx, Packed)
#undef QUINTET_BY_ROWS

template <class V, int T>
void packed_of(const Packed& m, int64_t begin, int64_t end, void* memory) {
    mx_way<V, typename V::template Nibbles<T, MX>>(m, begin, end, memory);
}

template <class V, int T>
void integers_of(const Integers& m, int64_t begin, int64_t end, void* memory) {
    if (m.bits == 8) integers_way<V, typename V::template Bytes<T>>(m, begin, end, memory);
    else if (m.group % 128 == 0) {
        if (m.zeros) integers_way<V, typename V::template Nibbles<T, ZERO, 4>>(m, begin, end, memory);
        else integers_way<V, typename V::template Nibbles<T, EIGHT, 4>>(m, begin, end, memory);
    } else {
        if (m.zeros) integers_way<V, typename V::template Nibbles<T, ZERO>>(m, begin, end, memory);
        else integers_way<V, typename V::template Nibbles<T, EIGHT>>(m, begin, end, memory);
    }
}

// ---- routed experts of one row -----------------------------------------------------------------------------------

template <class V, int T>
void experts_inner_of(const Experts& m, int64_t begin, int64_t end) {
    using Way = typename V::template Nibbles<T, MX>;
    const int64_t groups = m.hidden / GROUP;
    float both[2] = {};
    for (int64_t at = begin; at < end;) {
        const int64_t choice = at / m.inner, first = at % m.inner;
        const int64_t last = end - at < m.inner - first ? first + (end - at) : m.inner;
        const int64_t row = m.indices[choice] * 2 * m.inner;  // of this expert's gates and ups, which stand in turn
        const MxSource from{m.gate_up_blocks + row * groups * GROUP_BYTES, m.gate_up_scales + row * groups, groups};
        grouped_range<V, Way, 1>(from, m.prepared, 2 * first, 2 * last, [&](int, int64_t output, float sum) {
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
    using Way = typename V::template Nibbles<T, MX>;
    constexpr int64_t most = 64;
    const int64_t groups = m.inner / GROUP;
    for (; begin < end; begin += most) {
        const int64_t stop = end - begin < most ? end : begin + most;
        float total[most] = {};
        for (int64_t choice = 0; choice < m.chosen; ++choice) {
            const int64_t row = m.indices[choice] * m.hidden;
            const void* prepared = static_cast<const char*>(m.prepared_values) + size_t(choice) * prepared_bytes<Way>(m.inner);
            const MxSource from{m.down_blocks + row * groups * GROUP_BYTES, m.down_scales + row * groups, groups};
            grouped_range<V, Way, 1>(from, prepared, begin, stop, [&](int, int64_t output, float sum) {
                total[output - begin] += m.weights[choice] * (sum + widen<V, T>(m.down_bias, row + output));
            });
        }
        for (int64_t output = begin; output < stop; ++output) narrow<V, T>(m.out, output, total[output - begin]);
    }
}

}  // namespace
}  // namespace quintet
