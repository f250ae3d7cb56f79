// Attention over keys with random strides, starts, windows, padding and sinks, norms of sums, and rotations, beside sums in
// double precision.
#include <algorithm>
#include <vector>

#include "../cpu/attention.h"
#include "../cpu/quintet.h"
#include "exact.h"

using namespace quintet;

namespace {

struct Case {
    Random& random;
    AttentionCall c{};
    int64_t size;  // bytes of a number

    explicit Case(Random& random) : random(random) {
        c.type = int32_t(random.below(3)), c.sinks_type = int32_t(random.below(3)), size = int64_t(number_bytes(c.type));
        c.texts = random.between(1, 3), c.groups = random.between(1, 3), c.heads = c.groups * random.between(1, 4);
        c.tokens = random.one_in(2) ? random.between(1, 4) : random.between(5, random.one_in(6) ? 150 : 40);
        c.causal = !random.one_in(5);
        c.past = random.one_in(3) ? 0 : random.between(0, random.one_in(10) ? 1200 : 200);
        c.keys = c.causal ? c.past + c.tokens : random.between(c.tokens, 200);
        if (!c.causal) c.past = 0;
        c.head = random.one_in(2) ? 64 * random.between(1, 2) : random.between(1, 40);
        if (c.tokens * c.heads * c.texts * c.keys > 60000) c.texts = 1, c.head = std::min<int64_t>(c.head, 64);
        c.window = c.causal && random.one_in(2) ? random.between(1, random.one_in(2) ? 12 : 300) : 0;
        c.scale = 0.25, c.threads = random.between(0, 5);
    }
    // Places in the order of heads, or heads in that of places, with room between.
    void lay(int64_t* strides, int64_t heads, int64_t places) {
        const int64_t row = c.head + random.below(3);
        const bool by_head = random.one_in(2);
        strides[2] = by_head ? row : row * heads, strides[1] = by_head ? row * places : row, strides[0] = row * heads * places;
    }
    size_t bytes(const int64_t* s, int64_t heads, int64_t places) const {
        return size_t((c.texts - 1) * s[0] + (heads - 1) * s[1] + (places - 1) * s[2] + c.head) * size_t(size);
    }

    int64_t check() {
        lay(c.query_strides, c.heads, c.tokens), lay(c.out_strides, c.heads, c.tokens);
        lay(c.key_strides, c.groups, c.keys), lay(c.value_strides, c.groups, c.keys);
        Buffer q(bytes(c.query_strides, c.heads, c.tokens), random.one_in(3)), out(bytes(c.out_strides, c.heads, c.tokens), random.one_in(3));
        Buffer k(bytes(c.key_strides, c.groups, c.keys), random.one_in(3)), v(bytes(c.value_strides, c.groups, c.keys), random.one_in(3));
        q.numbers(c.type, random), k.numbers(c.type, random), v.numbers(c.type, random);
        Buffer sinks(size_t(c.heads) * number_bytes(c.sinks_type), random.one_in(2)), padding(size_t(c.texts * c.keys), false);
        sinks.numbers(c.sinks_type, random);
        const bool padded = c.causal && random.one_in(2);
        for (int64_t i = 0; i < c.texts; ++i) {
            const int64_t start = random.below(c.keys + 1);
            for (int64_t j = 0; j < c.keys; ++j) padding.data()[i * c.keys + j] = j >= start && !random.one_in(9);
        }
        c.queries = q.data(), c.stored = k.data(), c.values = v.data(), c.out = out.data();
        if (random.one_in(2)) c.sinks = sinks.data();
        if (padded) c.padding = padding.bytes(), c.padding_stride = c.keys;
        if (const int code = quintet_attention(&c)) return said("refused", code, 0);
        for (int64_t text = 0; text < c.texts; ++text)
            for (int64_t head = 0; head < c.heads; ++head)
                for (int64_t token = 0; token < c.tokens; token += random.between(1, 9))
                    if (row(q, k, v, sinks, out, text, head, token)) return 1;
        return 0;
    }

