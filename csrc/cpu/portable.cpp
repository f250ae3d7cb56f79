// Level "portable": plain C++ for any CPU; compilers make vectors of 4 or 8 of it.
#include "entries.h"

namespace quintet {
namespace {

struct Portable {
    static constexpr int width = 8;
    static constexpr int sums = 8;
    struct vec { float lane[width]; };

    static vec zero() { return vec{}; }
    static vec set1(float value) {
        vec made;
        for (float& lane : made.lane) lane = value;
        return made;
    }
    static vec loadf(const float* from) {
        vec made;
        std::memcpy(made.lane, from, sizeof made.lane);
        return made;
    }
    static void storef(float* to, vec value) { std::memcpy(to, value.lane, sizeof value.lane); }
    static vec mul(vec a, vec b) {
        for (int i = 0; i < width; ++i) a.lane[i] *= b.lane[i];
        return a;
    }
    static vec fma(vec a, vec b, vec c) {
        for (int i = 0; i < width; ++i) c.lane[i] += a.lane[i] * b.lane[i];
        return c;
    }
    static float sum(vec a) {
        return ((a.lane[0] + a.lane[4]) + (a.lane[2] + a.lane[6])) + ((a.lane[1] + a.lane[5]) + (a.lane[3] + a.lane[7]));
    }
    QUINTET_INLINED static void sum4(const vec* a, float* to) {
        for (int i = 0; i < 4; ++i) to[i] = sum(a[i]);
    }
    static float half_to_float(uint16_t bits) {
        const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, mantissa = bits & 1023;
        uint32_t wide;
        if (exponent == 0) {  // zero, or a number below the normal ones
            float value = float(mantissa) * (1.0f / 16777216.0f);
            std::memcpy(&wide, &value, 4);
        } else {
            wide = (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
        }
        wide |= sign;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
    static uint16_t float_to_half(float value) {  // to nearest, ties to even
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
    template <int T>
    static vec load(const typename Element<T>::type* from) {
        vec made;
        for (int i = 0; i < width; ++i) made.lane[i] = widen<Portable, T>(from, i);
        return made;
    }
    static void powers(const uint8_t* from, int64_t count, float* to) {
        for (int64_t i = 0; i < count; ++i) to[i] = scale_table.value[from[i]];
    }
    static void unpack(const uint8_t* bytes, vec* to) {
        for (int i = 0; i < int(GROUP_BYTES); ++i) {
            to[i / width].lane[i % width] = CODES[bytes[i] & 15];
            to[2 + i / width].lane[i % width] = CODES[bytes[i] >> 4];
        }
    }
    static void bytes(const uint8_t* from, vec* to) {
        for (int i = 0; i < 32; ++i) to[i / width].lane[i % width] = float(int8_t(from[i]));
    }
    static void nibbles(const uint8_t* from, vec zero, vec* to) {
        for (int i = 0; i < 16; ++i) {
            to[i / width].lane[i % width] = float(from[i] & 15) - zero.lane[0];
            to[2 + i / width].lane[i % width] = float(from[i] >> 4) - zero.lane[0];
        }
    }
    template <int T>
    using Way = Widened<Portable, T>;
};

}  // namespace

const Level portable_level = Entries<Portable>::level("portable");

}  // namespace quintet
