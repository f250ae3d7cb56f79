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

// Outputs that are computed at once: of one row four, as a sum waits for what was added to it before (measured).
template <class V, int R>
constexpr int outputs_at_once = R == 1 ? 4 : R * 2 <= V::sums ? 2 : 1;

// Outputs that are computed at once lie behind each other, in a block. Two threads read memory fastest when lines are asked for in
// their order (measured: one thread does not tell), and somewhat more than a block before they are used.
struct Ahead {
    int64_t lead;
    Ahead(int64_t bytes, int outputs) : lead(bytes * outputs + 2048 > 7168 ? bytes * outputs + 2048 : 7168) {}
    // While 64 bytes at `at` of output o, of O that begin at w, are used.
    template <int O>
    QUINTET_INLINED void ask(const void* w, int64_t at, int o) const {
        ask_for(static_cast<const char*>(w) + lead + O * at + 64 * o);
    }
};

// Formats: MXFP4's numbers, code - 8, code - zero, all of 4 bits; bytes with a sign; and bfloat16 itself.
enum Code { MX, EIGHT, ZERO, BYTES, PLAIN };

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
    static constexpr int64_t blocks = 1, numbers = BLOCK;
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
    return size_t(row_stride<Way>(inputs)) * sizeof(typename Way::X);
}

// A block as 8 bits hold it: multiples of a 127th of its largest number.
inline void round_block(float* x) {
    float largest = 0;
    for (int64_t i = 0; i < BLOCK; ++i) {
        if (!(std::fabs(x[i]) <= largest)) largest = std::fabs(x[i]);
        if (largest != largest) break;
    }
    const float scale = largest / 127;
    for (int64_t i = 0; i < BLOCK; ++i) x[i] = scale == 0 ? 0 : std::nearbyint(x[i] / scale) * scale;
}

template <class V, class Way, int T>
inline void prepare_rows(int activations, int64_t begin, int64_t end, const void* x, int64_t stride, int64_t inputs, void* prepared) {
    for (int64_t r = begin; r < end; ++r) {
        auto* to = reinterpret_cast<typename Way::X*>(static_cast<char*>(prepared) + size_t(r) * prepared_bytes<Way>(inputs));
        for (int64_t at = 0; at < inputs; at += BLOCK) {
            float some[BLOCK] = {};
            for (int64_t i = 0; i < BLOCK && at + i < inputs; ++i) some[i] = widen<V, T>(x, r * stride + at + i);
            if (activations == ROUNDED) round_block(some);
            Way::prepare([&](int64_t i) { return some[i]; }, BLOCK, to + at);
        }
    }
}

// ---- where weights come from: `fill` widens the scales and zeros of some blocks of an output ---------------------

struct MxSource {
    const uint8_t *weight, *scales;
    int64_t count;  // blocks of an output
    template <class V, class Way>
    void fill(int64_t output, int64_t first, int64_t here, float* scale, typename Way::Zero*) const {
        V::powers(scales + output * count + first, here, scale);
    }
    void ahead(int64_t output) const { ask_for_all(scales + output * count, count); }
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
    int64_t groups, blocks;  // of an output, of a group; divided once and not for each output
    explicit IntegerSource(const Integers& of)
        : weight(of.weight), count(of.inputs / BLOCK), m(of), groups(of.inputs / of.group), blocks(of.group / BLOCK) {}
    template <class V, class Way>
    void fill(int64_t output, int64_t first, int64_t here, float* scale, typename Way::Zero* zero) const {
        const int64_t begin = blocks == 1 ? first : first / blocks, end = blocks == 1 ? first + here : (first + here - 1) / blocks + 1;
        const uint8_t* words = m.zeros + (output / 8 * groups + begin) * 4;
        const int shift = int(output % 8 * 4);
        if (blocks == 1) {
            widen_scales<V>(m.scale_type, m.scales, output * groups + begin, here, scale);
            if constexpr (Way::zeros)
                for (int64_t i = 0; i < here; ++i) zero[i] = Way::zero_of(zero_code(words, i, shift));
            return;
        }
        float wide[SEGMENT + 1];
        widen_scales<V>(m.scale_type, m.scales, output * groups + begin, end - begin, wide);
        int64_t i = 0;
        for (int64_t g = begin; g < end; ++g) {
            const int64_t stop = (g + 1) * blocks - first < here ? (g + 1) * blocks - first : here;
            typename Way::Zero shared{};
            if constexpr (Way::zeros) shared = Way::zero_of(zero_code(words, g - begin, shift));
            for (; i < stop; ++i) {
                scale[i] = wide[g - begin];
                if constexpr (Way::zeros) zero[i] = shared;
            }
        }
    }
    void ahead(int64_t output) const {
        const int64_t bytes = groups * bytes_of(m.scale_type);
        ask_for_all(static_cast<const char*>(m.scales) + output * bytes, bytes);
    }
};

