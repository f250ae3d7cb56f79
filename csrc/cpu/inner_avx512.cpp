// Between the products, levels "avx512" and "amx": the same, but for rows of attention in bfloat16, which are multiplied in tiles.
#include "amx.h"
#include "inner_f16c.h"
#include "transpose.h"

namespace quintet {
namespace {

struct Lanes {
    using vec = __m512;
    static constexpr int width = 16, rows = 12, columns = 2;  // 24 sums in 32 registers
    static vec set1(float value) { return _mm512_set1_ps(value); }
    static vec load(const float* from) { return _mm512_loadu_ps(from); }
    static void store(float* to, vec value) { _mm512_storeu_ps(to, value); }
    static vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
    static vec largest(vec a, vec b) { return _mm512_max_ps(a, b); }  // b where one is no number
    // p times 2 to the whole number in the last bits of `moved`; 0 where y, which is that, is below -126
    static vec scaled(vec p, vec moved, vec y) {
        const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(moved), 23));
        return _mm512_castsi512_ps(_mm512_maskz_mov_epi32(_mm512_cmp_ps_mask(y, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), bits));
    }
    // `width` rows of words, of which `count` are given, as columns
    static void turn(const uint32_t* rows, int64_t stride, int64_t count, uint32_t* to, int64_t to_stride) {
        const __mmask16 given = __mmask16((1u << (count < 16 ? count : 16)) - 1);
        __m512i words[16];
        for (int i = 0; i < 16; ++i) words[i] = _mm512_maskz_loadu_epi32(given, rows + i * stride);
        transpose(words);
        for (int i = 0; i < 16 && i < count; ++i) _mm512_storeu_si512(to + i * to_stride, words[i]);
    }
};

}  // namespace
}  // namespace quintet

#include "attention_body.h"

QUINTET_INNER(avx512)
QUINTET_INNER_WITH(amx, attention_rows_tiled)
