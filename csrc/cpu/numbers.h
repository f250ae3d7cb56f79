// What levels have in common below their vectors: bfloat16, the exponential, asking for memory in advance.
//
// Everything is in an unnamed namespace: the linker must not take one level's code for another's.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// Where nothing is optimized, as under sanitizers, nothing is copied to where it is called: it would take minutes and gigabytes.
#if defined(__OPTIMIZE__)
#define QUINTET_INLINED __attribute__((always_inline))
#else
#define QUINTET_INLINED
#endif

namespace quintet {
namespace {

inline float bf16_to_float(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline uint16_t float_to_bf16(float value) {  // to nearest, ties to even; NaN stays one
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t rounded = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    return (bits & 0x7fffffffu) > 0x7f800000u ? uint16_t((bits >> 16) | 0x40) : rounded;
}

// a * b + c, rounded once where the instructions do.
inline float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// e^x to 2 in the last place: x = n ln 2 + r, the series of e^r to its seventh term, and n into the exponent.
inline float exponential(float x) {
    x = x > -87.0f ? x : -87.0f;
    x = x < 88.0f ? x : 88.0f;
    const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // to the nearest whole number
    float r = fused(n, -0.693359375f, x);
    r = fused(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fused(p, r, 1.3981999507e-3f);
    p = fused(p, r, 8.3334519073e-3f);
    p = fused(p, r, 4.1665795894e-2f);
    p = fused(p, r, 1.6666665459e-1f);
    p = fused(p, r, 5.0000001201e-1f);
    p = fused(p, r * r, r) + 1.0f;
    const int32_t power = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, 4);
    return p * scale;
}

// f(0), f(1), ..., f(N - 1), with numbers that the compiler knows. Where an array is to be in registers nothing may be a loop
// over it that the compiler might leave one: it would keep the array in memory, and write it there again and again.
template <class F, int... i>
QUINTET_INLINED inline void each_of(F f, std::integer_sequence<int, i...>) {
    (f(std::integral_constant<int, i>()), ...);
}
template <int N, class F>
QUINTET_INLINED inline void each(F f) { each_of(f, std::make_integer_sequence<int, N>()); }

// Asks for the line of memory at an address, which need not be anybody's. GCC takes calls of functions away that do nothing
// but `__builtin_prefetch`, as if they had no effect; of assembler it does not know.
QUINTET_INLINED inline void ask_for(const void* address) {
#if defined(__x86_64__)
    __asm__ volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(address)));
#elif defined(__aarch64__)
    __asm__ volatile("prfm pldl1keep, %a0" : : "p"(address));
#else
    __builtin_prefetch(address);
#endif
}

// The same, into the second cache.
QUINTET_INLINED inline void ask_for_later(const void* address) {
#if defined(__x86_64__)
    __asm__ volatile("prefetcht1 %0" : : "m"(*static_cast<const char*>(address)));
#else
    __builtin_prefetch(address, 0, 2);
#endif
}

inline void ask_for_all(const void* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) ask_for(static_cast<const char*>(from) + i);
}

}  // namespace
}  // namespace quintet