// ---- products ----------------------------------------------------------------------------------------------------

constexpr int64_t TOGETHER = 32;  // outputs that are handed on at a time, of few rows

// Writes the sums of R rows and O outputs; those of a row are `apart`.
template <class V, int R, int O, class Acc>
QUINTET_INLINED inline void write_sums(const Acc (&acc)[R][O], float* sums, int64_t apart) {
    each<R>([&](auto r) QUINTET_INLINED {
        if constexpr (O == 4) V::sum4(acc[r], sums + r * apart);
        else each<O>([&](auto o) QUINTET_INLINED { sums[r * apart + o] = V::sum(acc[r][o]); });
    });
}

// Sums of R rows and the outputs from `output` on; those of a row are TOGETHER apart.
template <class V, class Way, int R, int O, class Source>
inline void grouped_block(const Source& from, const Rows& rows, int64_t output, const Ahead& ahead, float* sums) {
    constexpr int64_t bytes = BLOCK * Way::bits / 8;
    const int64_t count = from.count;
    const typename Way::X* x[R];
    for (int r = 0; r < R; ++r) x[r] = static_cast<const typename Way::X*>(rows.at(r));
    const uint8_t* w[O];
    float scale[O][SEGMENT];
    typename Way::Zero zero[O][Way::zeros ? SEGMENT : 1] = {};
    typename Way::Acc acc[R][O];
    each<O>([&](auto o) QUINTET_INLINED {
        w[o] = from.weight + (output + o) * count * bytes;
        each<R>([&](auto r) QUINTET_INLINED { acc[r][o] = V::zero(); });
    });
    for (int64_t first = 0; first < count; first += SEGMENT) {
        const int64_t here = count - first < SEGMENT ? count - first : SEGMENT, whole = here / Way::blocks * Way::blocks;
        for (int o = 0; o < O; ++o) from.template fill<V, Way>(output + o, first, here, scale[o], zero[o]);
        if (!first)
            for (int o = 0; o < O; ++o) from.ahead(output + O + o);
        for (int64_t i = 0; i < whole; i += Way::blocks) {
            typename Way::Loaded loaded[O];
            const int64_t at = (first + i) * bytes;
            each<O>([&](auto o) QUINTET_INLINED {
                if (at % 64 == 0) ahead.ask<O>(w[0], at, o);
                loaded[o] = Way::load(w[o] + at, scale[o] + i, zero[o] + (Way::zeros ? i : 0));
            });
            each<R>([&](auto r) QUINTET_INLINED { Way::template add_scaled<O>(loaded, x[r] + (first + i) * BLOCK, acc[r]); });
        }
        if (whole < here) {
            typename Way::Loaded loaded[O];
            const int64_t at = (first + whole) * bytes;
            each<O>([&](auto o) QUINTET_INLINED {
                ahead.ask<O>(w[0], at, o);
                loaded[o] = Way::load_tail(w[o] + at, scale[o] + whole, zero[o] + (Way::zeros ? whole : 0), here - whole);
            });
            each<R>([&](auto r) QUINTET_INLINED { Way::template add_scaled<O>(loaded, x[r] + (first + whole) * BLOCK, acc[r]); });
        }
    }
    write_sums<V, R, O>(acc, sums, TOGETHER);
}

template <class V, class Way, int R, class Source, class Done>
inline void grouped_range(const Source& from, const Rows& rows, int64_t begin, int64_t end, Done done) {
    constexpr int O = outputs_at_once<V, R>;
    const Ahead ahead(from.count * BLOCK * Way::bits / 8, O);
    float sums[R * TOGETHER];
    for (; begin < end; begin += TOGETHER) {
        const int64_t here = end - begin < TOGETHER ? end - begin : TOGETHER;
        int64_t o = 0;
        for (; o + O <= here; o += O) grouped_block<V, Way, R, O>(from, rows, begin + o, ahead, sums + o);
        for (; o < here; ++o) grouped_block<V, Way, R, 1>(from, rows, begin + o, ahead, sums + o);
        for (int r = 0; r < R; ++r) done(r, begin, here, sums + r * TOGETHER);
    }
}

