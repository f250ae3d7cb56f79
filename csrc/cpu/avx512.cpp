// Level "avx512": AVX-512 (F, BW, VL, DQ) with BF16 and VNNI. Products of bfloat16 by its dot instructions, those with
// packed weights in whole numbers, the rest in float32.
#include <immintrin.h>

#include "digits.h"

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
    static void sum4(const vec* a, float* to) {
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
    // 2^(s - 127) is s in the place of the exponent; 0 and 255 need a bit more.
    static void powers(const uint8_t* from, int64_t count, float* to) {
        for (int64_t i = 0; i < count; i += 16) {
            const __mmask16 here = count - i < 16 ? __mmask16((1 << (count - i)) - 1) : __mmask16(0xffff);
            const __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(here, from + i));
            const __mmask16 ends = _mm512_cmpeq_epi32_mask(code, _mm512_setzero_si512()) |
                                   _mm512_cmpeq_epi32_mask(code, _mm512_set1_epi32(255));
            const __m512i power = _mm512_slli_epi32(code, 23);
            _mm512_mask_storeu_epi32(to + i, here, _mm512_mask_or_epi32(power, ends, power, _mm512_set1_epi32(0x400000)));
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
    static void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }

    struct Dot;
    struct BytesDot;
    template <int T, bool = true>
    struct Ways { using way = Widened<Avx512, T>; };
    template <bool unused>
    struct Ways<BF16, unused> { using way = Dot; };
    template <int T>
    using Way = typename Ways<T>::way;
};

inline __m512bh load_bf16(const uint16_t* from) { return (__m512bh)_mm512_loadu_si512(from); }

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
    static void prepare(const void* from, int64_t begin, int64_t count, X* to) { Dot::prepare(from, begin, count, to); }
};

}  // namespace

const Level avx512_level = WithDigits<Avx512>::level("avx512");

}  // namespace quintet