    int64_t row(const Buffer& q, const Buffer& k, const Buffer& v, const Buffer& sinks, const Buffer& out, int64_t text, int64_t head, int64_t token) {
        const int64_t group = head / (c.heads / c.groups), own = c.past + token, end = c.causal ? own + 1 : c.keys;
        const int64_t begin = c.window ? std::max<int64_t>(0, own + 1 - c.window) : 0;
        const int64_t at_q = text * c.query_strides[0] + head * c.query_strides[1] + token * c.query_strides[2];
        const int64_t at_k = text * c.key_strides[0] + group * c.key_strides[1], at_v = text * c.value_strides[0] + group * c.value_strides[1];
        bool seen = false;
        for (int64_t j = begin; j < end; ++j) seen |= !c.padding || c.padding[text * c.padding_stride + j];
        std::vector<double> scores(static_cast<size_t>(end), -HUGE_VAL);
        double most = c.sinks ? sinks.get(c.sinks_type, head) : -HUGE_VAL, total = 0;
        for (int64_t j = begin; j < end; ++j) {
            if (seen ? c.padding && !c.padding[text * c.padding_stride + j] : j != own) continue;
            double score = 0;
            for (int64_t i = 0; i < c.head; ++i) score += q.get(c.type, at_q + i) * k.get(c.type, at_k + j * c.key_strides[2] + i);
            scores[size_t(j)] = score * c.scale, most = std::max(most, score * c.scale);
        }
        for (double& score : scores) score = std::exp(score - most), total += score;
        if (c.sinks) total += std::exp(sinks.get(c.sinks_type, head) - most);
        for (int64_t i = 0; i < c.head; ++i) {
            Sum exact;
            for (int64_t j = begin; j < end; ++j) exact.add(scores[size_t(j)] / total * v.get(c.type, at_v + j * c.value_strides[2] + i));
            const double got = out.get(c.type, text * c.out_strides[0] + head * c.out_strides[1] + token * c.out_strides[2] + i);
            // shares are rounded to bfloat16 where products are made of it
            if (!(std::fabs(got - exact.value) <= bound(c.type, exact, c.type == BF16 ? 0x1p-8 : 1e-4))) return said("wrong", got, exact.value);
        }
        return 0;
    }