template <class V, class Way, class Source, class Done>
void many_grouped(const Source& from, const Rows& rows, int64_t begin, int64_t end, void* memory, Done done);  // in many.h

// `done(row, output, count, sums)` takes the sums of a row and some outputs.
template <class V, class Way, class Source, class Done>
void grouped(const Source& from, const Rows& rows, int64_t begin, int64_t end, void* memory, Done done) {
    switch (rows.count) {
        case 0: return;
        case 1: return grouped_range<V, Way, 1>(from, rows, begin, end, done);
        case 2: return grouped_range<V, Way, 2>(from, rows, begin, end, done);
        case 3: return grouped_range<V, Way, 3>(from, rows, begin, end, done);
        case 4: return grouped_range<V, Way, 4>(from, rows, begin, end, done);
        case 5: return grouped_range<V, Way, 5>(from, rows, begin, end, done);
        case 6: return grouped_range<V, Way, 6>(from, rows, begin, end, done);
        case 7: return grouped_range<V, Way, 7>(from, rows, begin, end, done);
        case 8: return grouped_range<V, Way, 8>(from, rows, begin, end, done);
        default: return many_grouped<V, Way>(from, rows, begin, end, memory, done);
    }
}

// 8 bits with one scale for an output: it multiplies the whole sum, and inputs need not be a multiple of a block.
template <class V, class Way, int R, int O>
inline void channel_block(const Integers& m, int64_t output, const Ahead& ahead, float* sums) {
    const int64_t padded = row_stride<Way>(m.inputs), whole = m.inputs / BLOCK * BLOCK;
    const auto* x = static_cast<const typename Way::X*>(m.prepared);
    const uint8_t* w[O];
    typename Way::Acc acc[R][O];
    each<O>([&](auto o) QUINTET_INLINED {
        w[o] = m.weight + (output + o) * m.inputs;
        each<R>([&](auto r) QUINTET_INLINED { acc[r][o] = V::zero(); });
    });
    auto add = [&](const typename Way::Values* loaded, int64_t i) QUINTET_INLINED {
        each<R>([&](auto r) QUINTET_INLINED {
            each<O>([&](auto o) QUINTET_INLINED { acc[r][o] = Way::add(loaded[o], x + r * padded + i, acc[r][o]); });
        });
    };
    for (int64_t i = 0; i < whole; i += BLOCK) {
        typename Way::Values loaded[O];
        each<O>([&](auto o) QUINTET_INLINED {
            if (i % 64 == 0) ahead.ask<O>(w[0], i, o);
            loaded[o] = Way::load(w[o] + i);
        });
        add(loaded, i);
    }
    if (whole < m.inputs) {
        typename Way::Values loaded[O];
        each<O>([&](auto o) QUINTET_INLINED {
            ahead.ask<O>(w[0], whole, o);
            uint8_t rest[BLOCK] = {};
            std::memcpy(rest, w[o] + whole, size_t(m.inputs - whole));
            loaded[o] = Way::load(rest);
        });
        add(loaded, whole);
    }
    write_sums<V, R, O>(acc, sums, TOGETHER);
}

template <class V, class Way, int R, class Done>
inline void channel_range(const Integers& m, int64_t begin, int64_t end, Done done) {
    constexpr int O = outputs_at_once<V, R>;
    const Ahead ahead(m.inputs, O);
    float sums[R * TOGETHER], scales[TOGETHER];
    for (; begin < end; begin += TOGETHER) {
        const int64_t here = end - begin < TOGETHER ? end - begin : TOGETHER;
        int64_t o = 0;
        for (; o + O <= here; o += O) channel_block<V, Way, R, O>(m, begin + o, ahead, sums + o);
        for (; o < here; ++o) channel_block<V, Way, R, 1>(m, begin + o, ahead, sums + o);
        widen_scales<V>(m.scale_type, m.scales, begin, here, scales);
        for (int r = 0; r < R; ++r) {
            for (o = 0; o < here; ++o) sums[r * TOGETHER + o] *= scales[o];
            done(r, begin, here, sums + r * TOGETHER);
        }
    }
}

template <class V, class Way, class Done>
void many_channel(const Integers& m, int64_t begin, int64_t end, void* memory, Done done);  // in many.h

