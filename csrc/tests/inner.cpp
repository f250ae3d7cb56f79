// The parts of a block between its products, level by level, and threads that are held together.
#include <atomic>
#include <vector>

#include "../cpu/blocks.h"
#include "../cpu/threads.h"
#include "exact.h"

using namespace quintet;

namespace {

struct Checks {
    const Inner& inner;
    Random random;
    int64_t failures = 0;

    void near(const char* what, int type, double got, double wanted, double loss, double sizes) {
        const Sum exact{wanted, sizes};
        if (std::fabs(got - wanted) <= bound(type, exact, loss) || ++failures > 20) return;
        std::printf("%s, type %d: %.9g, not %.9g\n", what, type, got, wanted);
    }

    void every_number() {
        for (int type : {BF16, FP16}) {
            Buffer bits(65536 * 2, false), wide(65536 * 4, false), back(65536 * 2, false);
            for (int i = 0; i < 65536; ++i) {
                const uint16_t number = uint16_t(i);
                std::memcpy(bits.data() + 2 * i, &number, 2);
            }
            inner.widen(type, bits.data(), floats(wide), 65536);
            inner.narrow(type, floats(wide), back.data(), 65536);
            for (int i = 0; i < 65536; ++i) {
                const double wanted = bits.get(type, i), once = wide.get(FP32, i), twice = back.get(type, i);
                if (std::isnan(wanted) ? !(std::isnan(once) && std::isnan(twice)) : !(once == wanted && twice == wanted))
                    near("a number changed", type, once, wanted, 0, 0);
            }
        }
    }

    void rounding(int64_t count) {
        Buffer x(size_t(count) * 4, false), out(size_t(count) * 2, random.one_in(2)), same(size_t(count) * 2, false);
        for (int64_t i = 0; i < count; ++i) {
            uint32_t bits = uint32_t(random.next());
            if (random.one_in(4)) bits = (bits & 0xffff8000u) | (random.one_in(2) ? 0x1000 : 0);  // halfway between two of 16 bits
            if (random.one_in(2)) bits = (bits & 0x807fffffu) | uint32_t(random.between(100, 145)) << 23;
            std::memcpy(x.data() + 4 * i, &bits, 4);
        }
        for (int type : {BF16, FP16}) {
            inner.narrow(type, floats(x), out.data(), count);
            portable_inner.narrow(type, floats(x), same.data(), count);
            for (int64_t i = 0; i < count; ++i)
                if (!(out.get(type, i) == same.get(type, i)) && !(std::isnan(out.get(type, i)) && std::isnan(same.get(type, i))))
                    near("rounded", type, out.get(type, i), same.get(type, i), 0, 0);
        }
    }

    static float* floats(const Buffer& buffer) { return reinterpret_cast<float*>(buffer.data()); }

    void norms(int type, int64_t rows, int64_t size) {
        const int weights = int(random.below(3));
        Buffer x(size_t(rows * size) * 4, false), weight(size_t(size) * number_bytes(weights), random.one_in(3));
        Buffer bias(weight.size(), random.one_in(3)), out(size_t(rows * size) * number_bytes(type), random.one_in(3));
        x.numbers(FP32, random), weight.numbers(weights, random), bias.numbers(weights, random);
        for (int kind : {0, 1}) {
            const Norm norm{kind, weights, weight.data(), random.one_in(2) ? bias.data() : nullptr, 1e-5};
            inner.norm(norm, floats(x), rows, size, type, out.data());
            for (int64_t r = 0; r < rows; ++r) {
                double mean = 0, square = 0;
                for (int64_t i = 0; i < size && !kind; ++i) mean += x.get(FP32, r * size + i) / double(size);
                for (int64_t i = 0; i < size; ++i) square += std::pow(x.get(FP32, r * size + i) - mean, 2) / double(size);
                for (int64_t i = 0; i < size; ++i) {
                    const double part = (x.get(FP32, r * size + i) - mean) / std::sqrt(square + norm.eps) * weight.get(weights, i);
                    const double added = norm.bias ? bias.get(weights, i) : 0;
                    near("norm", type, out.get(type, r * size + i), part + added, 1e-4, std::fabs(part) + std::fabs(added) + 1);
                }
            }
        }
    }

