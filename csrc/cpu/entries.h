// What a level offers, made of the products over its vector type: one entry for each type of the numbers.
#pragma once

#include <initializer_list>

#include "body.h"
#include "groups.h"
#include "many.h"

namespace quintet {
namespace {

// `Ways` says how products with packed weights are computed.
template <class V, class Ways = InFloat<V>>
struct Entries {
    template <int T>
    static size_t matvec_bytes_of(int64_t inputs) {
        using Way = typename V::template Way<T>;
        return size_t(row_stride<Way>(inputs)) * sizeof(typename Way::X);
    }
    template <int T>
    static size_t matvec_memory_of(int64_t inputs) { return many_bytes<Channel<typename V::template Way<T>>>(inputs); }
    template <int T>
    static void matvec_prepare_of(const Matvec& m, int64_t begin, int64_t end) {
        using Way = typename V::template Way<T>;
        auto* to = static_cast<typename Way::X*>(m.prepared);
        for (int64_t r = begin; r < end; ++r) Way::prepare(m.x, r * m.x_stride, m.inputs, to + r * row_stride<Way>(m.inputs));
    }
    static size_t matvec_bytes(int type, int64_t n) {
        return type == FP32 ? matvec_bytes_of<FP32>(n) : type == BF16 ? matvec_bytes_of<BF16>(n) : matvec_bytes_of<FP16>(n);
    }
    static size_t matvec_memory(int type, int64_t n) {
        return type == FP32 ? matvec_memory_of<FP32>(n) : type == BF16 ? matvec_memory_of<BF16>(n) : matvec_memory_of<FP16>(n);
    }
    static size_t packed_bytes(int, int, int64_t inputs) { return Ways::bytes(inputs); }
    static size_t packed_memory(int, int, int64_t inputs) { return Ways::memory(inputs); }
    template <int T>
    static void packed_prepare_of(const Packed& m, int64_t begin, int64_t end) {
        Ways::template prepare<T, MX>(m.activations, begin, end, m.x, m.x_stride, m.groups * GROUP, m.prepared);
    }
    template <int T>
    static void integers_prepare_of(const Integers& m, int64_t begin, int64_t end) {
        auto prepare = Ways::template prepare<T, BYTES>;
        if (m.bits == 4) prepare = m.zeros ? Ways::template prepare<T, ZERO> : Ways::template prepare<T, EIGHT>;
        prepare(m.activations, begin, end, m.x, m.x_stride, m.inputs, m.prepared);
    }
    // Strips `begin` to `end`: each expert has some of its own. `x(choice)` is the row of a choice.
    template <int T, class X>
    static void prepare_strips(const Experts& m, int64_t begin, int64_t end, X x, int64_t inputs, void* to) {
        for (int64_t strip = begin, asked = 0; strip < end; ++strip) {
            while (m.strips[asked + 1] <= strip) ++asked;
            const int64_t first = m.starts[asked] + (strip - m.strips[asked]) * STRIP, left = m.starts[asked + 1] - first;
            Ways::template strip<T, MX>([&](int64_t r) { return x(first + r); }, left < STRIP ? left : STRIP, m.starts[asked + 1] - m.starts[asked],
                                        inputs, static_cast<char*>(to) + strip * STRIP * int64_t(Ways::bytes(inputs)));
        }
    }
    template <int T>
    static void experts_prepare_of(const Experts& m, int64_t begin, int64_t end, void*) {
        if constexpr (Ways::strips) {
            const auto* x = static_cast<const typename Element<T>::type*>(m.x);
            prepare_strips<T>(m, begin, end, [&](int64_t choice) { return x + m.rows_of[choice] * m.hidden; }, m.hidden, m.prepared);
        } else {
            Ways::template prepare<T, MX>(m.activations, begin, end, m.x, m.hidden, m.hidden, m.prepared);
        }
    }
    static void experts_between(const Experts& m, int64_t begin, int64_t end, void*) {
        if constexpr (Ways::strips)
            prepare_strips<FP32>(m, begin, end, [&](int64_t choice) { return m.values + choice * m.inner; }, m.inner, m.prepared_values);
        else
            Ways::template prepare<FP32, MX>(m.activations, begin, end, m.values, m.inner, m.inner, m.prepared_values);
    }
    template <int T>
    static void matvec_with(const Matvec& m, int64_t begin, int64_t end, void* memory) { matvec_of<V, T>(m, begin, end, memory); }
    static void packed(const Packed& m, int64_t begin, int64_t end, void* memory) { packed_of<V, Ways>(m, begin, end, memory); }
    static void integers(const Integers& m, int64_t begin, int64_t end, void* memory) { Ways::integers(m, begin, end, memory); }
    template <int T>
    static void experts_inner_with(const Experts& m, int64_t begin, int64_t end, void* memory) {
        experts_inner_of<V, Ways, T>(m, begin, end, memory);
    }
    template <int T>
    static void experts_outer_with(const Experts& m, int64_t begin, int64_t end, void* memory) {
        experts_outer_of<V, Ways, T>(m, begin, end, memory);
    }

#define QUINTET_BY_TYPE(name, with, Args)                    \
    template <class... More>                                 \
    static void name(const Args& m, More... more) {          \
        if (m.type == FP32) with<FP32>(m, more...);          \
        else if (m.type == BF16) with<BF16>(m, more...);     \
        else with<FP16>(m, more...);                         \
    }
    QUINTET_BY_TYPE(matvec_prepare, matvec_prepare_of, Matvec)
    QUINTET_BY_TYPE(packed_prepare, packed_prepare_of, Packed)
    QUINTET_BY_TYPE(integers_prepare, integers_prepare_of, Integers)
    QUINTET_BY_TYPE(matvec, matvec_with, Matvec)
    QUINTET_BY_TYPE(experts_prepare, experts_prepare_of, Experts)
    QUINTET_BY_TYPE(experts_inner, experts_inner_with, Experts)
    QUINTET_BY_TYPE(experts_outer, experts_outer_with, Experts)
#undef QUINTET_BY_TYPE

    static constexpr Level level(const char* name) {
        return {name,
                matvec_bytes, matvec_prepare, matvec_memory, matvec, nullptr, false,
                packed_bytes, packed_memory, packed_prepare, packed, integers_prepare, integers,
                experts_prepare, experts_inner, experts_between, experts_outer};
    }
};

}  // namespace
}  // namespace quintet