template <class V, class Way, class Done>
void channel(const Integers& m, int64_t begin, int64_t end, void* memory, Done done) {
    switch (m.rows) {
        case 1: return channel_range<V, Way, 1>(m, begin, end, done);
        case 2: return channel_range<V, Way, 2>(m, begin, end, done);
        case 3: return channel_range<V, Way, 3>(m, begin, end, done);
        case 4: return channel_range<V, Way, 4>(m, begin, end, done);
        case 5: return channel_range<V, Way, 5>(m, begin, end, done);
        case 6: return channel_range<V, Way, 6>(m, begin, end, done);
        case 7: return channel_range<V, Way, 7>(m, begin, end, done);
        case 8: return channel_range<V, Way, 8>(m, begin, end, done);
        default: return many_channel<V, Way>(m, begin, end, memory, done);
    }
}

// Adds the bias and rounds sums of a row, from an output on.
template <class V, int T>
inline void finish_of(const float* sums, int64_t count, const void* bias, int64_t output, void* out, int64_t at) {
    if (bias)
        for (int64_t i = 0; i < count; ++i) narrow<V, T>(out, at + i, sums[i] + widen<V, T>(bias, output + i));
    else
        for (int64_t i = 0; i < count; ++i) narrow<V, T>(out, at + i, sums[i]);
}

template <class V, class M>
inline void finish(const M& m, int64_t row, int64_t output, int64_t count, const float* sums) {
    const int64_t at = row * m.outputs + output;
    if (m.type == FP32) finish_of<V, FP32>(sums, count, m.bias, output, m.out, at);
    else if (m.type == BF16) finish_of<V, BF16>(sums, count, m.bias, output, m.out, at);
    else finish_of<V, FP16>(sums, count, m.bias, output, m.out, at);
}

template <class V, class Way>
void integers_way(const Integers& m, int64_t begin, int64_t end, void* memory) {
    auto done = [&](int64_t row, int64_t output, int64_t count, float* sums) { finish<V>(m, row, output, count, sums); };
    if constexpr (Way::bits == 8)
        if (m.group == m.inputs) return channel<V, Way>(m, begin, end, memory, done);
    const Rows rows{m.prepared, int64_t(prepared_bytes<Way>(m.inputs)), nullptr, m.rows};
    grouped<V, Way>(IntegerSource(m), rows, begin, end, memory, done);
}

// Products with packed weights in float32.
template <class V>
struct InFloat {
    static constexpr bool strips = false;  // whether rows are prepared 16 at a time
    using Bytes = BytesWidened<V>;
    template <Code C>
    using Nibbles = NibblesWidened<V, C>;
    // Both ways prepare a number as one of float32.
    static size_t bytes(int64_t inputs) { return prepared_bytes<Bytes>(inputs); }
    static size_t memory(int64_t inputs);  // in many.h
    template <int T, Code C>
    static void prepare(int activations, int64_t begin, int64_t end, const void* x, int64_t stride, int64_t inputs, void* to) {
        if (C != BYTES) prepare_rows<V, Nibbles<MX>, T>(activations, begin, end, x, stride, inputs, to);
        else prepare_rows<V, Bytes, T>(activations, begin, end, x, stride, inputs, to);
    }
    template <class Done>
    static void product(const MxSource& from, const Rows& rows, int64_t begin, int64_t end, void* memory, Done done) {
        grouped<V, Nibbles<MX>>(from, rows, begin, end, memory, done);
    }
    static void integers(const Integers& m, int64_t begin, int64_t end, void* memory) {
        if (m.bits == 8) integers_way<V, Bytes>(m, begin, end, memory);
        else if (m.zeros) integers_way<V, Nibbles<ZERO>>(m, begin, end, memory);
        else integers_way<V, Nibbles<EIGHT>>(m, begin, end, memory);
    }
};

template <class V, class Ways>
void packed_of(const Packed& m, int64_t begin, int64_t end, void* memory) {
    const Rows rows{m.prepared, int64_t(Ways::bytes(m.groups * GROUP)), nullptr, m.rows};
    Ways::product(MxSource{m.blocks, m.scales, m.groups}, rows, begin, end, memory,
                  [&](int64_t row, int64_t output, int64_t count, float* sums) { finish<V>(m, row, output, count, sums); });
}

// ---- routed experts ----------------------------------------------------------------------------------------------

