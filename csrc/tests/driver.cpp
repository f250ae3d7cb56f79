// Calls the functions of the library as Python does, with random sizes, strides and starts and with buffers of exactly the
// size that they are said to have, and compares what they give with sums in double precision.
//
//     driver LEVEL SEED CASES THREADS
//
// CASES of each operation, on THREADS threads of the program at once, each of which asks for several threads of the pool.
#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "../cpu/quintet.h"
#include "exact.h"

int64_t check_inner(const char* level, uint64_t seed, int64_t cases);  // in inner.cpp: how many are wrong
int64_t check_attention(uint64_t seed, int64_t cases);                 // in attention.cpp

namespace {

constexpr int64_t ROWS = 20;  // more than those that weights are unpacked again for
const char* const TYPES[] = {"float32", "bfloat16", "float16"};

std::atomic<int64_t> failures{0};
std::mutex speaking;

void fail(const char* what, const char* why, int type, int64_t rows, int64_t inputs, int64_t outputs, double got, double wanted) {
    if (failures.fetch_add(1) >= 20) return;
    const std::lock_guard<std::mutex> lock(speaking);
    std::printf("%s: %s (%s, %lld rows, %lld inputs, %lld outputs): %.9g, not %.9g\n", what, why, TYPES[type], (long long)rows,
                (long long)inputs, (long long)outputs, got, wanted);
}

// Rows, sizes and where x lies: what all products share. `large` ones are worth several threads.
struct Product {
    Random& random;
    int type, activations = 0;
    int64_t rows, inputs, outputs, x_stride;
    bool biased;

    Product(Random& random, int64_t step, bool large) : random(random) {
        type = int(random.below(3));
        rows = random.one_in(3) ? 1 : random.between(1, random.one_in(2) ? 8 : ROWS);
        inputs = step * (large ? random.between(200 / step + 1, 600 / step + 1) : random.between(1, random.one_in(8) ? 600 / step + 1 : 80 / step + 1));
        outputs = large ? random.between(900, 1500) : random.between(random.one_in(20) ? 0 : 1, 40);
        x_stride = inputs + (random.one_in(2) ? 0 : random.below(5));
        if (random.one_in(10)) x_stride = 0;
        biased = random.one_in(2);
    }
    size_t x_bytes() const { return size_t((rows - 1) * x_stride + inputs) * number_bytes(type); }

    // `call(rows, x, bias, out, threads)` is the function, and `weight(output, input)` says what it should have read.
    template <class Call, class Weight>
    void check(const char* name, Call call, Weight weight) {
        Buffer x(x_bytes(), random.one_in(4)), bias(biased ? size_t(outputs) * number_bytes(type) : 0, random.one_in(4));
        Buffer out(size_t(rows * outputs) * number_bytes(type), false);
        x.numbers(type, random), bias.numbers(type, random);
        const char* given = biased ? bias.data() : nullptr;
        const int64_t threads = random.one_in(3) ? 1 : random.one_in(5) ? 1000 : random.between(0, 5);
        if (const int code = call(rows, x.data(), given, out.data(), threads)) return fail(name, "refused", type, rows, inputs, outputs, code, 0);
        std::vector<double> given_as;  // what x is multiplied as
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t i = 0; i < inputs; ++i) {
                auto get = [&](int64_t at) { return x.get(type, r * x_stride + at); };
                given_as.push_back(activations == quintet::ROUNDED ? in_8_bits(get, inputs, i) : get(i));
            }
        for (int64_t o = 0; o < outputs; ++o)
            for (int64_t r = 0; r < rows; ++r) {
                Sum exact;
                for (int64_t i = 0; i < inputs; ++i) exact.add(weight(o, i) * given_as[size_t(r * inputs + i)]);
                if (biased) exact.add(bias.get(type, o));
                const double got = out.get(type, r * outputs + o);
                if (!(std::fabs(got - exact.value) <= bound(type, exact, 2e-6)))
                    return fail(name, "wrong", type, rows, inputs, outputs, got, exact.value);
            }
        const int64_t row = random.below(rows);
        Buffer alone(size_t(outputs) * number_bytes(type), false);
        const char* from = x.data() + row * x_stride * int64_t(number_bytes(type));
        if (call(1, from, given, alone.data(), 1) || std::memcmp(alone.data(), out.data() + size_t(row) * alone.size(), alone.size()))
            fail(name, "a row depends on its batch", type, rows, inputs, outputs, double(row), 0);
    }
};

