// What a level offers, made of the products over its vector type: one entry for each type of the numbers.
#pragma once

#include <initializer_list>

#include "body.h"
#include "groups.h"
#include "many.h"

namespace quintet {
namespace {

template <class V>
struct Entries {
    template <int T>
    static size_t matvec_bytes_of(int64_t inputs) {
        using Way = typename V::template Way<T>;
        return size_t(row_stride<Way>(inputs)) * sizeof(typename Way::X);
    }
    template <int T>
    static size_t packed_bytes_of(int64_t groups) { return prepared_bytes<typename V::template Nibbles<T, MX>>(groups * GROUP); }
    template <int T>
    static size_t bytes_bytes_of(int64_t inputs) { return prepared_bytes<typename V::template Bytes<T>>(inputs); }
    template <int T>
    static void matvec_prepare_of(const Matvec& m) {
        using Way = typename V::template Way<T>;
        auto* to = static_cast<typename Way::X*>(m.prepared);
        for (int64_t r = 0; r < m.rows; ++r) Way::prepare(m.x, r * m.x_stride, m.inputs, to + r * row_stride<Way>(m.inputs));
    }
    template <int T>
    static void packed_prepare_of(const Packed& m) {
        prepare_rows<V, typename V::template Nibbles<T, MX>, T>(0, m.rows, m.x, m.x_stride, m.groups * GROUP, m.prepared);
    }
    template <int T>
    static void integers_prepare_of(const Integers& m) {
        if (m.bits == 8) prepare_rows<V, typename V::template Bytes<T>, T>(0, m.rows, m.x, m.x_stride, m.inputs, m.prepared);
        else prepare_rows<V, typename V::template Nibbles<T, EIGHT>, T>(0, m.rows, m.x, m.x_stride, m.inputs, m.prepared);
    }
    template <int T>
    static void experts_prepare_of(const Experts& m, int64_t begin, int64_t end) {
        using Way = typename V::template Nibbles<T, MX>;
        prepare_rows<V, Way, T>(begin, end, m.x, m.hidden, m.hidden, m.prepared);
    }
    template <int T>
    static void experts_between_of(const Experts& m, int64_t begin, int64_t end) {
        using Way = typename V::template Nibbles<T, MX>;
        prepare_rows<V, Way, FP32>(begin, end, m.values, m.inner, m.inner, m.prepared_values);
    }
    template <int T>
    static size_t matvec_memory_of(int64_t inputs) { return many_bytes<Channel<typename V::template Way<T>>>(inputs); }
    template <int T>
    static size_t packed_memory_of(int64_t groups) { return many_bytes<typename V::template Nibbles<T, MX>>(groups * GROUP); }
    template <int T>
    static size_t integers_memory_of(int64_t inputs) {  // whatever the format
        size_t most = many_bytes<typename V::template Nibbles<T, ZERO>>(inputs);
        for (size_t bytes : {many_bytes<typename V::template Bytes<T>>(inputs), many_bytes<Channel<typename V::template Bytes<T>>>(inputs)})
            if (bytes > most) most = bytes;
        return most;
    }

#define QUINTET_SIZE(name)                                  \
    static size_t name(int type, int64_t n) {               \
        return type == FP32 ? name##_of<FP32>(n) : type == BF16 ? name##_of<BF16>(n) : name##_of<FP16>(n); \
    }
    QUINTET_SIZE(matvec_bytes)
    QUINTET_SIZE(matvec_memory)
    QUINTET_SIZE(packed_bytes)
    QUINTET_SIZE(packed_memory)
    QUINTET_SIZE(bytes_bytes)
    QUINTET_SIZE(integers_memory)
#undef QUINTET_SIZE
    static size_t integers_bytes(int bits, int type, int64_t inputs) {
        return bits == 8 ? bytes_bytes(type, inputs) : packed_bytes(type, inputs / GROUP);
    }
#define QUINTET_BY_TYPE(name, Args)                        \
    static void name(const Args& m) {                      \
        if (m.type == FP32) name##_of<FP32>(m);            \
        else if (m.type == BF16) name##_of<BF16>(m);       \
        else name##_of<FP16>(m);                           \
    }
    QUINTET_BY_TYPE(matvec_prepare, Matvec)
    QUINTET_BY_TYPE(packed_prepare, Packed)
    QUINTET_BY_TYPE(integers_prepare, Integers)
#undef QUINTET_BY_TYPE
#define QUINTET_BY_TYPE(name, Args)                                               \
    static void name(const Args& m, int64_t begin, int64_t end, void* memory) {   \
        if (m.type == FP32) name##_of<V, FP32>(m, begin, end, memory);            \
        else if (m.type == BF16) name##_of<V, BF16>(m, begin, end, memory);       \
        else name##_of<V, FP16>(m, begin, end, memory);                           \
    }
    QUINTET_BY_TYPE(matvec, Matvec)
    QUINTET_BY_TYPE(packed, Packed)
    QUINTET_BY_TYPE(integers, Integers)
    QUINTET_BY_TYPE(experts_inner, Experts)
    QUINTET_BY_TYPE(experts_outer, Experts)
#undef QUINTET_BY_TYPE
#define QUINTET_BY_TYPE(name)                                                \
    static void name(const Experts& m, int64_t begin, int64_t end, void*) {  \
        if (m.type == FP32) name##_of<FP32>(m, begin, end);                  \
        else if (m.type == BF16) name##_of<BF16>(m, begin, end);             \
        else name##_of<FP16>(m, begin, end);                                 \
    }
    QUINTET_BY_TYPE(experts_prepare)
    QUINTET_BY_TYPE(experts_between)
#undef QUINTET_BY_TYPE

    static constexpr Level level(const char* name) {
        return {name,
                matvec_bytes, matvec_prepare, matvec_memory, matvec,
                packed_bytes, packed_prepare, packed_memory, packed,
                integers_bytes, integers_prepare, integers_memory, integers,
                experts_prepare, experts_inner, experts_between, experts_outer};
    }
};

}  // namespace
}  // namespace quintet