// Gates and ups stand in turn. As clamping in torch does, a NaN stays one.
inline void swiglu(const float* sums, int64_t count, float alpha, float limit, float* to) {
    for (int64_t i = 0; i < count; ++i) {
        const float gate = sums[2 * i] > limit ? limit : sums[2 * i], given = sums[2 * i + 1];
        const float up = given > limit ? limit : given < -limit ? -limit : given;
        to[i] = (up + 1) * gate / (1 + exponential(-alpha * gate));
    }
}

// The prepared rows of an expert; with strips `from` has those of all experts.
template <class Ways>
inline Rows rows_of_expert(const Experts& m, int64_t asked, const void* from, int64_t inputs, const int64_t* which) {
    const int64_t bytes = int64_t(Ways::bytes(inputs)), count = m.starts[asked + 1] - m.starts[asked];
    if (!Ways::strips) return {from, bytes, which, count};
    return {static_cast<const char*>(from) + m.strips[asked] * STRIP * bytes, bytes, nullptr, count};
}

// Choices are sorted by expert; a product is one of an expert's weights and all rows that chose it.
template <class V, class Ways, int T>
void experts_inner_of(const Experts& m, int64_t begin, int64_t end, void* memory) {
    const int64_t groups = m.hidden / GROUP;
    while (begin < end) {
        const int64_t asked = begin / m.inner, first = begin % m.inner;
        const int64_t last = end - begin < m.inner - first ? first + (end - begin) : m.inner;
        const int64_t start = m.starts[asked], weights = m.asked[asked] * 2 * m.inner;
        const MxSource from{m.gate_up_blocks + weights * groups * GROUP_BYTES, m.gate_up_scales + weights * groups, groups};
        const Rows rows = rows_of_expert<Ways>(m, asked, m.prepared, m.hidden, m.rows_of + start);
        Ways::product(from, rows, 2 * first, 2 * last, memory, [&](int64_t row, int64_t output, int64_t count, float* sums) {
            ask_for(static_cast<const char*>(m.gate_up_bias) + (weights + output + 2 * count) * int64_t(sizeof(typename Element<T>::type)));
            for (int64_t i = 0; i < count; ++i) sums[i] += widen<V, T>(m.gate_up_bias, weights + output + i);
            swiglu(sums, count / 2, m.alpha, m.limit, m.values + (start + row) * m.inner + output / 2);
        });
        begin += last - first;
    }
}

template <class V, class Ways, int T>
void experts_outer_of(const Experts& m, int64_t begin, int64_t end, void* memory) {
    const int64_t groups = m.inner / GROUP, bytes = int64_t(Ways::bytes(m.inner));
    float few[FEW_ROWS * OUTER];
    auto* total = m.rows <= FEW_ROWS ? few : static_cast<float*>(memory);  // (rows, OUTER)
    char* rest = static_cast<char*>(memory);
    if (rest) rest += round_up(m.rows * OUTER * int64_t(sizeof(float)), 64);
    for (; begin < end; begin += OUTER) {
        const int64_t stop = end - begin < OUTER ? end : begin + OUTER;
        std::memset(total, 0, size_t(m.rows * OUTER) * sizeof(float));
        for (int64_t asked = 0; asked < m.count; ++asked) {
            const int64_t start = m.starts[asked], weights = m.asked[asked] * m.hidden;
            const MxSource from{m.down_blocks + weights * groups * GROUP_BYTES, m.down_scales + weights * groups, groups};
            const Rows rows = rows_of_expert<Ways>(m, asked, static_cast<const char*>(m.prepared_values) + (Ways::strips ? 0 : start * bytes), m.inner, nullptr);
            Ways::product(from, rows, begin, stop, rest, [&](int64_t row, int64_t output, int64_t count, float* sums) {
                ask_for(static_cast<const char*>(m.down_bias) + (weights + output + 2 * count) * int64_t(sizeof(typename Element<T>::type)));
                float* to = total + m.rows_of[start + row] * OUTER + (output - begin);
                const float weight = m.weights[start + row];
                for (int64_t i = 0; i < count; ++i) to[i] += weight * (sums[i] + widen<V, T>(m.down_bias, weights + output + i));
            });
        }
        for (int64_t row = 0; row < m.rows; ++row)
            for (int64_t output = begin; output < stop; ++output)
                narrow<V, T>(m.out, row * m.hidden + output, total[row * OUTER + output - begin]);
    }
}

}  // namespace
}  // namespace quintet
