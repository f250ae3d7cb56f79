// Level "avx512": AVX-512 (F, BW, VL, DQ) with BF16 and VNNI. Products of bfloat16 by its dot instructions, those with
// packed weights in whole numbers, the rest in float32. Level "amx": the same, but for many rows of
// bfloat16, which are multiplied in tiles, and few rows of 16 bits with packed weights (whole.h).
#include <immintrin.h>

#include "chosen.h"

namespace quintet {
namespace {

struct Avx512 {
    static constexpr int width = 16;
    static constexpr int sums = 16;
    using vec = __m512;

    static vec zero() { return _mm512_setzero_ps(); }
    static vec set1(float value) { return _mm512_set1_ps(value); }
    static vec loadf(const float* from) { return _mm512_loadu_ps(from); }
    static void storef(float* to, vec value) { _mm512_storeu_ps(to, value); }
    static vec mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
    static vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
    static float sum(vec a) {
        const __m256 high = _mm512_extractf32x8_ps(a, 1), eight = _mm256_add_ps(_mm512_castps512_ps256(a), high);
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    // The same sums, of four at once.
    QUINTET_INLINED static void sum4(const vec* a, float* to) {
        const __m512 first = _mm512_add_ps(_mm512_shuffle_f32x4(a[0], a[1], 0x44), _mm512_shuffle_f32x4(a[0], a[1], 0xee));
        const __m512 second = _mm512_add_ps(_mm512_shuffle_f32x4(a[2], a[3], 0x44), _mm512_shuffle_f32x4(a[2], a[3], 0xee));
        const __m512 four = _mm512_add_ps(_mm512_shuffle_f32x4(first, second, 0x88), _mm512_shuffle_f32x4(first, second, 0xdd));
        const __m512 two = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4e));
        const __m512 one = _mm512_add_ps(two, _mm512_movehdup_ps(two));
        const __m512i ends = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
        _mm_storeu_ps(to, _mm512_castps512_ps128(_mm512_permutexvar_ps(ends, one)));
    }
    static float half_to_float(uint16_t bits) { return _cvtsh_ss(bits); }
    static uint16_t float_to_half(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
    template <int T>
    static vec load(const typename Element<T>::type* from) {
        if constexpr (T == FP32) {
            return _mm512_loadu_ps(from);
        } else {
            const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
            if constexpr (T == FP16) return _mm512_cvtph_ps(bits);
            return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
        }
    }
    static void powers(const uint8_t* from, int64_t count, float* to) {
        for (int64_t i = 0; i < count; i += 16) {
            const __mmask16 here = count - i < 16 ? __mmask16((1 << (count - i)) - 1) : __mmask16(0xffff);
            const __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(here, from + i));
            _mm512_mask_storeu_ps(to + i, here, powers_of(_mm512_slli_epi32(code, 23)));
        }
    }
    static void unpack(const uint8_t* bytes, vec* to) {
        const vec table = _mm512_loadu_ps(CODES);
        const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
        to[0] = _mm512_permutexvar_ps(codes, table);  // looks at the low four bits only
        to[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), table);
    }
    static void bytes(const uint8_t* from, vec* to) {
        for (int v = 0; v < 2; ++v)
            to[v] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * v))));
    }
    static void nibbles(const uint8_t* from, vec zero, vec* to) {
        const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        to[0] = _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_and_si512(codes, _mm512_set1_epi32(15))), zero);
        to[1] = _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(codes, 4)), zero);
    }

    struct Dot;
    struct BytesDot;
    template <Code C>
    struct NibblesDot;
    template <int T, bool = true>
    struct Ways { using way = Widened<Avx512, T>; };
    template <bool unused>
    struct Ways<BF16, unused> { using way = Dot; };
    template <int T>
    using Way = typename Ways<T>::way;
};



