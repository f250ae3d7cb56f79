// Level "avx512": AVX-512 (F, BW, VL, DQ) with BF16. Products of bfloat16 by its dot instructions, the rest in float32.
#include <immintrin.h>

#include "body.h"

namespace quintet {
namespace {

struct Avx512 {
    static constexpr int width = 16;
    static constexpr int sums = 16;
    using vec = __m512;

    static vec zero() { return _mm512_setzero_ps(); }
    static vec set1(float value) { return _mm512_set1_ps(value); }
    static vec loadf(const float* from) { return _mm512_loadu_ps(from); }
    static vec mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
    static vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
    static float sum(vec a) {
        const __m256 high = _mm512_extractf32x8_ps(a, 1), eight = _mm256_add_ps(_mm512_castps512_ps256(a), high);
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
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
    static void unpack(const uint8_t* bytes, vec* to) {
        const vec table = _mm512_loadu_ps(CODES);
        const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
        to[0] = _mm512_permutexvar_ps(codes, table);  // looks at the low four bits only
        to[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), table);
    }
    static void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }

    struct Dot;
    struct PackedDot;
    template <int T, bool = true>
    struct Ways { using way = Widened<Avx512, T>; using packed = PackedWidened<Avx512, T>; };
    template <bool unused>
    struct Ways<BF16, unused> { using way = Dot; using packed = PackedDot; };
    template <int T>
    using Way = typename Ways<T>::way;
    template <int T>
    using PackedWay = typename Ways<T>::packed;
};

inline __m512bh load_bf16(const uint16_t* from) { return (__m512bh)_mm512_loadu_si512(from); }

struct Avx512::Dot {
    using W = uint16_t;
    using X = uint16_t;
    using Acc = __m512;
    using Loaded = __m512bh;
    static constexpr int64_t step = 32;
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

// Two groups at a time. x is prepared as the 32 even numbers of both, then the 32 odd ones.
struct Avx512::PackedDot {
    using X = uint16_t;
    using Acc = __m512;
    static constexpr int64_t groups = 2;
    static constexpr int64_t numbers = 2 * GROUP;
    struct Loaded { __m512bh even, odd; __m512 scale; };
    static Loaded load(const uint8_t* blocks, const uint8_t* scales, int64_t left) {
        // the 16 values twice, as indices are five bits of which the fifth must not count
        const __m512i table = _mm512_broadcast_i64x4(_mm256_setr_epi16(
            0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,
            short(0x8000), short(0xbf00), short(0xbf80), short(0xbfc0), short(0xc000), short(0xc040), short(0xc080), short(0xc0c0)));
        const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks));
        __m256i bytes = _mm256_castsi128_si256(first);
        __m512 scale = _mm512_set1_ps(scale_table.value[scales[0]]);
        if (left > 1) {
            bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(blocks));
            scale = _mm512_mask_broadcastss_ps(scale, 0xff00, _mm_load_ss(&scale_table.value[scales[1]]));
        } else {
            bytes = _mm256_zextsi128_si256(first);
        }
        const __m512i codes = _mm512_cvtepu8_epi16(bytes);
        return {(__m512bh)_mm512_permutexvar_epi16(codes, table),
                (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), table), scale};
    }
    static Acc add(const Loaded& w, const X* x, Acc acc) {
        const __m512 part = _mm512_dpbf16_ps(_mm512_setzero_ps(), w.even, load_bf16(x));
        return _mm512_fmadd_ps(_mm512_dpbf16_ps(part, w.odd, load_bf16(x + 32)), w.scale, acc);
    }
    template <class From>
    static void prepare(From from, int64_t count_groups, X* to) {
        const int64_t count = count_groups * GROUP;
        for (int64_t begin = 0; begin < count; begin += numbers, to += numbers)
            for (int64_t i = 0; i < numbers / 2; ++i) {
                const int64_t at = begin + 2 * i;
                to[i] = at < count ? float_to_bf16(from(at)) : 0;
                to[32 + i] = at < count ? float_to_bf16(from(at + 1)) : 0;
            }
    }
};

}  // namespace

const Level avx512_level = Entries<Avx512>::level("avx512");

}  // namespace quintet