    int64_t said(const char* why, double got, double wanted) const {
        std::printf("attention: %s (type %d, %lld texts, %lld over %lld heads of %lld, %lld tokens, %lld keys, window %lld): %.9g, not %.9g\n", why,
                    c.type, (long long)c.texts, (long long)c.heads, (long long)c.groups, (long long)c.head, (long long)c.tokens, (long long)c.keys,
                    (long long)c.window, got, wanted);
        return 1;
    }
};

int64_t wrong(const char* what, int type, double got, double wanted) {
    std::printf("%s (type %d): %.9g, not %.9g\n", what, type, got, wanted);
    return 1;
}

// With a residual, whose sum with x every type holds exactly.
int64_t check_norm(Random& random) {
    const int kind = int(random.below(2)), type = int(random.below(3)), weights = int(random.below(3));
    const int64_t rows = random.one_in(8) ? random.between(200, 400) : random.between(1, 5), size = random.between(1, 300);
    const size_t bytes = size_t(rows * size) * number_bytes(type);
    Buffer x(bytes, random.one_in(3)), residual(bytes, random.one_in(3)), total(bytes, random.one_in(3)), out(bytes, random.one_in(3));
    Buffer weight(size_t(size) * number_bytes(weights), random.one_in(3)), bias(weight.size(), random.one_in(3));
    x.numbers(type, random), residual.numbers(type, random), weight.numbers(weights, random), bias.numbers(weights, random);
    const bool added = random.one_in(2), biased = random.one_in(2);
    if (const int code = quintet_norm(kind, type, weights, rows, size, x.data(), added ? residual.data() : nullptr, added ? total.data() : nullptr,
                                      weight.data(), biased ? bias.data() : nullptr, 1e-5, out.data(), random.between(0, 5)))
        return wrong("norm refused", type, code, 0);
    for (int64_t row = 0; row < rows; ++row) {
        auto at = [&](int64_t i) { return x.get(type, row * size + i) + (added ? residual.get(type, row * size + i) : 0); };
        double mean = 0, square = 0;
        for (int64_t i = 0; i < size && !kind; ++i) mean += at(i) / double(size);
        for (int64_t i = 0; i < size; ++i) square += (at(i) - mean) * (at(i) - mean) / double(size);
        for (int64_t i = 0; i < size; ++i) {
            if (added && total.get(type, row * size + i) != at(i)) return wrong("norm's sum", type, total.get(type, row * size + i), at(i));
            const double part = (at(i) - mean) / std::sqrt(square + 1e-5) * weight.get(weights, i), more = biased ? bias.get(weights, i) : 0;
            const Sum exact{part + more, std::fabs(part) + std::fabs(more) + 1};
            const double got = out.get(type, row * size + i);
            if (!(std::fabs(got - exact.value) <= bound(type, exact, 1e-4))) return wrong("norm", type, got, exact.value);
        }
    }
    return 0;
}

int64_t check_rope(Random& random) {
    const int type = int(random.below(3)), angles = int(random.below(3));
    const int64_t texts = random.between(1, 3), heads = random.between(1, 4), tokens = random.between(1, random.one_in(8) ? 90 : 9);
    const int64_t size = 2 * random.between(1, 20), head = size + random.below(9), angle_texts = random.one_in(2) ? 1 : texts;
    const int64_t step = head + random.below(3);
    int64_t strides[3] = {heads * tokens * step, step, heads * step};
    if (random.one_in(2)) strides[1] = tokens * step, strides[2] = step;
    const int64_t last = (texts - 1) * strides[0] + (heads - 1) * strides[1] + (tokens - 1) * strides[2];
    Buffer x(size_t(last + head) * number_bytes(type), random.one_in(3)), out(size_t(texts * heads * tokens * head) * number_bytes(type), random.one_in(3));
    Buffer cosines(size_t(angle_texts * tokens * size) * number_bytes(angles), random.one_in(3)), sines(cosines.size(), random.one_in(3));
    x.numbers(type, random), cosines.numbers(angles, random), sines.numbers(angles, random);
    if (const int code = quintet_rope(type, angles, texts, heads, tokens, head, size, angle_texts, x.data(), strides, cosines.data(), sines.data(),
                                      out.data(), random.between(0, 5)))
        return wrong("rope refused", type, code, 0);
    for (int64_t i = 0; i < texts * heads * tokens * head; ++i) {
        const int64_t n = i % head, token = i / head % tokens, which = i / head / tokens % heads, text = i / head / tokens / heads;
        const int64_t from = text * strides[0] + which * strides[1] + token * strides[2], half = size / 2;
        const int64_t angle = ((angle_texts > 1 ? text : 0) * tokens + token) * size + n;
        Sum exact;
        if (n < size) {
            exact.add(x.get(type, from + n) * cosines.get(angles, angle));
            exact.add((n < half ? -1 : 1) * x.get(type, from + (n < half ? n + half : n - half)) * sines.get(angles, angle));
        } else {
            exact.add(x.get(type, from + n));
        }
        if (!(std::fabs(out.get(type, i) - exact.value) <= bound(type, exact, 1e-6))) return wrong("rope", type, out.get(type, i), exact.value);
    }
    return 0;
}

}  // namespace

int64_t check_attention(uint64_t seed, int64_t cases) {
    Random random{seed * 0x9e3779b97f4a7c15ull + 11};
    int64_t failures = 0;
    for (int64_t i = 0; i < cases && failures < 20; ++i) failures += Case(random).check() + check_norm(random) + check_rope(random);
    return failures;
}
