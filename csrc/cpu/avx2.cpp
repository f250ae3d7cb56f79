// Level "avx2": AVX2, FMA and F16C; float32 arithmetic.
#include <immintrin.h>

#include "entries.h"

namespace quintet {
namespace {

struct Avx2 {
    static constexpr int width = 8;
    static constexpr int sums = 8;
    using vec = __m256;

    static vec zero() { return _mm256_setzero_ps(); }
    static vec set1(float value) { return _mm256_set1_ps(value); }
    static vec loadf(const float* from) { return _mm256_loadu_ps(from); }
    static void storef(float* to, vec value) { _mm256_storeu_ps(to, value); }
    static vec mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
    static vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
    static float sum(vec a) {
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    QUINTET_INLINED static void sum4(const vec* a, float* to) {
        for (int i = 0; i < 4; ++i) to[i] = sum(a[i]);
    }
    static float half_to_float(uint16_t bits) { return _cvtsh_ss(bits); }
    static uint16_t float_to_half(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
    template <int T>
    static vec load(const typename Element<T>::type* from) {
        if constexpr (T == FP32) {
            return _mm256_loadu_ps(from);
        } else {
            const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
            if constexpr (T == FP16) return _mm256_cvtph_ps(bits);
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
        }
    }
    static void powers(const uint8_t* from, int64_t count, float* to) {
        for (int64_t i = 0; i < count; ++i) to[i] = scale_table.value[from[i]];
    }
    // Twice the values are whole numbers, which a table of bytes holds; x0.5 comes with the conversion.
    static void unpack(const uint8_t* bytes, vec* to) {
        const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
        const __m128i mask = _mm_set1_epi8(15);
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
        const __m128i halves[2] = {_mm_shuffle_epi8(table, _mm_and_si128(packed, mask)),
                                   _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(packed, 4), mask))};
        const vec half = _mm256_set1_ps(0.5f);
        for (int i = 0; i < 2; ++i) {
            to[2 * i] = _mm256_mul_ps(half, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(halves[i])));
            to[2 * i + 1] = _mm256_mul_ps(half, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(halves[i], 8))));
        }
    }
    static void bytes(const uint8_t* from, vec* to) {
        for (int v = 0; v < 4; ++v)
            to[v] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * v))));
    }
    static void nibbles(const uint8_t* from, vec zero, vec* to) {
        const __m128i mask = _mm_set1_epi8(15), packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        const __m128i halves[2] = {_mm_and_si128(packed, mask), _mm_and_si128(_mm_srli_epi16(packed, 4), mask)};
        for (int i = 0; i < 2; ++i) {
            to[2 * i] = _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(halves[i])), zero);
            to[2 * i + 1] = _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(halves[i], 8))), zero);
        }
    }
    template <int T>
    using Way = Widened<Avx2, T>;
};

}  // namespace

const Level avx2_level = Entries<Avx2>::level("avx2");

}  // namespace quintet
