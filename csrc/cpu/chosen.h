// Which way packed weights are multiplied in (AVX-512): by what the activations are to be.
#pragma once

#include "digits.h"
#include "entries.h"
#include "matmul.h"
#include "tiles.h"

namespace quintet {
namespace {

// One digit for activations of 8 bits; of the others bfloat16 has products of its own, float32 keeps all of its bits, and
// two digits are for the rest. Tiles are the way of bfloat16 where the CPU has them; a single weight in MXFP4
// takes them when somebody asks, as they do not know numbers below 2^-126.
template <class V, bool tiles>
struct Chosen {
    using All = Entries<V>;
    using One = Entries<V, InDigits<V, 1>>;
    using Two = Entries<V, InDigits<V, 2>>;
    using Own = Entries<V, InBfloat16<V>>;
    using Tiled = Entries<V, InTiles>;
    template <class M>
    static bool tiled(const M& m) { return tiles && m.type == BF16 && m.activations != ROUNDED; }
    static bool tiled(const Packed& m) { return tiles && m.type == BF16 && m.activations == IN_TILES; }
    static size_t most(size_t a, size_t b) { return a > b ? a : b; }
    // whatever the format
    static size_t packed_bytes(int type, int activations, int64_t inputs) {
        if (activations == ROUNDED) return InDigits<V, 1>::bytes(inputs);
        if (type == FP32) return InFloat<V>::bytes(inputs);
        const size_t tile = tiles ? InTiles::bytes(inputs) : 0, two = InDigits<V, 2>::bytes(inputs), own = InBfloat16<V>::bytes(inputs);
        return most(tile, most(two, own));
    }
    static size_t packed_memory(int type, int activations, int64_t inputs) {
        if (activations == ROUNDED) return InDigits<V, 1>::memory(inputs);
        if (type == FP32) return InFloat<V>::memory(inputs);
        const size_t tile = tiles ? InTiles::memory(inputs) : 0, two = InDigits<V, 2>::memory(inputs), own = InBfloat16<V>::memory(inputs);
        return most(tile, most(two, own));
    }
    static bool own(const Integers& m) { return m.type == BF16 && InBfloat16<V>::takes(m); }
    static bool own(const Packed& m) { return m.type == BF16; }
    static bool own(const Experts& m) { return m.type == BF16; }
#define QUINTET_CHOOSE(name, Args)                                \
    template <class... More>                                      \
    static void name(const Args& m, More... more) {               \
        if constexpr (tiles)                                      \
            if (tiled(m)) return Tiled::name(m, more...);         \
        if (m.activations == ROUNDED) One::name(m, more...);      \
        else if (m.type == FP32) All::name(m, more...);           \
        else if (own(m)) Own::name(m, more...);                   \
        else Two::name(m, more...);                               \
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
