// Level "avx512": AVX-512 (F, BW, VL, DQ) with BF16. Products of bfloat16 by its dot instructions, the rest in float32.
#include <immintrin.h>

#include "entries.h"

namespace quintet {
namespace {

struct Avx512 {
    static constexpr int width = 16;
    static constexpr int sums = 16;
    using vec = __m512;

    static vec zero() { return _mm512_setzero_ps(); }
    static vec set1(float value) { return _mm512_set1_ps(value); }
    static vec loadf(const float* from) { return _mm512_loadu_ps(from); }
    static void storef(float* to, vec value) { _mm512_storeu_ps(to, value); }
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
    static void bytes(const uint8_t* from, vec* to) {
        for (int v = 0; v < 2; ++v)
            to[v] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * v))));
    }
    static void nibbles(const uint8_t* from, vec zero, vec* to) {
        const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        to[0] = _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_and_si512(codes, _mm512_set1_epi32(15))), zero);
        to[1] = _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(codes, 4)), zero);
    }
    static void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }

    struct Dot;
    struct PackedDot;
    struct BytesDot;
    template <bool Zeros>
    struct NibblesDot;
    template <int T, bool = true>
    struct Ways {
        using way = Widened<Avx512, T>;
        using packed = PackedWidened<Avx512, T>;
        using bytes = BytesWidened<Avx512>;
        template <bool Zeros>
        using nibbles = NibblesWidened<Avx512, Zeros>;
    };
    template <bool unused>
    struct Ways<BF16, unused> {
        using way = Dot;
        using packed = PackedDot;
        using bytes = BytesDot;
        template <bool Zeros>
        using nibbles = NibblesDot<Zeros>;
    };
    template <int T>
    using Way = typename Ways<T>::way;
    template <int T>
    using PackedWay = typename Ways<T>::packed;
    template <int T>
    using Bytes = typename Ways<T>::bytes;
    template <int T, bool Zeros>
    using Nibbles = typename Ways<T>::template nibbles<Zeros>;
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

// Numbers of 8 bits are exact in bfloat16, which has as many.
struct Avx512::BytesDot {
    using X = uint16_t;
    using Acc = __m512;
    using Zero = float;
    static constexpr int bits = 8;
    static constexpr bool zeros = false;
    static constexpr int64_t blocks = 1;
    struct Loaded { __m512bh value; __m512 scale; };
    static Loaded load(const uint8_t* w) {
        vec value[2];
        bytes(w, value);
        return {_mm512_cvtne2ps_pbh(value[1], value[0]), _mm512_setzero_ps()};
    }
    static Loaded load(const uint8_t* w, const float* scale, const Zero*, int64_t) {
        return {load(w).value, _mm512_set1_ps(*scale)};
    }
    static Acc add(const Loaded& w, const X* x, Acc acc) { return _mm512_dpbf16_ps(acc, w.value, load_bf16(x)); }
    static Acc add_scaled(const Loaded& w, const X* x, Acc acc) {
        return _mm512_fmadd_ps(_mm512_dpbf16_ps(_mm512_setzero_ps(), w.value, load_bf16(x)), w.scale, acc);
    }
    template <class From>
    static void prepare(From from, int64_t count, X* to) {
        for (int64_t i = 0; i < round_up(count, BLOCK); ++i) to[i] = i < count ? float_to_bf16(from(i)) : 0;
    }
};

// Two blocks at a time. code - zero is looked up: at the place code + 16 - zero of a table of the numbers from -16 to 15.
template <bool Zeros>
struct Avx512::NibblesDot {
    using X = uint16_t;
    using Acc = __m512;
    using Zero = uint16_t;
    static constexpr int bits = 4;
    static constexpr bool zeros = Zeros;
    static constexpr int64_t blocks = 2;
    struct Loaded { __m512bh even, odd; __m512 scale; };
    static Zero zero_of(uint32_t code) { return Zero(16 - code); }
    static Loaded load(const uint8_t* w, const float* scale, const Zero* zero, int64_t left) {
        const __m512i table = _mm512_loadu_si512(NUMBERS);
        const bool both = left > 1;
        const __m256i packed = both ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w))
                                    : _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
        __m512 scales = _mm512_set1_ps(scale[0]);
        if (both) scales = _mm512_mask_broadcastss_ps(scales, 0xff00, _mm_load_ss(scale + 1));
        __m512i low = _mm512_cvtepu8_epi16(packed), high = _mm512_srli_epi16(low, 4);
        if (Zeros) {
            __m512i shift = _mm512_set1_epi16(short(zero[0]));
            if (both) shift = _mm512_mask_set1_epi16(shift, 0xffff0000u, short(zero[1]));
            low = _mm512_add_epi16(_mm512_and_si512(low, _mm512_set1_epi16(15)), shift);
            high = _mm512_add_epi16(high, shift);
        }
        return {(__m512bh)_mm512_permutexvar_epi16(low, table), (__m512bh)_mm512_permutexvar_epi16(high, table), scales};
    }
    static Acc add_scaled(const Loaded& w, const X* x, Acc acc) {
        const __m512 part = _mm512_dpbf16_ps(_mm512_setzero_ps(), w.even, load_bf16(x));
        return _mm512_fmadd_ps(_mm512_dpbf16_ps(part, w.odd, load_bf16(x + 32)), w.scale, acc);
    }
    template <class From>
    static void prepare(From from, int64_t count, X* to) { PackedDot::prepare(from, count / BLOCK, to); }

    struct Table {
        uint16_t value[32];
        constexpr Table() : value() {
            for (int i = 0; i < 32; ++i) {  // without zeros the codes from -8, twice, as the fifth bit must not count
                const int number = Zeros ? i - 16 : i % 16 - 8;
                int size = number < 0 ? -number : number, exponent = 127;
                if (!size) continue;
                for (size *= 128; size >= 256; size /= 2) ++exponent;
                value[i] = uint16_t((number < 0 ? 0x8000 : 0) | exponent << 7 | (size & 127));
            }
        }
    };
    static constexpr Table NUMBERS_TABLE{};
    static constexpr const uint16_t* NUMBERS = NUMBERS_TABLE.value;
};

}  // namespace

const Level avx512_level = Entries<Avx512>::level("avx512");

}  // namespace quintet