    static double activated(int activation, double x) {
        if (activation == RELU) return x > 0 ? x : 0;
        if (activation == SILU) return x / (1 + std::exp(-x));
        if (activation == GELU) return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
        return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979) * (x + 0.044715 * x * x * x)));
    }

    void activations(int type, int64_t count) {
        Buffer gate(size_t(count) * number_bytes(type), random.one_in(3)), up(gate.size(), random.one_in(3)), out(gate.size(), random.one_in(3));
        gate.numbers(type, random), up.numbers(type, random);
        for (int activation : {RELU, SILU, GELU, GELU_TANH}) {
            const bool gated = random.one_in(2);
            inner.activate(activation, type, gate.data(), gated ? up.data() : nullptr, out.data(), count);
            for (int64_t i = 0; i < count; ++i) {
                const double wanted = activated(activation, gate.get(type, i)) * (gated ? up.get(type, i) : 1);
                near("activate", type, out.get(type, i), wanted, type == FP32 ? 1e-6 : type == BF16 ? 0x1p-8 : 0x1p-11, 2 * std::fabs(wanted) + 0.3);
            }
        }
    }

    void softmax(int64_t count) {
        Buffer x(size_t(count) * 4, false), given(x.size(), false);
        given.numbers(FP32, random);
        std::memcpy(x.data(), given.data(), x.size());
        inner.softmax(floats(x), count);
        double total = 0;
        for (int64_t i = 0; i < count; ++i) total += std::exp(given.get(FP32, i));
        for (int64_t i = 0; i < count; ++i) near("softmax", FP32, x.get(FP32, i), std::exp(given.get(FP32, i)) / total, 1e-6, 1);
    }

    void rotation(int type, int64_t half) {
        Buffer x(size_t(half) * 8, false), given(x.size(), false), cosines(size_t(half) * 2 * number_bytes(type), random.one_in(2));
        Buffer sines(cosines.size(), random.one_in(2));
        given.numbers(FP32, random), cosines.numbers(type, random), sines.numbers(type, random);
        std::memcpy(x.data(), given.data(), x.size());
        inner.rotate(type, cosines.data(), sines.data(), 2 * half, floats(x));
        for (int64_t i = 0; i < 2 * half; ++i) {
            const double other = given.get(FP32, i < half ? i + half : i - half) * sines.get(type, i);
            near("rotate", FP32, x.get(FP32, i), given.get(FP32, i) * cosines.get(type, i) + (i < half ? -other : other), 1e-6, 8);
        }
    }

    void columns(int64_t rows, int64_t inputs, int64_t outputs) {
        Linear m{};
        m.kind = 3, m.inputs = inputs, m.outputs = outputs, m.stride = outputs + random.below(3);
        Buffer weight(size_t((inputs - 1) * m.stride + outputs) * 4, false), bias(size_t(outputs) * 4, false), x(size_t(rows * inputs) * 4, false);
        Buffer partial(size_t(PIECES * rows * outputs) * 4, false), out(size_t(rows * outputs) * 4, false);
        weight.numbers(FP32, random), bias.numbers(FP32, random), x.numbers(FP32, random);
        m.weight = weight.data(), m.bias = random.one_in(2) ? bias.data() : nullptr;
        const int64_t cut = random.between(0, PIECES), middle = random.between(0, outputs);
        inner.columns(m, rows, floats(x), floats(partial), cut, PIECES);
        inner.columns(m, rows, floats(x), floats(partial), 0, cut);
        inner.columns_sum(m, rows, floats(partial), floats(out), 0, middle);
        inner.columns_sum(m, rows, floats(partial), floats(out), middle, outputs);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t o = 0; o < outputs; ++o) {
                Sum exact;
                for (int64_t i = 0; i < inputs; ++i) exact.add(x.get(FP32, r * inputs + i) * weight.get(FP32, i * m.stride + o));
                if (m.bias) exact.add(bias.get(FP32, o));
                near("columns", FP32, out.get(FP32, r * outputs + o), exact.value, 2e-6, exact.sizes);
            }
    }

    // Number `index` of a head of `head` numbers that begins at byte `at`.
    static double eighth(const Buffer& stored, int64_t at, int64_t head, int64_t index) {
        uint16_t bits;
        std::memcpy(&bits, stored.data() + at + head + 2 * (index / EIGHT_GROUP), 2);
        const uint32_t wide = uint32_t(bits) << 16;
        float scale;
        std::memcpy(&scale, &wide, 4);
        return double(scale) * int8_t(stored.bytes()[at + index]);
    }

    // As the portable level to the bit, and off by half a scale at most; not a number stays none.
    void eight(int64_t count) {
        Buffer x(size_t(count) * 4, false), out(size_t(eight_bits(count)), random.one_in(2)), same(out.size(), false);
        x.numbers(FP32, random);
        const float factor = random.one_in(3) ? 1e-30f : random.one_in(2) ? 1e20f : 0.3f;
        for (int64_t i = 0; i < count; ++i) floats(x)[i] *= random.one_in(9) ? 0 : factor;
        const bool none = random.one_in(6);
        if (none) floats(x)[count / 2] = random.one_in(2) ? NAN : INFINITY;
        inner.encode(floats(x), count, out.data());
        portable_inner.encode(floats(x), count, same.data());
        if (std::memcmp(out.data(), same.data(), out.size())) near("encoded otherwise than by the portable level", FP32, 1, 0, 0, 0);
        for (int64_t i = 0; i < count; ++i) {
            const double got = eighth(out, 0, count, i);
            if (none && i / EIGHT_GROUP == count / 2 / EIGHT_GROUP) {
                if (!std::isnan(got)) near("encoded what is no number", FP32, got, 0, 0, 0);
            } else if (std::fabs(got - floats(x)[i]) > 2 * double(factor) * 0.505 / 127) {
                near("encoded", FP32, got, floats(x)[i], 0, 0);
            }
        }
    }

    void attention(int type) {
        const bool eight = random.one_in(3);
        Block m{};
        m.stored = eight ? EIGHT_BITS : type;
        m.groups = random.between(1, 3), m.heads = m.groups * random.between(1, 3), m.head = random.between(1, 40), m.scale = 0.25;
        if (random.one_in(2)) m.head = 16 * random.between(1, 8);  // sizes that have loops of their own
        const int64_t texts = random.between(1, 3), tokens = random.between(1, 3), size = int64_t(number_bytes(type));
        m.place = random.between(0, 40), m.window = random.one_in(2) ? random.between(1, 12) : 0;
        const int64_t places = m.place + tokens;
        const int64_t stored = eight ? eight_bits(m.head) : m.head, stored_bytes = eight ? 1 : size;
        m.key_strides[2] = stored + random.below(3), m.key_strides[1] = places * m.key_strides[2], m.key_strides[0] = m.groups * m.key_strides[1];
        m.value_strides[1] = stored, m.value_strides[2] = m.groups * stored, m.value_strides[0] = places * m.value_strides[2];
        auto room = [&](const int64_t* s) { return size_t((texts - 1) * s[0] + (m.groups - 1) * s[1] + (places - 1) * s[2] + stored) * size_t(stored_bytes); };
        Buffer keys(room(m.key_strides), random.one_in(2)), values(room(m.value_strides), random.one_in(2));
        Buffer queries(size_t(texts * tokens * m.heads * m.head) * 4, false), out(size_t(texts * tokens * m.heads * m.head * size), random.one_in(2));
        Buffer padding(size_t(texts * places), false), sinks(size_t(m.heads) * number_bytes(type), random.one_in(2));
        if (!eight) keys.numbers(type, random), values.numbers(type, random);
        auto scale_heads = [&](Buffer& buffer, const int64_t* s) {
            for (int64_t i = 0; eight && i < texts * m.groups * places; ++i) {
                char* head = buffer.data() + i / places / m.groups * s[0] + i / places % m.groups * s[1] + i % places * s[2];
                for (int64_t group = 0; group < stored - m.head; group += 2) {
                    const uint16_t bits = uint16_t(random.between(0x3c00, 0x3c80));  // about 1/128 to 1/64
                    std::memcpy(head + m.head + group, &bits, 2);
                }
                for (int64_t k = 0; k < m.head; ++k) head[k] = char(random.between(-127, 127));
            }
        };
        scale_heads(keys, m.key_strides), scale_heads(values, m.value_strides);
        auto number = [&](const Buffer& buffer, int64_t at, int64_t index) {
            return eight ? eighth(buffer, at, m.head, index) : buffer.get(type, at + index);
        };
        queries.numbers(FP32, random), sinks.numbers(type, random);
        for (size_t i = 0; i < padding.size(); ++i) padding.data()[i] = !random.one_in(3);
        m.keys = keys.data(), m.values = values.data(), m.sinks_type = type;
        if (random.one_in(2)) m.sinks = sinks.data();
        if (random.one_in(2)) m.padding = padding.bytes(), m.padding_stride = places, m.padding_length = places;
        const Attend call{type, &m, tokens, floats(queries), out.data()};
        inner.attend(call, 0, texts * tokens * m.groups);
        for (int64_t row = 0; row < texts * tokens; ++row)
            for (int64_t head = 0; head < m.heads; ++head) {
                const int64_t text = row / tokens, group = head / (m.heads / m.groups), end = m.place + row % tokens + 1;
                const int64_t begin = m.window && end > m.window ? end - m.window : 0, at = (row * m.heads + head) * m.head;
                std::vector<double> scores(static_cast<size_t>(end), -HUGE_VAL);
                bool seen = false;
                for (int64_t j = begin; j < end; ++j) seen |= !m.padding || m.padding[text * places + j];
                for (int64_t j = begin; j < end; ++j) {
                    if (seen ? m.padding && !m.padding[text * places + j] : j != end - 1) continue;
                    double score = 0;
                    for (int64_t i = 0; i < m.head; ++i)
                        score += queries.get(FP32, at + i) * number(keys, text * m.key_strides[0] + group * m.key_strides[1] + j * m.key_strides[2], i);
                    scores[size_t(j)] = score * m.scale;
                }
                double total = m.sinks ? std::exp(sinks.get(type, head)) : 0;
                for (double score : scores) total += std::exp(score);
                for (int64_t i = 0; i < m.head; ++i) {
                    Sum exact;
                    for (int64_t j = begin; j < end; ++j)
                        exact.add(std::exp(scores[size_t(j)]) / total * number(values, text * m.value_strides[0] + group * m.value_strides[1] + j * m.value_strides[2], i));
                    near("attend", type, out.get(type, at + i), exact.value, 1e-4, exact.sizes);
                }
            }
    }
};