void check_plain(Random& random, bool large, const char* name, decltype(&quintet_matvec) product) {
    Product p(random, 1, large);
    int64_t stride = p.inputs + (random.one_in(2) ? 0 : random.below(9));
    if (random.one_in(20)) stride = 0;
    Buffer w(p.outputs ? size_t((p.outputs - 1) * stride + p.inputs) * number_bytes(p.type) : 0, random.one_in(4));
    w.numbers(p.type, random);
    p.check(name,
            [&](int64_t rows, const void* x, const void* bias, void* out, int64_t threads) {
                return product(p.type, rows, p.inputs, p.outputs, w.data(), stride, x, p.x_stride, bias, out, threads);
            },
            [&](int64_t o, int64_t i) { return w.get(p.type, o * stride + i); });
}

// Numbers in MXFP4, of (outputs, groups).
struct Mxfp4 {
    int64_t groups;
    Buffer blocks, scales;
    Mxfp4(Random& random, int64_t outputs, int64_t groups, int least, int most)
        : groups(groups), blocks(size_t(outputs * groups * 16), random.one_in(4)), scales(size_t(outputs * groups), random.one_in(4)) {
        blocks.fill(random), scales.fill(random, uint8_t(least), uint8_t(most));
    }
    double get(int64_t output, int64_t input) const {
        static const double values[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
        const int64_t group = output * groups + input / 32;
        const int byte = blocks.bytes()[group * 16 + input % 32 / 2], code = input % 2 ? byte >> 4 : byte & 15;
        const double size = std::ldexp(values[code & 7], scales.bytes()[group] - 127);
        return code & 8 ? -size : size;
    }
};

void check_mxfp4(Random& random, bool large) {
    Product p(random, 32, large);
    p.activations = int(random.below(3));
    Mxfp4 w(random, p.outputs, p.inputs / 32, 120, 130);
    p.check("mxfp4_matvec",
            [&](int64_t rows, const void* x, const void* bias, void* out, int64_t threads) {
                return quintet_mxfp4_matvec(p.type, p.activations, rows, w.groups, p.outputs, w.blocks.bytes(), w.scales.bytes(), x, p.x_stride, bias, out, threads);
            },
            [&](int64_t o, int64_t i) { return w.get(o, i); });
}

void check_integers(Random& random, bool large) {
    const int bits = random.one_in(2) ? 8 : 4, scale_type = int(random.below(3));
    const bool channel = random.one_in(3), zeros = bits == 4 && random.one_in(2);
    Product p(random, bits == 8 && channel ? 1 : 32, large);
    p.activations = int(random.below(3));
    int64_t group = p.inputs;
    if (!channel) {
        group = 32 * random.between(1, p.inputs / 32);
        p.inputs = p.inputs / group * group;
        if (p.x_stride) p.x_stride = p.inputs + random.below(3);
    }
    const int64_t groups = p.inputs / group, words = (p.outputs + 7) / 8 * groups;
    Buffer w(size_t(p.outputs * p.inputs * bits / 8), random.one_in(4)), scales(size_t(p.outputs * groups) * number_bytes(scale_type), random.one_in(4));
    Buffer points(zeros ? size_t(words) * 4 : 0, random.one_in(4));
    w.fill(random), scales.numbers(scale_type, random), points.fill(random);
    p.check(bits == 8 ? "int8_linear" : "int4_linear",
            [&](int64_t rows, const void* x, const void* bias, void* out, int64_t threads) {
                return quintet_integers(bits, p.type, scale_type, p.activations, rows, p.inputs, p.outputs, group, w.bytes(), scales.data(),
                                        zeros ? points.bytes() : nullptr, x, p.x_stride, bias, out, threads);
            },
            [&](int64_t o, int64_t i) {
                const double scale = scales.get(scale_type, o * groups + i / group);
                const int64_t at = o * p.inputs + i;
                if (bits == 8) return scale * int8_t(w.bytes()[at]);
                int zero = 8;
                if (zeros) zero = points.bytes()[(o / 8 * groups + i / group) * 4 + o % 8 / 2] >> o % 2 * 4 & 15;
                return scale * ((w.bytes()[at / 2] >> at % 2 * 4 & 15) - zero);
            });
}

// The best of products against all of them, which the functions above have been checked for.
void check_head(Random& random, bool large) {
    const int bits = random.one_in(2) ? 0 : random.one_in(2) ? 8 : 4, scale_type = int(random.below(3));
    const bool zeros = bits == 4 && random.one_in(2);
    Product p(random, bits ? 32 : 1, large);
    p.rows = 1 + p.rows % 8, p.outputs += 1 + (random.one_in(8) ? 600 : 0);
    const int64_t stride = p.inputs + (random.one_in(2) ? 0 : random.below(9)), groups = bits && random.one_in(2) ? p.inputs / 32 : 1;
    const size_t number = number_bytes(p.type);
    Buffer w(bits ? size_t(p.outputs * p.inputs * bits / 8) : size_t((p.outputs - 1) * stride + p.inputs) * number, random.one_in(4));
    Buffer scales(bits ? size_t(p.outputs * groups) * number_bytes(scale_type) : 0, random.one_in(4));
    Buffer points(zeros ? size_t((p.outputs + 7) / 8 * groups) * 4 : 0, random.one_in(4));
    Buffer x(p.x_bytes(), random.one_in(4)), bias(p.biased ? size_t(p.outputs) * number : 0, random.one_in(4));
    x.numbers(p.type, random), bias.numbers(p.type, random), scales.numbers(scale_type, random), points.fill(random);
    if (bits) w.fill(random);
    else w.numbers(p.type, random);
    const char* added = p.biased ? bias.data() : nullptr;
    const uint8_t* zero = zeros ? points.bytes() : nullptr;
    const int64_t wanted = random.one_in(3) ? 1 : random.between(1, p.outputs < 1024 ? p.outputs : 1024), threads = random.between(0, 5);
    Buffer all(size_t(p.rows * p.outputs) * number, false), values(size_t(p.rows * wanted) * 4, false), indices(size_t(p.rows * wanted) * 8, false);
    Buffer sums(size_t(p.rows) * 4, false);
    const bool summed = random.one_in(2);
    int code = bits ? quintet_integers(bits, p.type, scale_type, 0, p.rows, p.inputs, p.outputs, p.inputs / groups, w.bytes(), scales.data(), zero,
                                       x.data(), p.x_stride, added, all.data(), 1)
                    : quintet_matvec(p.type, p.rows, p.inputs, p.outputs, w.data(), stride, x.data(), p.x_stride, added, all.data(), 1);
    if (!code)
        code = quintet_head_topk(bits, p.type, scale_type, p.rows, p.inputs, p.outputs, p.inputs / groups, w.data(), stride, scales.data(), zero,
                                 x.data(), p.x_stride, added, wanted, reinterpret_cast<float*>(values.data()),
                                 reinterpret_cast<int64_t*>(indices.data()), summed ? reinterpret_cast<float*>(sums.data()) : nullptr, threads);
    if (code) return fail("head_topk", "refused", p.type, p.rows, p.inputs, p.outputs, code, 0);
    for (int64_t r = 0; r < p.rows; ++r) {
        std::vector<int64_t> order;
        double most = -HUGE_VAL, sum = 0;
        for (int64_t o = 0; o < p.outputs; ++o) order.push_back(o), most = std::max(most, all.get(p.type, r * p.outputs + o));
        for (int64_t o = 0; o < p.outputs; ++o) sum += std::exp(all.get(p.type, r * p.outputs + o) - most);
        std::stable_sort(order.begin(), order.end(), [&](int64_t one, int64_t other) {
            return all.get(p.type, r * p.outputs + one) > all.get(p.type, r * p.outputs + other);
        });
        for (int64_t i = 0; i < wanted; ++i) {
            int64_t index;
            std::memcpy(&index, indices.data() + (r * wanted + i) * 8, 8);
            const double got = values.get(FP32, r * wanted + i), exact = all.get(p.type, r * p.outputs + order[size_t(i)]);
            if (index != order[size_t(i)] || got != exact) return fail("head_topk", "wrong", p.type, p.rows, p.inputs, p.outputs, got, exact);
        }
        const double total = most + std::log(sum);
        if (summed && !(std::fabs(sums.get(FP32, r) - total) <= 1e-5 + 1e-6 * std::fabs(total)))
            return fail("head_topk", "log sum", p.type, p.rows, p.inputs, p.outputs, sums.get(FP32, r), total);
    }
}

// What an expert makes of a row: gate and up in turn, clamped SwiGLU, down.
struct Expert {
    const Mxfp4 &into, &down;
    const Buffer &into_bias, &down_bias;
    int type, activations;
    int64_t hidden, inner;
    float alpha, limit;
    void add(int64_t expert, double weight, const Buffer& x, int64_t row, Sum* to) const {
        std::vector<double> said, values;
        for (int64_t i = 0; i < hidden; ++i) {
            auto get = [&](int64_t at) { return x.get(type, row * hidden + at); };
            said.push_back(activations == quintet::ROUNDED ? in_8_bits(get, hidden, i) : get(i));
        }
        for (int64_t f = 0; f < inner; ++f) {
            double both[2];
            for (int64_t side = 0; side < 2; ++side) {
                const int64_t at = expert * 2 * inner + 2 * f + side;
                both[side] = into_bias.get(type, at);
                for (int64_t i = 0; i < hidden; ++i) both[side] += into.get(at, i) * said[size_t(i)];
                both[side] = both[side] > limit ? limit : side && both[side] < -limit ? -limit : both[side];
            }
            values.push_back((both[1] + 1) * both[0] / (1 + std::exp(-alpha * both[0])));
        }
        for (int64_t d = 0; d < hidden; ++d) {
            const int64_t at = expert * hidden + d;
            for (int64_t f = 0; f < inner; ++f) to[d].add(weight * down.get(at, f) * values[size_t(f)]);
            to[d].add(weight * down_bias.get(type, at));
        }
    }
};

void check_experts(Random& random, bool large) {
    const int type = int(random.below(3)), activations = int(random.below(3));
    const int64_t rows = random.one_in(2) ? 1 : random.between(1, random.one_in(2) ? 4 : ROWS), experts = random.between(1, 5);
    const int64_t chosen = random.between(0, 3), hidden = 32 * random.between(1, large ? 12 : 3), inner = 32 * random.between(1, large ? 12 : 4);
    Mxfp4 into(random, experts * 2 * inner, hidden / 32, 116, 122), down(random, experts * hidden, inner / 32, 116, 122);
    Buffer into_bias(size_t(experts * 2 * inner) * number_bytes(type), random.one_in(4)), down_bias(size_t(experts * hidden) * number_bytes(type), false);
    Buffer x(size_t(rows * hidden) * number_bytes(type), random.one_in(4)), out(x.size(), false);
    into_bias.numbers(type, random), down_bias.numbers(type, random), x.numbers(type, random);
    Buffer indices(size_t(rows * chosen) * 8, false), weights(size_t(rows * chosen) * 4, false);
    weights.numbers(FP32, random);
    std::vector<int64_t> who;
    for (int64_t i = 0; i < rows * chosen; ++i) who.push_back(random.below(experts));
    if (chosen) std::memcpy(indices.data(), who.data(), indices.size());
    const Expert expert{into, down, into_bias, down_bias, type, activations, hidden, inner, 1.5f, 3};
    const int64_t threads = random.between(0, 5);
    auto call = [&](int64_t count, int64_t row, char* to) {
        return quintet_mxfp4_experts(type, activations, count, experts, chosen, hidden, inner, into.blocks.bytes(), into.scales.bytes(), into_bias.data(),
                                     down.blocks.bytes(), down.scales.bytes(), down_bias.data(),
                                     reinterpret_cast<const int64_t*>(indices.data()) + row * chosen,
                                     reinterpret_cast<const float*>(weights.data()) + row * chosen,
                                     x.data() + size_t(row * hidden) * number_bytes(type), to, expert.alpha, expert.limit, threads);
    };
    if (const int code = call(rows, 0, out.data())) return fail("mxfp4_experts", "refused", type, rows, hidden, inner, code, 0);
    for (int64_t row = 0; row < rows; ++row) {
        std::vector<Sum> exact(static_cast<size_t>(hidden));
        for (int64_t c = 0; c < chosen; ++c)
            expert.add(who[size_t(row * chosen + c)], weights.get(FP32, row * chosen + c), x, row, exact.data());
        for (int64_t d = 0; d < hidden; ++d) {
            const double got = out.get(type, row * hidden + d), wanted = exact[size_t(d)].value;
            // values between both are rounded to 8 bits, to bfloat16, or to 16 bits by a power of two
            const double loss = activations == quintet::ROUNDED ? 0x1p-6 : type == BF16 ? 0x1p-8 : 1e-4;
            if (!(std::fabs(got - wanted) <= bound(type, exact[size_t(d)], loss)))
                return fail("mxfp4_experts", "wrong", type, rows, hidden, inner, got, wanted);
        }
    }
    const int64_t row = random.below(rows);
    Buffer alone(size_t(hidden) * number_bytes(type), false);
    if (call(1, row, alone.data()) || std::memcmp(alone.data(), out.data() + size_t(row) * alone.size(), alone.size()))
        fail("mxfp4_experts", "a row depends on its batch", type, rows, hidden, inner, double(row), 0);
}

// Every number of 16 bits times 1: widening and rounding to the bit. Those below the normal ones may be taken for zero where
// bfloat16 is multiplied by the CPU.
void check_every_number() {
    for (int type : {BF16, FP16}) {
        const int64_t count = 65536;
        Buffer w(size_t(count) * 2, false), one(2, true), out(size_t(count) * 2, false);
        for (int64_t i = 0; i < count; ++i) {
            const uint16_t bits = uint16_t(i);
            std::memcpy(w.data() + 2 * i, &bits, 2);
        }
        one.put(type, 0, 1);
        if (const int code = quintet_matvec(type, 1, 1, count, w.data(), 1, one.data(), 1, nullptr, out.data(), 1))
            return fail("matvec", "refused", type, 1, 1, count, code, 0);
        for (int64_t i = 0; i < count; ++i) {
            const double wanted = w.get(type, i), got = out.get(type, i);
            const bool same = wanted == got || (std::isnan(wanted) && std::isnan(got)) || (type == BF16 && std::fabs(wanted) < 0x1p-126 && got == 0);
            if (!same) return fail("matvec", "a number changed", type, 1, 1, i, got, wanted);
        }
    }
}

// One argument at a time is what it must not be; nothing may be read, so there are no buffers.
void check_refusals() {
    const int64_t sizes[] = {-1, int64_t(1) << 40, int64_t(1) << 62, INT64_MIN};
    auto wanted = [](const char* name, int code) {
        if (!code) fail(name, "took arguments out of range", 0, 0, 0, 0, code, 1);
    };
    for (int64_t bad : sizes)
        for (int at = 0; at < 6; ++at) {
            int64_t a[6] = {0, 1, 32, 32, 32, 32};
            a[at] = bad;
            const int type = int(a[0]);
            wanted("matvec", quintet_matvec(type, a[1], a[2], a[3], nullptr, a[4], nullptr, a[4], nullptr, nullptr, 1));
            wanted("matmul", quintet_matmul(at ? int(BF16) : type, a[1], a[2], a[3], nullptr, a[4], nullptr, a[4], nullptr, nullptr, 1));
            wanted("mxfp4_matvec", quintet_mxfp4_matvec(type, 0, a[1], a[2], a[3], nullptr, nullptr, nullptr, a[4], nullptr, nullptr, 1));
            for (int bits : {4, 8})
                wanted("integers", quintet_integers(bits, type, FP32, 0, a[1], a[2], a[3], a[5], nullptr, nullptr, nullptr, nullptr, a[4], nullptr, nullptr, 1));
        }
    for (int type : {-1, 3, 1 << 20}) {
        wanted("matvec", quintet_matvec(type, 1, 1, 1, nullptr, 1, nullptr, 1, nullptr, nullptr, 1));
        wanted("integers", quintet_integers(8, 0, type, 0, 1, 32, 1, 32, nullptr, nullptr, nullptr, nullptr, 32, nullptr, nullptr, 1));
    }
    for (int activations : {-1, 3, 1 << 20}) {
        wanted("mxfp4_matvec", quintet_mxfp4_matvec(0, activations, 1, 1, 1, nullptr, nullptr, nullptr, 32, nullptr, nullptr, 1));
        wanted("integers", quintet_integers(8, 0, 0, activations, 1, 32, 1, 32, nullptr, nullptr, nullptr, nullptr, 32, nullptr, nullptr, 1));
    }
    const uint8_t byte = 0;
    wanted("integers", quintet_integers(3, 0, 0, 0, 1, 32, 1, 32, nullptr, nullptr, nullptr, nullptr, 32, nullptr, nullptr, 1));
    wanted("integers", quintet_integers(8, 0, 0, 0, 1, 32, 1, 32, nullptr, nullptr, &byte, nullptr, 32, nullptr, nullptr, 1));
    for (int64_t group : {0, 3, 16, 24, 33, 64})
        for (int bits : {4, 8}) wanted("integers", quintet_integers(bits, 0, 0, 0, 1, 48, 1, group, nullptr, nullptr, nullptr, nullptr, 48, nullptr, nullptr, 1));
    for (int64_t expert : {int64_t(-1), int64_t(2), INT64_MAX, INT64_MIN})
        wanted("experts", quintet_mxfp4_experts(0, 0, 1, 2, 1, 32, 32, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, &expert, nullptr, nullptr, nullptr, 1, 1, 1));
    for (int64_t bad : sizes)
        for (int at = 1; at < 7; ++at) {
            int64_t a[7] = {0, 1, 32, 32, 32, 32, 1};
            a[at] = bad;
            float sums[32] = {};
            int64_t found[32];
            for (int bits : {0, 4, 8})
                if (at < 4 || at > 5 || (at == 4) == !bits)
                    wanted("head_topk", quintet_head_topk(bits, int(a[0]), 0, a[1], a[2], a[3], a[5], sums, a[4], sums, nullptr, sums, 32, nullptr, a[6], sums, found, nullptr, 1));
        }
    // null where there must be something
    float numbers[32] = {};
    wanted("matvec", quintet_matvec(0, 1, 32, 1, nullptr, 32, numbers, 32, nullptr, numbers, 1));
    wanted("matvec", quintet_matvec(0, 1, 32, 1, numbers, 32, nullptr, 32, nullptr, numbers, 1));
    wanted("matvec", quintet_matvec(0, 1, 32, 1, numbers, 32, numbers, 32, nullptr, nullptr, 1));
    wanted("matmul", quintet_matmul(BF16, 1, 32, 1, nullptr, 32, numbers, 32, nullptr, numbers, 1));
    wanted("matmul", quintet_matmul(BF16, 1, 32, 1, numbers, 32, nullptr, 32, nullptr, numbers, 1));
    wanted("matmul", quintet_matmul(BF16, 1, 32, 1, numbers, 32, numbers, 32, nullptr, nullptr, 1));
    const auto* bytes = reinterpret_cast<const uint8_t*>(numbers);
    wanted("mxfp4_matvec", quintet_mxfp4_matvec(0, 0, 1, 1, 1, bytes, nullptr, numbers, 32, nullptr, numbers, 1));
    wanted("mxfp4_matvec", quintet_mxfp4_matvec(0, 0, 1, 1, 1, nullptr, bytes, numbers, 32, nullptr, numbers, 1));
    wanted("integers", quintet_integers(8, 0, 0, 0, 1, 32, 1, 32, bytes, nullptr, nullptr, numbers, 32, nullptr, numbers, 1));
}

void check_all(const char* level, uint64_t seed, int64_t cases) {
    failures += check_inner(level, seed, cases);
    failures += check_attention(seed, cases);
    Random random{seed * 0x9e3779b97f4a7c15ull + 1};
    for (int64_t i = 0; i < cases; ++i) {
        const bool large = i % 40 == 39;
        check_plain(random, large, "matvec", quintet_matvec);
        check_plain(random, large, "matmul", quintet_matmul);
        check_mxfp4(random, large);
        check_integers(random, large);
        check_head(random, large);
        if (i % 4 == 0) check_experts(random, large);
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 5) return std::fprintf(stderr, "usage: driver LEVEL SEED CASES THREADS\n"), 2;
    if (quintet_choose(arguments[1])) return std::fprintf(stderr, "no level %s here\n", arguments[1]), 3;
    const uint64_t seed = std::strtoull(arguments[2], nullptr, 10);
    const int64_t cases = std::strtoll(arguments[3], nullptr, 10), threads = std::strtoll(arguments[4], nullptr, 10);
    check_refusals();
    check_every_number();
    std::vector<std::thread> others;
    for (int64_t t = 1; t < threads; ++t) others.emplace_back(check_all, arguments[1], seed * 1000 + uint64_t(t), cases);
    check_all(arguments[1], seed * 1000, cases);
    for (std::thread& other : others) other.join();
    const char* runtime = *quintet_runtime() ? "with threads" : "without threads";
    if (failures) return std::printf("%s: %lld failures, seed %s\n", arguments[1], (long long)failures.load(), arguments[2]), 1;
    return std::printf("%s: all right, %s\n", arguments[1], runtime), 0;
}
