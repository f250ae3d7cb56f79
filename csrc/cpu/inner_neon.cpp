// Between the products, level "neon". Its loops are the compiler's vectors; half precision is converted by the CPU.
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace quintet {
namespace {

inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

inline float from_fp16(uint16_t bits) {
    __fp16 half;
    std::memcpy(&half, &bits, 2);
    return float(half);
}

inline void widen_fp16(const Loose16* from, float* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = from_fp16(from[i]);
}

inline void narrow_fp16(const float* from, Loose16* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const __fp16 half = __fp16(from[i]);
        uint16_t bits;
        std::memcpy(&bits, &half, 2);
        to[i] = bits;
    }
}

}  // namespace
}  // namespace quintet

#include "inner.h"

QUINTET_INNER(neon)