// Many small jobs for threads that are held together: every number is counted once, whoever does it.
struct Counting {
    static constexpr int64_t total = 40000;
    std::vector<int64_t> numbers = std::vector<int64_t>(total);
    int64_t jobs = 0;
};

void count_all(const void* data, int64_t, int64_t) {
    auto& counting = *const_cast<Counting*>(static_cast<const Counting*>(data));
    for (int64_t job = 0; job < counting.jobs; ++job)
        share([](const void* part, int64_t begin, int64_t end) {
                  auto& numbers = const_cast<Counting*>(static_cast<const Counting*>(part))->numbers;
                  for (int64_t i = begin; i < end; ++i) ++numbers[size_t(i)];
              }, data, job % 7 ? Counting::total : 17, job % 7 ? 64 : 40000, 4, job % 3 ? 4 : 1);
}

}  // namespace

int64_t check_inner(const char* level, uint64_t seed, int64_t cases) {
    Checks checks{*inner_of(level), Random{seed * 0x9e3779b97f4a7c15ull + 7}};
    if (seed % 1000 == 0) checks.every_number();
    for (int64_t i = 0; i < cases; ++i) {
        const int type = int(checks.random.below(3));
        checks.rounding(checks.random.between(1, 300));
        checks.norms(type, checks.random.between(1, 3), checks.random.between(1, 70));
        checks.activations(type, checks.random.between(1, checks.random.one_in(4) ? 600 : 40));
        checks.softmax(checks.random.between(1, 40));
        checks.rotation(type, checks.random.between(1, 40));
        checks.columns(checks.random.between(1, 8), checks.random.between(1, 70), checks.random.between(1, checks.random.one_in(8) ? 600 : 30));
        checks.attention(type);
        checks.eight(checks.random.between(1, 130));
    }
    Counting counting;
    counting.jobs = 7 * (1 + cases / 4);
    together_do(count_all, &counting, 4);
    for (int64_t i = 0; i < Counting::total; ++i) {
        const int64_t wanted = counting.jobs / 7 * (i < 17 ? 7 : 6);
        if (counting.numbers[size_t(i)] != wanted) checks.near("counted by threads together", FP32, double(counting.numbers[size_t(i)]), double(wanted), 0, 0);
    }
    return checks.failures;
}
