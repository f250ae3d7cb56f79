// Between the products, level "portable".
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace quintet {
namespace {


inline float from_fp16(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    uint32_t wide;
    if (exponent == 0) {  // zero, or a number below the normal ones
        const float value = float(mantissa) * (1.0f / 16777216.0f);
        std::memcpy(&wide, &value, 4);
    } else {
        wide = (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
    }
    wide |= sign;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline uint16_t to_fp16(float value) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x477ff000) return sign | 0x7c00;  // 65520 and above
    if (bits < 0x38800000) {                       // below the normal ones: adding 0.5 puts the bits in place
        float small;
        std::memcpy(&small, &bits, 4);
        small += 0.5f;
        std::memcpy(&bits, &small, 4);
        return sign | uint16_t(bits - 0x3f000000);
    }
    return sign | uint16_t((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
}

inline void widen_fp16(const Loose16* from, float* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = from_fp16(from[i]);
}

inline void narrow_fp16(const float* from, Loose16* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = to_fp16(from[i]);
}

// Four numbers as one: most CPUs have such vectors.
struct Lanes {
    typedef float vec __attribute__((vector_size(16)));
    typedef int32_t whole __attribute__((vector_size(16)));
    static constexpr int width = 4, rows = 6, columns = 2;
    static vec set1(float value) { return vec{value, value, value, value}; }
    static vec load(const float* from) {
        vec value;
        std::memcpy(&value, from, sizeof value);
        return value;
    }
    static void store(float* to, vec value) { std::memcpy(to, &value, sizeof value); }
    static vec fma(vec a, vec b, vec c) { return a * b + c; }
    static vec largest(vec a, vec b) {  // b where one is no number
        const whole more = a > b;
        return vec((whole(a) & more) | (whole(b) & ~more));
    }
    // `width` rows of words, of which `count` are given, as columns
    static void turn(const uint32_t* rows, int64_t stride, int64_t count, uint32_t* to, int64_t to_stride) {
        for (int64_t i = 0; i < count && i < width; ++i)
            for (int64_t row = 0; row < width; ++row) to[i * to_stride + row] = rows[row * stride + i];
    }
    // p times 2 to the whole number in the last bits of `moved`; 0 where y, which is that, is below -126
    static vec scaled(vec p, vec moved, vec y) {
        typedef uint32_t bits __attribute__((vector_size(16)));
        const whole below = y < set1(-126.0f);
        return vec(whole(bits(p) + (bits(moved) << 23)) & ~below);
    }
};

}  // namespace
}  // namespace quintet

#include "attention_body.h"

QUINTET_INNER(portable)
