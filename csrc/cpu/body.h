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
#include "numbers.h"

namespace quintet {
namespace {

template <int T>
struct Element { using type = uint16_t; };
template <>
struct Element<FP32> { using type = float; };

// Numbers in a mapped file may start anywhere: they are copied out byte by byte, which compilers turn into one load.
template <class V, int T>
inline float widen(const void* from, int64_t index) {
    typename Element<T>::type bits;
    std::memcpy(&bits, static_cast<const char*>(from) + index * int64_t(sizeof bits), sizeof bits);
    if constexpr (T == FP32) return bits;
    else return T == BF16 ? bf16_to_float(bits) : V::half_to_float(bits);
}

template <class V, int T>
inline void narrow(void* to, int64_t index, float value) {
    typename Element<T>::type bits;
    if constexpr (T == FP32) bits = value;
    else bits = T == BF16 ? float_to_bf16(value) : V::float_to_half(value);
    std::memcpy(static_cast<char*>(to) + index * int64_t(sizeof bits), &bits, sizeof bits);
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

// Numbers from one prepared row to the next: an odd number of cache lines, so that rows do not fall on the same places.
template <class Way>
inline int64_t row_stride(int64_t inputs) {
    constexpr int64_t line = 64 / int64_t(sizeof(typename Way::X));
    return ((round_up(inputs, Way::numbers) + line - 1) / line | 1) * line;
}

// Rows of prepared numbers: all, or some of them.
struct Rows {
    const void* x;
    int64_t bytes;         // from one to the next
    const int64_t* which;  // null for all
    int64_t count;
    const void* at(int64_t r) const { return static_cast<const char*>(x) + (which ? which[r] : r) * bytes; }
};

// ---- ways to multiply: what x is prepared as, and one step along the inputs --------------------------------------

// Weights of any type, widened to float32.
template <class V, int T>
struct Widened {
    using W = typename Element<T>::type;
    using X = float;
    using Acc = typename V::vec;
    using Loaded = typename V::vec;
    using Values = Loaded;
    static constexpr int64_t step = V::width, numbers = step;
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

// Inputs `begin` to `end` of O outputs from `w` on and R rows; `ahead` says for each output how many bytes behind those that are
// read others are asked for.
template <class V, class Way, int R, int O>
struct Sums {
    typename Way::Acc acc[O][R];
    QUINTET_INLINED void clear() {
        each<O>([&](auto o) QUINTET_INLINED { each<R>([&](auto r) QUINTET_INLINED { acc[o][r] = V::zero(); }); });
    }
    QUINTET_INLINED void add(const Matvec& m, const typename Way::W* weight, int64_t begin, int64_t end, const int64_t* ahead) {
        const int64_t padded = row_stride<Way>(m.inputs), whole = end / Way::step * Way::step;
        const auto* x = static_cast<const typename Way::X*>(m.prepared);
        const typename Way::W* w[O];
        int64_t further[O];
        each<O>([&](auto o) QUINTET_INLINED { w[o] = weight + o * m.weight_stride, further[o] = ahead[o]; });
        int64_t i = begin;
        for (; i < whole; i += Way::step) {
            each<O>([&](auto o) QUINTET_INLINED {
                ask_for(reinterpret_cast<const char*>(w[o] + i) + further[o]);
                const typename Way::Loaded loaded = Way::load(w[o] + i);
                each<R>([&](auto r) QUINTET_INLINED { acc[o][r] = Way::add(loaded, x + r * padded + i, acc[o][r]); });
            });
        }
        if (i < end) {
            each<O>([&](auto o) QUINTET_INLINED {
                const typename Way::Loaded loaded = Way::load_tail(w[o] + i, end - i);
                each<R>([&](auto r) QUINTET_INLINED { acc[o][r] = Way::add(loaded, x + r * padded + i, acc[o][r]); });
            });
        }
    }
    template <class Done>
    QUINTET_INLINED void finish(int64_t output, Done done) {
        each<O>([&](auto o) QUINTET_INLINED { each<R>([&](auto r) QUINTET_INLINED { done(r, output + o, V::sum(acc[o][r])); }); });
    }
};

constexpr int64_t AHEAD = 8192;       // bytes of a weight that are on their way
constexpr int64_t NEAR_ROWS = 36864;  // bytes of prepared rows that stay in the first cache beside them

// Outputs `begin` to `end`, all inputs of one after all of another: the order in which they lie.
template <class V, class Way, int R, int O, class Done>
inline void matvec_in_order(const Matvec& m, int64_t& begin, int64_t end, Done done) {
    int64_t ahead[O];
    each<O>([&](auto o) QUINTET_INLINED { ahead[o] = AHEAD; });
    for (; begin + O <= end; begin += O) {
        Sums<V, Way, R, O> sums;
        sums.clear();
        sums.add(m, static_cast<const typename Way::W*>(m.weight) + begin * m.weight_stride, 0, m.inputs, ahead);
        sums.finish(begin, done);
    }
}

// Rows that do not fit into the first cache: some inputs of some outputs at a time, with sums kept as they are in between.
template <class V, class Way, int R, int O, class Done>
inline void matvec_in_parts(const Matvec& m, int64_t& begin, int64_t end, Done done) {
    constexpr int64_t SOME = 16;
    const int64_t size = int64_t(sizeof(typename Way::W)), row = row_stride<Way>(m.inputs) * int64_t(sizeof(typename Way::X));
    const int64_t parts = (R * row + NEAR_ROWS - 1) / NEAR_ROWS;
    const int64_t inputs = round_up((m.inputs + parts - 1) / parts, Way::step), further = AHEAD / (inputs * size) + 1;
    const auto* weight = static_cast<const typename Way::W*>(m.weight);
    Sums<V, Way, R, O> sums[SOME / O];
    while (begin + O <= end) {
        const int64_t here = (end - begin < SOME ? end - begin : SOME) / O * O;
        for (int64_t first = 0; first < m.inputs; first += inputs) {
            const int64_t last = first + inputs < m.inputs ? first + inputs : m.inputs;
            for (int64_t at = 0; at < here; at += O) {
                // what is asked for: the same inputs of later outputs, then the next inputs of the first ones
                int64_t ahead[O];
                each<O>([&](auto o) QUINTET_INLINED {
                    const int64_t to = at + o + further;
                    ahead[o] = to < here ? further * m.weight_stride : last < m.inputs ? (further - here) * m.weight_stride + inputs
                                                                                       : further * m.weight_stride - first;
                    ahead[o] *= size;
                });
                Sums<V, Way, R, O> own;
                if (first) own = sums[at / O];
                else own.clear();
                own.add(m, weight + (begin + at) * m.weight_stride, first, last, ahead);
                if (last < m.inputs) sums[at / O] = own;
                else own.finish(begin + at, done);
            }
        }
        begin += here;
    }
}

template <class V, class Way, int T, int R>
void matvec_rows(const Matvec& m, int64_t begin, int64_t end) {
    auto done = [&](int r, int64_t output, float sum) {
        if (m.bias) sum += widen<V, T>(m.bias, output);
        narrow<V, T>(m.out, r * m.outputs + output, sum);
    };
    // One stream in rising order is read fastest; from six rows on arithmetic counts too.
    constexpr int O = R > 5 && R * 2 <= V::sums ? 2 : 1;
    if constexpr (R > 3) {
        if (R * row_stride<Way>(m.inputs) * int64_t(sizeof(typename Way::X)) > NEAR_ROWS) {
            matvec_in_parts<V, Way, R, O>(m, begin, end, done);
            return matvec_in_parts<V, Way, R, 1>(m, begin, end, done);
        }
    }
    matvec_in_order<V, Way, R, O>(m, begin, end, done);
    matvec_in_order<V, Way, R, 1>(m, begin, end, done);
}

template <class V, class Way>
void matvec_many(const Matvec& m, int64_t begin, int64_t end, void* memory);  // in many.h

template <class V, int T>
void matvec_of(const Matvec& m, int64_t begin, int64_t end, void* memory) {
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
        default: return matvec_many<V, Way>(m, begin, end, memory);
    }
}

}  // namespace
}  // namespace quintet
