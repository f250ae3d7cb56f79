// Products of many rows of bfloat16 with weights as they are stored, by the dot instructions of pairs (AVX512-BF16).
//
// 48 outputs are computed at once, a lane each: a vector holds two inputs of 16 outputs, and is multiplied with the same two
// inputs of eight rows. For that a run of inputs of these outputs is turned, into memory that stays in the second cache, and
// read for all rows. Sums of an output go by rising inputs, whatever the number of rows and threads.
#pragma once

#include <immintrin.h>

#include "body.h"
#include "few_rows.h"
#include "transpose.h"

namespace quintet {
namespace {

constexpr int TURNED_LANES = 16;                     // outputs of a vector
constexpr int TURNED_MOST = 3;                       // vectors side by side
constexpr int64_t MATMUL_OUTPUTS = TURNED_LANES * TURNED_MOST;
constexpr int64_t TURNED_INPUTS = 2048;              // of a run, at most: 192 KB
constexpr int TURNED_ROWS = 8;                       // of a tile; with 24 sums three registers are left for weights

// A run of inputs of some outputs.
struct Turned {
    const __m512i* words;  // (pairs, vectors)
    int64_t first, pairs;  // its first input
    bool begins, ends;     // whether it has the first inputs, and the last ones
};

// Where results go: the sums of the runs before, (rows, MATMUL_OUTPUTS), and the output.
struct Target {
    float* sums;
    uint16_t* out;
    int64_t stride;                // numbers of `out` from a row to the next
    const float* bias;             // of MATMUL_OUTPUTS
    __mmask16 lanes[TURNED_MOST];  // which outputs there are
};

template <int R, int P>
__attribute__((noinline)) void turned_tile(const Turned& w, const uint16_t* x, int64_t x_stride, const Target& to) {
    __m512 acc[R][P];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p)
            acc[r][p] = w.begins ? _mm512_setzero_ps() : _mm512_loadu_ps(to.sums + r * MATMUL_OUTPUTS + p * TURNED_LANES);
    const __m512i* words = w.words;
    x += w.first;
    for (int64_t k = 0; k < w.pairs; ++k, words += P, x += 2) {
        __m512bh weights[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) weights[p] = (__m512bh)_mm512_load_si512(words + p);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            int32_t pair;
            std::memcpy(&pair, x + r * x_stride, sizeof pair);
            const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) acc[r][p] = _mm512_dpbf16_ps(acc[r][p], weights[p], both);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int p = 0; p < P; ++p) {
            if (!w.ends) {
                _mm512_storeu_ps(to.sums + r * MATMUL_OUTPUTS + p * TURNED_LANES, acc[r][p]);
                continue;
            }
            const __m512 sum = _mm512_add_ps(acc[r][p], _mm512_loadu_ps(to.bias + p * TURNED_LANES));
            _mm256_mask_storeu_epi16(to.out + r * to.stride + p * TURNED_LANES, to.lanes[p], (__m256i)_mm512_cvtneps_pbh(sum));
        }
    }
}

template <int P>
void turned_rows(int64_t rows, const Turned& w, const uint16_t* x, int64_t x_stride, const Target& to) {
    switch (rows) {
        case 1: return turned_tile<1, P>(w, x, x_stride, to);
        case 2: return turned_tile<2, P>(w, x, x_stride, to);
        case 3: return turned_tile<3, P>(w, x, x_stride, to);
        case 4: return turned_tile<4, P>(w, x, x_stride, to);
        case 5: return turned_tile<5, P>(w, x, x_stride, to);
        case 6: return turned_tile<6, P>(w, x, x_stride, to);
        case 7: return turned_tile<7, P>(w, x, x_stride, to);
        default: return turned_tile<TURNED_ROWS, P>(w, x, x_stride, to);
    }
}

