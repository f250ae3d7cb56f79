// Between the products, level "neon". Its loops are the compiler's vectors; half precision is converted by the CPU.
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace quintet {
namespace {


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

struct Lanes {
    using vec = float32x4_t;
    static constexpr int width = 4, rows = 6, columns = 4;  // 24 sums in 32 registers
    static vec set1(float value) { return vdupq_n_f32(value); }
    // by bytes, which may start anywhere
    static vec load(const float* from) { return vreinterpretq_f32_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(from))); }
    static void store(float* to, vec value) { vst1q_u8(reinterpret_cast<uint8_t*>(to), vreinterpretq_u8_f32(value)); }
    static vec fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
    static vec largest(vec a, vec b) { return vmaxq_f32(a, b); }
    // `width` rows of words, of which `count` are given, as columns
    static void turn(const uint32_t* rows, int64_t stride, int64_t count, uint32_t* to, int64_t to_stride) {
        for (int64_t i = 0; i < count && i < width; ++i)
            for (int64_t row = 0; row < width; ++row) to[i * to_stride + row] = rows[row * stride + i];
    }
    // p times 2 to the whole number in the last bits of `moved`; 0 where y, which is that, is below -126
    static vec scaled(vec p, vec moved, vec y) {
        const uint32x4_t bits = vaddq_u32(vreinterpretq_u32_f32(p), vshlq_n_u32(vreinterpretq_u32_f32(moved), 23));
        return vreinterpretq_f32_u32(vbicq_u32(bits, vcltq_f32(y, vdupq_n_f32(-126.0f))));
    }
};

}  // namespace
}  // namespace quintet

#include "attention_body.h"

QUINTET_INNER(neon)
