// Half precision for levels that have F16C.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace quintet {
namespace {

inline float from_fp16(uint16_t bits) { return _cvtsh_ss(bits); }

inline void widen_fp16(const Loose16* from, float* to, int64_t count) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= count; i += 16)
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i))));
#endif
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
    for (; i < count; ++i) to[i] = _cvtsh_ss(from[i]);
}

inline void narrow_fp16(const float* from, Loose16* to, int64_t count) {
    const int64_t whole = count & ~int64_t(7);
    for (int64_t i = 0; i < whole; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
    for (int64_t i = whole; i < count; ++i) to[i] = _cvtss_sh(from[i], _MM_FROUND_TO_NEAREST_INT);
}

}  // namespace
}  // namespace quintet
