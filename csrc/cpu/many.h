// Products with many rows: weights are unpacked once for all rows, a few outputs at a time, into memory that stays in the
// second cache, and multiplied in tiles of rows and outputs that stay in registers.
//
// Steps along the inputs, and the sum at the end, are those of groups.h and body.h: a row has the same bits as alone.
#pragma once

#include "groups.h"

namespace quintet {
namespace {

constexpr int TILE_ROWS = 4;
constexpr int64_t TILE_BYTES = 384 * 1024;  // of unpacked weights: a part of the second cache
constexpr int64_t TILE_MOST = 48;           // outputs

// Outputs that are unpacked at a time, a multiple of 4.
template <class Stored>
inline int64_t outputs_of_tile(int64_t steps) {
    const int64_t fit = TILE_BYTES / (steps * int64_t(sizeof(Stored))) / 4 * 4;
    return fit < 4 ? 4 : fit > TILE_MOST ? TILE_MOST : fit;
}

// Sums of R rows and O outputs; those of a row are TILE_MOST apart.
template <class V, class Way, int R, int O>
inline void tile(const typename Way::Loaded* w, int64_t steps, const Rows& rows, int64_t row, float* sums) {
    const typename Way::X* x[R];
    typename Way::Acc acc[R][O];
    each<R>([&](auto r) QUINTET_INLINED {
        x[r] = static_cast<const typename Way::X*>(rows.at(row + r));
        each<O>([&](auto o) QUINTET_INLINED { acc[r][o] = V::zero(); });
    });
    for (int64_t s = 0; s < steps; ++s) {
        typename Way::Loaded loaded[O];
        each<O>([&](auto o) QUINTET_INLINED { loaded[o] = w[o * (steps | 1) + s]; });
        each<R>([&](auto r) QUINTET_INLINED { Way::template add_scaled<O>(loaded, x[r] + s * Way::numbers, acc[r]); });
    }
    write_sums<V, R, O>(acc, sums, TILE_MOST);
}

template <class V, class Way, int O>
inline void tile_rows(const typename Way::Loaded* w, int64_t steps, const Rows& rows, int64_t row, float* sums) {
    switch (rows.count - row) {
        case 1: return tile<V, Way, 1, O>(w, steps, rows, row, sums);
        case 2: return tile<V, Way, 2, O>(w, steps, rows, row, sums);
        case 3: return tile<V, Way, 3, O>(w, steps, rows, row, sums);
        default: return tile<V, Way, TILE_ROWS, O>(w, steps, rows, row, sums);
    }
}

// `memory` has room for what `many_bytes` says; `unpack(output, to)` writes the steps of an output, and
// `done(row, output, count, sums)` takes the sums of a row and some outputs.
template <class V, class Way, class Unpack, class Done>
void many_range(int64_t steps, const Rows& rows, int64_t begin, int64_t end, void* memory, Unpack unpack, Done done) {
    constexpr int O = Way::tile_outputs;
    const int64_t most = outputs_of_tile<typename Way::Loaded>(steps);
    auto* unpacked = static_cast<typename Way::Loaded*>(memory);
    float sums[TILE_ROWS * TILE_MOST];
    for (; begin < end; begin += most) {
        const int64_t here = end - begin < most ? end - begin : most;
        for (int64_t o = 0; o < here; ++o) unpack(begin + o, unpacked + o * (steps | 1));
        for (int64_t row = 0; row < rows.count; row += TILE_ROWS) {
            int64_t o = 0;
            for (; o + O <= here; o += O) tile_rows<V, Way, O>(unpacked + o * (steps | 1), steps, rows, row, sums + o);
            for (; o < here; ++o) tile_rows<V, Way, 1>(unpacked + o * (steps | 1), steps, rows, row, sums + o);
            for (int64_t r = 0; r < TILE_ROWS && row + r < rows.count; ++r) done(row + r, begin, here, sums + r * TILE_MOST);
        }
    }
}

template <class Way>
inline int64_t steps_of(int64_t inputs) { return (inputs + Way::numbers - 1) / Way::numbers; }

template <class Way>
inline size_t many_bytes(int64_t inputs) {
    const int64_t steps = steps_of<Way>(inputs);
    return size_t(outputs_of_tile<typename Way::Loaded>(steps) * (steps | 1)) * sizeof(typename Way::Loaded);
}

// The ways without scales along the inputs, for tiles.
template <class Way>
struct Channel : Way {
    using Loaded = typename Way::Values;
    static constexpr int tile_outputs = 4;
    template <int O>
    static void add_scaled(const Loaded* w, const typename Way::X* x, typename Way::Acc* acc) {
        for (int o = 0; o < O; ++o) acc[o] = Way::add(w[o], x, acc[o]);
    }
};

template <class V>
size_t InFloat<V>::memory(int64_t inputs) {  // whatever the format
    size_t most = many_bytes<Nibbles<ZERO>>(inputs);
    for (size_t bytes : {many_bytes<Bytes>(inputs), many_bytes<Channel<Bytes>>(inputs)}) most = bytes > most ? bytes : most;
    return most;
}

template <class V, class Way, class Source, class Done>
void many_grouped(const Source& from, const Rows& rows, int64_t begin, int64_t end, void* memory, Done done) {
    constexpr int64_t bytes = BLOCK * Way::bits / 8;
    const int64_t count = from.count;
    auto unpack = [&](int64_t output, typename Way::Loaded* to) {
        float scale[SEGMENT];
        typename Way::Zero zero[Way::zeros ? SEGMENT : 1] = {};
        const uint8_t* w = from.weight + output * count * bytes;
        for (int64_t first = 0; first < count; first += SEGMENT) {
            const int64_t part = count - first < SEGMENT ? count - first : SEGMENT;
            from.template fill<V, Way>(output, first, part, scale, zero);
            int64_t i = 0;
            for (; i + Way::blocks <= part; i += Way::blocks)
                *to++ = Way::load(w + (first + i) * bytes, scale + i, zero + (Way::zeros ? i : 0));
            if (i < part) *to++ = Way::load_tail(w + (first + i) * bytes, scale + i, zero + (Way::zeros ? i : 0), part - i);
        }
    };
    many_range<V, Way>(steps_of<Way>(count * BLOCK), rows, begin, end, memory, unpack, done);
}

template <class V, class Way, class Done>
void many_channel(const Integers& m, int64_t begin, int64_t end, void* memory, Done done) {
    const Rows rows{m.prepared, int64_t(prepared_bytes<Way>(m.inputs)), nullptr, m.rows};
    const int64_t whole = m.inputs / BLOCK * BLOCK;
    auto unpack = [&](int64_t output, typename Way::Values* to) {
        const uint8_t* w = m.weight + output * m.inputs;
        for (int64_t i = 0; i < whole; i += BLOCK) *to++ = Way::load(w + i);
        if (whole == m.inputs) return;
        uint8_t rest[BLOCK] = {};
        std::memcpy(rest, w + whole, size_t(m.inputs - whole));
        *to = Way::load(rest);
    };
    many_range<V, Channel<Way>>(steps_of<Way>(m.inputs), rows, begin, end, memory, unpack,
                                [&](int64_t row, int64_t output, int64_t count, float* sums) {
                                    float scale[TILE_MOST];
                                    widen_scales<V>(m.scale_type, m.scales, output, count, scale);
                                    for (int64_t i = 0; i < count; ++i) sums[i] *= scale[i];
                                    done(row, output, count, sums);
                                });
}

// Weights of the numbers' own types: unpacking is widening, or copying to where rows of the weight are close together.
template <class V, class Way>
void matvec_many(const Matvec& m, int64_t begin, int64_t end, void* memory) {
    using W = typename Way::W;
    const int64_t whole = m.inputs / Way::step * Way::step;
    const Rows rows{m.prepared, row_stride<Way>(m.inputs) * int64_t(sizeof(typename Way::X)), nullptr, m.rows};
    auto unpack = [&](int64_t output, typename Way::Loaded* to) {
        const W* w = static_cast<const W*>(m.weight) + output * m.weight_stride;
        for (int64_t i = 0; i < whole; i += Way::step) *to++ = Way::load(w + i);
        if (whole < m.inputs) *to = Way::load_tail(w + whole, m.inputs - whole);
    };
    many_range<V, Channel<Way>>(
        steps_of<Way>(m.inputs), rows, begin, end, memory, unpack,
        [&](int64_t row, int64_t output, int64_t count, float* sums) { finish<V>(m, row, output, count, sums); });
}

}  // namespace
}  // namespace quintet
