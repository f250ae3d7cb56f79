// Between the products, level "avx2".
#include "inner_f16c.h"

namespace quintet {
namespace {

struct Lanes {
    using vec = __m256;
    static constexpr int width = 8, rows = 6, columns = 2;  // 12 sums in 16 registers
    static vec set1(float value) { return _mm256_set1_ps(value); }
    static vec load(const float* from) { return _mm256_loadu_ps(from); }
    static void store(float* to, vec value) { _mm256_storeu_ps(to, value); }
    static vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
    static vec largest(vec a, vec b) { return _mm256_max_ps(a, b); }  // b where one is no number
    // `width` rows of words, of which `count` are given, as columns
    static void turn(const uint32_t* rows, int64_t stride, int64_t count, uint32_t* to, int64_t to_stride) {
        for (int64_t i = 0; i < count && i < width; ++i)
            for (int64_t row = 0; row < width; ++row) to[i * to_stride + row] = rows[row * stride + i];
    }
    // p times 2 to the whole number in the last bits of `moved`; 0 where y, which is that, is below -126
    static vec scaled(vec p, vec moved, vec y) {
        const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(moved), 23));
        return _mm256_and_ps(_mm256_castsi256_ps(bits), _mm256_cmp_ps(y, _mm256_set1_ps(-126.0f), _CMP_NLT_UQ));
    }
};

}  // namespace
}  // namespace quintet

#include "attention_body.h"

QUINTET_INNER(avx2)
