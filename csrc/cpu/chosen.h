// Which way packed weights are multiplied in (AVX-512): by what the activations are to be.
#pragma once

#include "digits.h"
#include "entries.h"
#include "matmul.h"
#include "tiles.h"
#include "whole.h"

namespace quintet {
namespace {

// One digit for activations that are rounded, and float32 keeps all of its bits. The rest is, where there are tiles, multiplied in whole
// numbers; or in tiles of bfloat16, which are faster for many rows, when somebody asks: these do not know numbers below 2^-126.
// Without tiles bfloat16 has products of its own, and two digits are for what remains.
template <class V, bool tiles>
struct Chosen {
    using All = Entries<V>;
    using One = Entries<V, InDigits<V, 1>>;
    using Two = Entries<V, InDigits<V, 2>>;
    using Own = Entries<V, InBfloat16<V>>;
    using Exact = Entries<V, InWhole<V>>;
    using Tiled = Entries<V, InTiles>;
    static size_t most(size_t a, size_t b) { return a > b ? a : b; }
    // whatever the format
#define QUINTET_MOST(name, what)                                                                      \
    static size_t name(int type, int activations, int64_t inputs) {                                   \
        if (activations == ROUNDED) return InDigits<V, 1>::what(inputs);                              \
        if (type == FP32) return InFloat<V>::what(inputs);                                            \
        if constexpr (tiles) return most(InWhole<V>::what(inputs), InTiles::what(inputs));            \
        else return most(InDigits<V, 2>::what(inputs), InBfloat16<V>::what(inputs));                  \
    }
    QUINTET_MOST(packed_bytes, bytes)
    QUINTET_MOST(packed_memory, memory)
#undef QUINTET_MOST
    static bool own(const Integers& m) { return m.type == BF16 && InBfloat16<V>::takes(m); }
    static bool own(const Packed& m) { return m.type == BF16; }
    static bool own(const Experts& m) { return m.type == BF16; }
#define QUINTET_CHOOSE(name, Args)                                                                    \
    template <class... More>                                                                          \
    static void name(const Args& m, More... more) {                                                   \
        if (m.activations == ROUNDED) return One::name(m, more...);                                   \
        if (m.type == FP32) return All::name(m, more...);                                             \
        if constexpr (tiles) {                                                                        \
            if (m.type == BF16 && m.activations == IN_TILES) Tiled::name(m, more...);                 \
            else Exact::name(m, more...);                                                             \
        } else {                                                                                      \
            if (own(m)) Own::name(m, more...);                                                        \
            else Two::name(m, more...);                                                               \
        }                                                                                             \
    }
    QUINTET_CHOOSE(packed_prepare, Packed)
    QUINTET_CHOOSE(packed, Packed)
    QUINTET_CHOOSE(integers_prepare, Integers)
    QUINTET_CHOOSE(integers, Integers)
    QUINTET_CHOOSE(experts_prepare, Experts)
    QUINTET_CHOOSE(experts_inner, Experts)
    QUINTET_CHOOSE(experts_between, Experts)
    QUINTET_CHOOSE(experts_outer, Experts)
#undef QUINTET_CHOOSE
    static constexpr Level level(const char* name) {
        return {name,
                All::matvec_bytes, All::matvec_prepare, All::matvec_memory, All::matvec, tiles ? &by_tiles : &by_turning, tiles,
                packed_bytes, packed_memory, packed_prepare, packed, integers_prepare, integers,
                experts_prepare, experts_inner, experts_between, experts_outer};
    }
};

}  // namespace
}  // namespace quintet