struct Avx512::Dot {
    using W = uint16_t;
    using X = uint16_t;
    using Acc = __m512;
    using Loaded = __m512bh;
    using Values = Loaded;
    static constexpr int64_t step = 32, numbers = step;
    static Loaded load(const W* w) { return load_bf16(w); }
    static Loaded load_tail(const W* w, int64_t count) {
        return (__m512bh)_mm512_maskz_loadu_epi16(__mmask32((uint64_t(1) << count) - 1), w);
    }
    static Acc add(Loaded w, const X* x, Acc acc) { return _mm512_dpbf16_ps(acc, w, load_bf16(x)); }
    static void prepare(const void* from, int64_t begin, int64_t count, X* to) {
        std::memcpy(to, static_cast<const uint16_t*>(from) + begin, size_t(count) * 2);
        std::memset(to + count, 0, size_t(round_up(count, step) - count) * 2);
    }
};

// Weights of 8 bits, which bfloat16 holds exactly, with one scale for an output.
struct Avx512::BytesDot {
    using X = uint16_t;
    using Acc = __m512;
    static constexpr int bits = 8;
    static constexpr int64_t numbers = BLOCK;
    using Values = __m512bh;
    static Values load(const uint8_t* w) {
        vec value[2];
        bytes(w, value);
        return _mm512_cvtne2ps_pbh(value[1], value[0]);
    }
    static Acc add(Values w, const X* x, Acc acc) { return _mm512_dpbf16_ps(acc, w, load_bf16(x)); }
    static void prepare_same(const uint16_t* from, int64_t count, X* to) { Dot::prepare(from, 0, count, to); }
    template <class From>
    static void prepare(From from, int64_t count, X* to) {
        for (int64_t i = 0; i < round_up(count, BLOCK); ++i) to[i] = i < count ? float_to_bf16(from(i)) : 0;
    }
};

// What codes of 4 bits mean, in bfloat16, by indices of five bits. MX and EIGHT have their 16 numbers twice, as the fifth
// bit must not count; ZERO has the numbers from -16 to 15, and is looked up at code + 16 - zero.
template <Code C>
struct Numbers {
    uint16_t value[32];
    constexpr Numbers() : value() {
        for (int i = 0; i < 32; ++i) {
            const float number = C == MX ? CODES[i % 16] : C == EIGHT ? float(i % 16 - 8) : float(i - 16);
            float size = number < 0 ? -number : number;
            int exponent = 127;
            for (; size >= 2; size /= 2) ++exponent;
            for (; size > 0 && size < 1; size *= 2) --exponent;
            const bool negative = C == MX ? i % 16 >= 8 : number < 0;  // there are two zeros
            value[i] = uint16_t((negative ? 0x8000 : 0) | (size > 0 ? exponent << 7 | int((size - 1) * 128) : 0));
        }
    }
};
template <Code C>
constexpr Numbers<C> number_table;