// Inputs `first` to `first + 2 pairs` of `count` outputs, for `vectors` vectors; where there are none, zeros and, of outputs, the
// last one again.
inline void turn(const Matvec& m, int64_t output, int64_t count, int vectors, int64_t first, int64_t pairs, __m512i* to) {
    const auto* weight = static_cast<const uint16_t*>(m.weight);
    for (int p = 0; p < vectors; ++p) {
        for (int64_t k = 0; k < pairs; k += TURNED_LANES) {
            const int64_t left = 2 * (pairs - k);
            const __mmask32 there = left < 32 ? (__mmask32(1) << left) - 1 : ~__mmask32(0);
            __m512i words[TURNED_LANES];
#pragma GCC unroll 16
            for (int lane = 0; lane < TURNED_LANES; ++lane) {
                const int64_t o = p * TURNED_LANES + lane;
                const uint16_t* from = weight + (output + (o < count ? o : count - 1)) * m.weight_stride + first + 2 * k;
                words[lane] = _mm512_maskz_loadu_epi16(there, from);
            }
            transpose(words);
            const int64_t here = pairs - k < TURNED_LANES ? pairs - k : TURNED_LANES;
            for (int64_t i = 0; i < here; ++i) _mm512_store_si512(to + (k + i) * vectors + p, words[i]);
        }
    }
}

// Bytes of memory that a thread needs for so many rows.
inline size_t turned_memory(int64_t rows, int64_t = 0) {
    return size_t(TURNED_INPUTS * MATMUL_OUTPUTS) * sizeof(uint16_t) + size_t(rows * MATMUL_OUTPUTS) * sizeof(float);
}

// Outputs `begin` to `end`; the number of inputs is even.
inline void turned_range(const Matvec& m, int64_t begin, int64_t end, void* memory) {
    auto* words = static_cast<__m512i*>(memory);
    auto* sums = reinterpret_cast<float*>(static_cast<char*>(memory) + turned_memory(0));
    const int64_t runs = (m.inputs + TURNED_INPUTS - 1) / TURNED_INPUTS;
    const int64_t inputs = round_up((m.inputs + runs - 1) / runs, 2 * TURNED_LANES);  // of a run: the same for every batch
    for (; begin < end; begin += MATMUL_OUTPUTS) {
        const int64_t count = end - begin < MATMUL_OUTPUTS ? end - begin : MATMUL_OUTPUTS;
        const int vectors = int((count + TURNED_LANES - 1) / TURNED_LANES);
        float bias[MATMUL_OUTPUTS] = {};
        for (int64_t i = 0; m.bias && i < count; ++i) bias[i] = bf16_to_float(static_cast<const Loose16*>(m.bias)[begin + i]);
        Target to{sums, nullptr, m.outputs, bias, {}};
        for (int p = 0; p < vectors; ++p) {
            const int64_t left = count - p * TURNED_LANES;
            to.lanes[p] = left < TURNED_LANES ? __mmask16((1 << left) - 1) : __mmask16(0xffff);
        }
        for (int64_t first = 0; first < m.inputs; first += inputs) {
            const int64_t pairs = (m.inputs - first < inputs ? m.inputs - first : inputs) / 2;
            turn(m, begin, count, vectors, first, pairs, words);
            const Turned w{words, first, pairs, first == 0, first + 2 * pairs == m.inputs};
            for (int64_t row = 0; row < m.rows; row += TURNED_ROWS) {
                const auto* x = static_cast<const uint16_t*>(m.x) + row * m.x_stride;
                to.sums = sums + row * MATMUL_OUTPUTS;
                to.out = static_cast<uint16_t*>(m.out) + row * m.outputs + begin;
                if (vectors == 3) turned_rows<3>(m.rows - row, w, x, m.x_stride, to);
                else if (vectors == 2) turned_rows<2>(m.rows - row, w, x, m.x_stride, to);
                else turned_rows<1>(m.rows - row, w, x, m.x_stride, to);
            }
        }
    }
}

constexpr Matmul by_turning{MATMUL_OUTPUTS, 96, [](int64_t) -> size_t { return 0; }, nullptr, turned_memory, turned_range};

}  // namespace
}  // namespace quintet
