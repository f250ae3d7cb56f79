// Level "neon": what every 64-bit ARM has; float32 arithmetic. Numbers of 16 bits are widened, bfloat16 by a shift.
#include <arm_neon.h>

#include "entries.h"

namespace quintet {
namespace {

struct Neon {
    static constexpr int width = 8;
    static constexpr int sums = 8;
    struct vec { float32x4_t low, high; };  // two sums side by side: one would wait for itself

    static vec zero() { return set1(0); }
    static vec set1(float value) { return {vdupq_n_f32(value), vdupq_n_f32(value)}; }
    // by bytes, which may start anywhere
    static float32x4_t four(const void* from) { return vreinterpretq_f32_u8(vld1q_u8(static_cast<const uint8_t*>(from))); }
    static vec loadf(const float* from) { return {four(from), four(from + 4)}; }
    static void storef(float* to, vec value) {
        vst1q_f32(to, value.low);
        vst1q_f32(to + 4, value.high);
    }
    static vec mul(vec a, vec b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
    static vec fma(vec a, vec b, vec c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }
    static float sum(vec a) {
        const float32x4_t four = vaddq_f32(a.low, a.high);
        const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
        return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
    }
    QUINTET_INLINED static void sum4(const vec* a, float* to) {
        for (int i = 0; i < 4; ++i) to[i] = sum(a[i]);
    }
    static float half_to_float(uint16_t bits) {
        __fp16 half;
        std::memcpy(&half, &bits, 2);
        return float(half);
    }
    static uint16_t float_to_half(float value) {
        const __fp16 half = __fp16(value);
        uint16_t bits;
        std::memcpy(&bits, &half, 2);
        return bits;
    }
    template <int T>
    static vec load(const typename Element<T>::type* from) {
        if constexpr (T == FP32) {
            return loadf(from);
        } else {
            const uint16x8_t bits = vreinterpretq_u16_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(from)));
            if constexpr (T == FP16) {
                const float16x8_t halves = vreinterpretq_f16_u16(bits);
                return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_f32_f16(vget_high_f16(halves))};
            }
            return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16)),
                    vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(bits), 16))};
        }
    }
    static void powers(const uint8_t* from, int64_t count, float* to) {
        for (int64_t i = 0; i < count; ++i) to[i] = scale_table.value[from[i]];
    }
    // 16 signed bytes as numbers
    static void widen_bytes(int8x16_t bytes, vec* to) {
        const int16x8_t halves[2] = {vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))};
        for (int i = 0; i < 2; ++i)
            to[i] = {vcvtq_f32_s32(vmovl_s16(vget_low_s16(halves[i]))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(halves[i])))};
    }
    // Twice the values are whole numbers, which a table of bytes holds.
    static void unpack(const uint8_t* bytes, vec* to) {
        static const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
        const int8x16_t table = vld1q_s8(doubled);
        const uint8x16_t packed = vld1q_u8(bytes);
        widen_bytes(vqtbl1q_s8(table, vandq_u8(packed, vdupq_n_u8(15))), to);
        widen_bytes(vqtbl1q_s8(table, vshrq_n_u8(packed, 4)), to + 2);
        for (int i = 0; i < 4; ++i) to[i] = mul(to[i], set1(0.5f));
    }
    static void bytes(const uint8_t* from, vec* to) {
        widen_bytes(vreinterpretq_s8_u8(vld1q_u8(from)), to);
        widen_bytes(vreinterpretq_s8_u8(vld1q_u8(from + 16)), to + 2);
    }
    static void nibbles(const uint8_t* from, vec zero, vec* to) {
        const uint8x16_t packed = vld1q_u8(from);
        widen_bytes(vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15))), to);
        widen_bytes(vreinterpretq_s8_u8(vshrq_n_u8(packed, 4)), to + 2);
        for (int i = 0; i < 4; ++i) to[i] = {vsubq_f32(to[i].low, zero.low), vsubq_f32(to[i].high, zero.high)};
    }
    template <int T>
    using Way = Widened<Neon, T>;
};

}  // namespace

const Level neon_level = Entries<Neon>::level("neon");

}  // namespace quintet