// Four blocks at a time: 16 bits have four inputs that follow each other. x is prepared as, for each 128 inputs, every
// fourth from the first on, then every fourth from the second on, and so on.
template <Code C>
struct Avx512::NibblesDot {
    using X = uint16_t;
    using Acc = __m512;
    using Zero = uint16_t;
    static constexpr int bits = 4;
    static constexpr bool zeros = C == ZERO;
    static constexpr int64_t blocks = 4, step = blocks * BLOCK, numbers = step;
    static constexpr int tile_outputs = 2;
    struct Loaded { __m512bh value[4]; __m512 scale; };
    static Zero zero_of(uint32_t code) { return Zero(16 - code); }
    QUINTET_INLINED static Loaded made(__m512i w, __m512 scale, __m512i shift) {
        const __m512i table = _mm512_loadu_si512(number_table<C>.value), mask = _mm512_set1_epi16(15);
        __asm__("" : "+v"(w));  // in a register: GCC would load it again for each shift, and each load waits for memory
        __m512i code[4] = {w, _mm512_srli_epi16(w, 4), _mm512_srli_epi16(w, 8), _mm512_srli_epi16(w, 12)};
        Loaded loaded;
        loaded.scale = scale;
        for (int j = 0; j < 4; ++j) {
            if (zeros) code[j] = _mm512_add_epi16(j < 3 ? _mm512_and_si512(code[j], mask) : code[j], shift);
            loaded.value[j] = (__m512bh)_mm512_permutexvar_epi16(code[j], table);
        }
        return loaded;
    }
    // zero has room for a whole step: what is read beyond its end does not count, as the scale is 0 there
    static Loaded loaded(__m512i w, __m128 scale, const Zero* zero) {
        const __m512i four = lanes_of(4);
        __m512i shift = w;
        if (zeros) {
            const __m512i shifts = _mm512_cvtepu16_epi32(_mm256_castsi128_si256(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zero))));
            shift = _mm512_permutexvar_epi32(four, _mm512_or_si512(shifts, _mm512_slli_epi32(shifts, 16)));
        }
        return made(w, _mm512_permutexvar_ps(four, _mm512_castps128_ps512(scale)), shift);
    }
    static Loaded load(const uint8_t* w, const float* scale, const Zero* zero) {
        return loaded(_mm512_loadu_si512(w), _mm_loadu_ps(scale), zero);
    }
    static Loaded load_tail(const uint8_t* w, const float* scale, const Zero* zero, int64_t left) {
        const __m512i packed = _mm512_maskz_loadu_epi8((uint64_t(1) << 16 * left) - 1, w);
        return loaded(packed, _mm_maskz_loadu_ps(__mmask8((1 << left) - 1), scale), zero);
    }
    template <int O>
    QUINTET_INLINED static void add_scaled(const Loaded* w, const X* x, Acc* acc) {
        __m512 part[O];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const __m512bh value = load_bf16(x + 32 * j);
            for (int o = 0; o < O; ++o) part[o] = _mm512_dpbf16_ps(j ? part[o] : _mm512_setzero_ps(), w[o].value[j], value);
        }
        for (int o = 0; o < O; ++o) acc[o] = _mm512_fmadd_ps(part[o], w[o].scale, acc[o]);
    }
    static void prepare_same(const uint16_t* from, int64_t count, X* to) {
        // of two vectors: every fourth from the first and the second on, and from the third and the fourth on
        alignas(64) uint16_t places[2][32];
        for (int i = 0; i < 32; ++i) {
            places[0][i] = uint16_t(4 * (i % 16) + i / 16);
            places[1][i] = uint16_t(places[0][i] + 2);
        }
        const __m512i first = _mm512_load_si512(places[0]), second = _mm512_load_si512(places[1]);
        for (int64_t begin = 0; begin < count; begin += step, to += step) {
            uint16_t rest[step];
            const uint16_t* at = from + begin;
            if (count - begin < step) {
                std::memset(rest, 0, sizeof rest);
                std::memcpy(rest, at, size_t(count - begin) * 2);
                at = rest;
            }
            const __m512i a = _mm512_loadu_si512(at), b = _mm512_loadu_si512(at + 32);
            const __m512i c = _mm512_loadu_si512(at + 64), d = _mm512_loadu_si512(at + 96);
            const __m512i low = _mm512_permutex2var_epi16(a, first, b), high = _mm512_permutex2var_epi16(c, first, d);
            _mm512_storeu_si512(to, _mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1));
            _mm512_storeu_si512(to + 32, _mm512_shuffle_i64x2(low, high, 0xee));
            const __m512i low2 = _mm512_permutex2var_epi16(a, second, b), high2 = _mm512_permutex2var_epi16(c, second, d);
            _mm512_storeu_si512(to + 64, _mm512_inserti64x4(low2, _mm512_castsi512_si256(high2), 1));
            _mm512_storeu_si512(to + 96, _mm512_shuffle_i64x2(low2, high2, 0xee));
        }
    }
    template <class From>
    static void prepare(From from, int64_t count, X* to) {
        for (int64_t begin = 0; begin < count; begin += step) {
            uint16_t rest[step] = {};
            for (int64_t i = 0; i < step && begin + i < count; ++i) rest[i] = float_to_bf16(from(begin + i));
            prepare_same(rest, step, to + begin);
        }
    }
};

}  // namespace

const Level avx512_level = Chosen<Avx512, false>::level("avx512");
const Level amx_level = Chosen<Avx512, true>::level("amx");

}  // namespace quintet
