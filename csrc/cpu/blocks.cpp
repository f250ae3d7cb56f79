// A step through the blocks of a model in one call: what lies between the products costs no dispatch and no memory of its own.
//
// Up to FEW_ROWS tokens are read by threads that are held together, as there is little to do between two products; many are
// a prompt, whose products are starts of their own and whose rows are shared in between.
//
// The residual stays in float32; everything that a product reads or writes is of the model's type, as in the modules.
#include <algorithm>
#include <cstring>
#include <vector>

#include "arena.h"
#include "blocks.h"
#include "checks.h"
#include "numbers.h"
#include "quintet.h"
#include "threads.h"

namespace quintet {

const Inner* inner_of(const char* name) {
#if defined(QUINTET_X86)
    if (!std::strcmp(name, "amx")) return &amx_inner;
    if (!std::strcmp(name, "avx512")) return &avx512_inner;
    if (!std::strcmp(name, "avx2")) return &avx2_inner;
#elif defined(QUINTET_NEON)
    if (!std::strcmp(name, "neon")) return &neon_inner;
#endif
    return &portable_inner;
}

namespace {

thread_local Arena arena;

constexpr int64_t MOST_ROWS = 1 << 20;
constexpr size_t MOST_KEPT = size_t(64) << 20;  // bytes, from one call to the next

struct Columns { const Inner* inner; const Linear* weight; int64_t rows; const float* x; float *out, *partial; };

struct Run {
    const Inner& inner;
    const StepCall& step;
    int64_t rows, bytes;  // R, bytes of a number
    float* partial;       // for weights stored by input

    bool many() const { return rows > FEW_ROWS; }

    // `work(begin, end)` over all rows; by several threads if there are many.
    template <class F>
    void each_row(int64_t bytes_each, const F& work) const {
        if (!many()) return work(0, rows);
        share([](const void* f, int64_t begin, int64_t end) { (*static_cast<const F*>(f))(begin, end); }, &work, rows, bytes_each,
              step.threads, 1);
    }

    char* at(void* base, int64_t index) const { return static_cast<char*>(base) + index * bytes; }
    const char* at(const void* base, int64_t index) const { return static_cast<const char*>(base) + index * bytes; }

    int linear(const Linear& m, const void* x, void* out) const {
        const int type = step.type;
        if (m.kind == 3) {
            const Columns c{&inner, &m, rows, static_cast<const float*>(x), static_cast<float*>(out), partial};
            share([](const void* data, int64_t begin, int64_t end) {
                      const Columns& c = *static_cast<const Columns*>(data);
                      c.inner->columns(*c.weight, c.rows, c.x, c.partial, begin, end);
                  }, &c, PIECES, 4 * m.inputs * m.outputs / PIECES, step.threads, 1);
            share([](const void* data, int64_t begin, int64_t end) {
                      const Columns& c = *static_cast<const Columns*>(data);
                      c.inner->columns_sum(*c.weight, c.rows, c.partial, c.out, begin, end);
                  }, &c, m.outputs, 4 * PIECES * rows, step.threads, 64);
            return DONE;
        }
        if (m.kind < 4)
            return (many() ? quintet_matmul : quintet_matvec)(type, rows, m.inputs, m.outputs, m.weight, m.stride, x, m.inputs, m.bias,
                                                              out, step.threads);
        return quintet_integers(m.kind, type, m.scale_type, many() ? m.activations : AS_THEY_ARE, rows, m.inputs, m.outputs, m.group,
                                static_cast<const uint8_t*>(m.weight), m.scales, static_cast<const uint8_t*>(m.zeros), x,
                                m.inputs, m.bias, out, step.threads);
    }
};

// Where the query, key or value of a head begins in a row of what the products gave.
struct Heads {
    char* base;
    int64_t row, head;  // numbers from a row, from a head to the next
};

// Keys and values of rows go to the stores, their queries to `queries`; or, rotated, to where they came from if it is null.
void attention_input(const Run& run, const Block& m, const Heads& q, const Heads& k, const Heads& v, float* queries, int64_t begin,
                     int64_t end) {
    const StepCall& step = run.step;
    const int64_t rope_bytes = bytes_of(step.rope_type);
    const bool eight = m.stored == EIGHT_BITS;
    const int64_t store_bytes = eight ? 1 : run.bytes;
    auto store_at = [&](void* base, const int64_t* strides, int64_t text, int64_t group, int64_t place) {
        return static_cast<char*>(base) + (text * strides[0] + group * strides[1] + place * strides[2]) * store_bytes;
    };
    std::vector<float> one(static_cast<size_t>(m.head)), rounded(static_cast<size_t>(m.head));
    for (int64_t r = begin; r < end; ++r) {
        const int64_t text = r / step.tokens, token = r % step.tokens, place = m.place + token;
        const int64_t angle = ((step.rope_texts > 1 ? text : 0) * step.tokens + token) * step.rope_size * rope_bytes;
        const void* cosines = step.cosines ? static_cast<const char*>(step.cosines) + angle : nullptr;
        const void* sines = step.sines ? static_cast<const char*>(step.sines) + angle : nullptr;
        for (int64_t h = 0; h < m.heads; ++h) {
            float* to = queries ? queries + (r * m.heads + h) * m.head : one.data();
            char* from = run.at(q.base, r * q.row + h * q.head);
            run.inner.widen(step.type, from, to, m.head);
            if (!cosines) continue;
            run.inner.rotate(step.rope_type, cosines, sines, step.rope_size, to);
            run.inner.narrow(step.type, to, from, m.head);  // as the module rounds
            if (queries) run.inner.widen(step.type, from, to, m.head);
        }
        for (int64_t g = 0; g < m.groups; ++g) {
            char* key = store_at(m.keys, m.key_strides, text, g, place);
            char* value = store_at(m.values, m.value_strides, text, g, place);
            const char* from = run.at(k.base, r * k.row + g * k.head);
            const char* value_from = run.at(v.base, r * v.row + g * v.head);
            if (cosines) {
                run.inner.widen(step.type, from, one.data(), m.head);
                run.inner.rotate(step.rope_type, cosines, sines, step.rope_size, one.data());
                run.inner.narrow(step.type, one.data(), eight ? rounded.data() : static_cast<void*>(key), m.head);
            }
            if (eight) {
                run.inner.widen(step.type, cosines ? static_cast<const void*>(rounded.data()) : from, one.data(), m.head);
                run.inner.encode(one.data(), m.head, key);
                run.inner.widen(step.type, value_from, one.data(), m.head);
                run.inner.encode(one.data(), m.head, value);
                continue;
            }
            if (!cosines) std::memcpy(key, from, size_t(m.head * run.bytes));
            std::memcpy(value, value_from, size_t(m.head * run.bytes));
        }
    }
}

// Every query of a prompt over the stores.
int attend_many(const Run& run, const Block& m, const Heads& q, void* out) {
    const int64_t tokens = run.step.tokens, size = m.heads * m.head;
    AttentionCall c{};
    c.type = run.step.type, c.sinks_type = m.sinks_type;
    c.texts = run.step.texts, c.heads = m.heads, c.groups = m.groups, c.tokens = tokens, c.keys = m.place + tokens, c.head = m.head;
    c.queries = q.base, c.stored = m.keys, c.values = m.values, c.out = out;
    const int64_t from[3] = {tokens * q.row, q.head, q.row}, to[3] = {tokens * size, m.head, size};
    std::copy(from, from + 3, c.query_strides);
    std::copy(to, to + 3, c.out_strides);
    std::copy(m.key_strides, m.key_strides + 3, c.key_strides);
    std::copy(m.value_strides, m.value_strides + 3, c.value_strides);
    c.past = m.place, c.window = m.window, c.causal = 1, c.scale = m.scale;
    c.padding = m.padding ? m.padding + m.slot : nullptr, c.padding_stride = m.padding_stride;
    c.sinks = m.sinks, c.threads = run.step.threads;
    return quintet_attention(&c);
}

struct Buffers {
    float *residual, *queries;
    void *normed, *projected, *attended, *added, *wide, *gated, *logits;
};

int attention(const Run& run, const Block& m, const void* x, const Buffers& b) {
    const int64_t size = m.heads * m.head, keys = m.groups * m.head;
    char *q = static_cast<char*>(b.projected), *k = q, *v = q;
    Heads query, key, value;
    int code = run.linear(m.q, x, q);
    if (m.layout == SEPARATE) {
        k = q + (run.rows * size * run.bytes + 63) / 64 * 64;
        v = k + (run.rows * keys * run.bytes + 63) / 64 * 64;
        if (!code) code = run.linear(m.k, x, k);
        if (!code) code = run.linear(m.v, x, v);
        query = {q, size, m.head}, key = {k, keys, m.head}, value = {v, keys, m.head};
    } else if (m.layout == IN_TURN) {
        const int64_t row = size + 2 * keys;
        query = {q, row, m.head}, key = {run.at(q, size), row, m.head}, value = {run.at(q, size + keys), row, m.head};
    } else {
        query = {q, 3 * size, 3 * m.head}, key = {run.at(q, m.head), 3 * size, 3 * m.head};
        value = {run.at(q, 2 * m.head), 3 * size, 3 * m.head};
    }
    if (code) return code;
    run.each_row(2 * (size + 2 * keys) * run.bytes, [&](int64_t begin, int64_t end) {
        attention_input(run, m, query, key, value, run.many() ? nullptr : b.queries, begin, end);
    });
    if (run.many()) {
        code = attend_many(run, m, query, b.attended);
        return code ? code : run.linear(m.out, b.attended, b.added);
    }
    Attend a{run.step.type, &m, run.step.tokens, b.queries, b.attended};
    const int64_t seen = m.window ? std::min(m.window, m.place + run.step.tokens) : m.place + run.step.tokens;
    struct Shared { const Inner* inner; const Attend* attend; } shared{&run.inner, &a};
    share([](const void* s, int64_t begin, int64_t end) {
              static_cast<const Shared*>(s)->inner->attend(*static_cast<const Shared*>(s)->attend, begin, end);
          }, &shared, run.rows * m.groups, 4 * seen * m.head * run.bytes * (m.heads / m.groups), run.step.threads, 1);
    return run.linear(m.out, b.attended, b.added);
}

int routed(const Run& run, const Block& m, const void* x, const Buffers& b) {
    int code = run.linear(m.router, x, b.logits);
    std::vector<float> logits(static_cast<size_t>(m.experts));
    std::vector<int64_t> order(static_cast<size_t>(m.experts)), indices;
    std::vector<float> shares;
    for (int64_t r = 0; !code && r < run.rows; ++r) {
        run.inner.widen(run.step.type, run.at(b.logits, r * m.experts), logits.data(), m.experts);
        for (int64_t e = 0; e < m.experts; ++e) order[size_t(e)] = e;
        std::partial_sort(order.begin(), order.begin() + m.chosen, order.end(), [&](int64_t one, int64_t other) {
            const float x1 = logits[size_t(one)], x2 = logits[size_t(other)];
            return x1 > x2 || (x1 == x2 && one < other);
        });
        std::vector<float> weights;
        for (int64_t c = 0; c < m.chosen; ++c) weights.push_back(logits[size_t(order[size_t(c)])]);
        run.inner.softmax(weights.data(), m.chosen);
        // rounded as the module rounds; and summed in the order of the experts, as it sums
        std::vector<std::pair<int64_t, float>> chosen;
        for (int64_t c = 0; c < m.chosen; ++c) {
            float rounded;
            run.inner.narrow(run.step.type, &weights[size_t(c)], b.gated, 1);
            run.inner.widen(run.step.type, b.gated, &rounded, 1);
            chosen.emplace_back(order[size_t(c)], rounded);
        }
        std::sort(chosen.begin(), chosen.end());
        for (const auto& [index, weight] : chosen) indices.push_back(index), shares.push_back(weight);
    }
    if (code) return code;
    return quintet_mxfp4_experts(run.step.type, run.many() ? m.activations : AS_THEY_ARE, run.rows, m.experts, m.chosen, run.step.width, m.inner, m.gate_up_blocks,
                                 m.gate_up_scales, m.gate_up_bias, m.down_blocks, m.down_scales, m.down_bias,
                                 indices.data(), shares.data(), x, b.added, m.alpha, m.limit, run.step.threads);
}

struct Activating { const Inner* inner; const Block* block; int type; const void *gate, *up; void* out; int64_t bytes; };

int feed_forward(const Run& run, const Block& m, const void* x, const Buffers& b) {
    if (m.experts) return routed(run, m, x, b);
    int code = run.linear(m.up, x, b.wide);
    if (!code && m.gated) code = run.linear(m.gate, x, b.gated);
    if (code) return code;
    Activating a{&run.inner, &m, run.step.type, m.gated ? b.gated : b.wide, m.gated ? b.wide : nullptr,
                 m.gated ? b.gated : b.wide, run.bytes};
    share([](const void* data, int64_t begin, int64_t end) {
              const Activating& a = *static_cast<const Activating*>(data);
              const char* gate = static_cast<const char*>(a.gate) + begin * a.bytes;
              const char* up = a.up ? static_cast<const char*>(a.up) + begin * a.bytes : nullptr;
              a.inner->activate(a.block->activation, a.type, gate, up, static_cast<char*>(a.out) + begin * a.bytes, end - begin);
          }, &a, run.rows * m.up.outputs, 16, run.step.threads);
    return run.linear(m.down, a.out, b.added);
}

// Some rows of the residual and of what a product gave, or is given.
struct Part {
    const Run& run;
    int64_t begin, count;
    float* residual;
    char *normed, *added;
    Part(const Run& of, const Buffers& b, int64_t first, int64_t end)
        : run(of), begin(first), count(end - first), residual(b.residual + first * of.step.width),
          normed(of.at(b.normed, first * of.step.width)), added(of.at(b.added, first * of.step.width)) {}
    int64_t numbers() const { return count * run.step.width; }
    void round() const { run.inner.narrow(run.step.type, residual, normed, numbers()); }
    void norm(const Norm& norm) const { run.inner.norm(norm, residual, count, run.step.width, run.step.type, normed); }
    void norm_wide(const Norm& norm) const { run.inner.norm_wide(norm, residual, count, run.step.width); }
    void add() const { run.inner.add(run.step.type, added, residual, numbers()); }
};

int block(const Run& run, const Block& m, const Buffers& b) {
    const int64_t bytes = run.step.width * (4 + run.bytes);
    run.each_row(bytes, [&](int64_t begin, int64_t end) {
        const Part part(run, b, begin, end);
        if (m.order == POST) part.round();
        else part.norm(m.norm1);
    });
    int code = attention(run, m, b.normed, b);
    if (code) return code;
    run.each_row(2 * bytes, [&](int64_t begin, int64_t end) {
        const Part part(run, b, begin, end);
        if (m.order == PARALLEL) part.norm(m.norm2);
        part.add();
        if (m.order == PRE) part.norm(m.norm2);
        if (m.order == POST) part.norm_wide(m.norm1), part.round();
    });
    code = feed_forward(run, m, b.normed, b);
    if (code) return code;
    run.each_row(bytes, [&](int64_t begin, int64_t end) {
        const Part part(run, b, begin, end);
        part.add();
        if (m.order == POST) part.norm_wide(m.norm2);
    });
    return DONE;
}

// The residual begins with rows of the tables, rounded as the modules round their sum.
void begin(const Run& run, const Buffers& b) {
    const StepCall& step = run.step;
    run.each_row(step.width * (4 + run.bytes), [&](int64_t first, int64_t end) {
        const Part part(run, b, first, end);
        if (step.x) return run.inner.widen(step.type, run.at(step.x, first * step.width), part.residual, part.numbers());
        for (int64_t r = first; r < end; ++r) {
            float* row = b.residual + r * step.width;
            run.inner.widen(step.type, run.at(step.id_table, step.ids[r] * step.width), row, step.width);
            if (step.place_table) run.inner.add(step.type, run.at(step.place_table, step.places[r] * step.width), row, step.width);
        }
        if (!step.place_table) return;
        part.round();
        run.inner.widen(step.type, part.normed, part.residual, part.numbers());
    });
}

// What the blocks give, rounded as they give it; the last norm of that; and scores.
int end(const Run& run, const Buffers& b) {
    const StepCall& step = run.step;
    run.each_row(step.width * (4 + run.bytes), [&](int64_t first, int64_t end) {
        const Part part(run, b, first, end);
        char* out = run.at(step.out, first * step.width);
        run.inner.narrow(step.type, part.residual, out, part.numbers());
        if (!step.ends) return;
        run.inner.widen(step.type, out, part.residual, part.numbers());
        run.inner.norm(step.last, part.residual, part.count, step.width, step.type, out);
    });
    if (!step.scored) return DONE;
    const Linear& m = step.head;
    if (!step.wanted) return run.linear(m, step.out, step.scores);
    return quintet_head_topk(m.kind < 4 ? 0 : m.kind, step.type, m.scale_type, run.rows, m.inputs, m.outputs, m.group, m.weight, m.stride,
                             m.scales, static_cast<const uint8_t*>(m.zeros), step.out, m.inputs, m.bias, step.wanted, step.best,
                             step.best_ids, nullptr, step.threads);
}

bool rows_fit(const int64_t* chosen, const void* table, int64_t count, int64_t rows) {
    if (!chosen || !table) return false;
    for (int64_t r = 0; r < rows; ++r)
        if (chosen[r] < 0 || chosen[r] >= count) return false;
    return true;
}

// Whether tokens and places are rows of their tables, and the head is one for these states.
bool ends_fit(const StepCall& step, int64_t rows) {
    if (!step.x && !rows_fit(step.ids, step.id_table, step.vocabulary, rows)) return false;
    if (!step.x && step.place_table && !rows_fit(step.places, step.place_table, step.positions, rows)) return false;
    if (!step.scored) return true;
    return step.head.kind != 3 && step.head.inputs == step.width && (step.wanted ? step.best && step.best_ids : step.scores != nullptr);
}

}  // namespace
}  // namespace quintet

using namespace quintet;

extern "C" {

int quintet_ask_for(const void* const* addresses, int64_t count) {
    for (int64_t i = 0; i < count; ++i) ask_for(addresses[i]);
    return DONE;
}

int64_t quintet_block_bytes() { return sizeof(Block); }
int64_t quintet_step_bytes() { return sizeof(StepCall); }

int quintet_blocks(const Block* blocks, int64_t count, const StepCall* call) {
    const StepCall& step = *call;
    const int64_t rows = step.texts * step.tokens;
    if (!chosen_level() || !known_type(step.type) || rows < 1 || rows > MOST_ROWS || step.width < 1) return REFUSED;
    const bool many = rows > FEW_ROWS;
    if (many && step.scored) return REFUSED;
    if (!step.out || !ends_fit(step, rows)) return REFUSED;
    const int64_t bytes = bytes_of(step.type);
    int64_t projected = 0, heads = 0, inner = 1, experts = 1, stored = 0;
    for (int64_t i = 0; i < count; ++i) {
        const Block& m = blocks[i];
        if (m.heads < 1 || m.groups < 1 || m.heads % m.groups || m.head < 1 || m.place < 0) return REFUSED;
        if (m.stored != step.type && (m.stored != EIGHT_BITS || many)) return REFUSED;
        if (many && m.padding && (m.slot < 0 || m.slot + m.place + step.tokens > m.padding_length)) return REFUSED;
        projected = std::max(projected, (m.heads + 2 * m.groups) * m.head);
        heads = std::max(heads, m.heads * m.head);
        for (const Linear* one : {&m.q, &m.out, &m.up, &m.down})
            if (one->kind == 3) stored = std::max(stored, one->outputs);
        if (many && stored) return REFUSED;
        if (m.experts) experts = std::max<int64_t>(experts, m.experts);
        else inner = std::max(inner, m.up.outputs);
    }
    const size_t wide = size_t(rows) * size_t(bytes), room = 64;
    const int64_t queries = many ? 0 : heads;
    if (!arena.reset(size_t(rows * (step.width + queries + PIECES * stored)) * 4 + wide * size_t(2 * step.width + projected + heads +
                     2 * inner + experts) + 16 * room)) return NO_MEMORY;
    Buffers b;
    b.residual = static_cast<float*>(arena.take(size_t(rows * step.width) * 4));
    b.queries = static_cast<float*>(arena.take(size_t(rows * queries) * 4));
    b.normed = arena.take(wide * size_t(step.width));
    b.added = arena.take(wide * size_t(step.width));
    b.projected = arena.take(wide * size_t(projected) + 2 * room);
    b.attended = arena.take(wide * size_t(heads));
    b.wide = arena.take(wide * size_t(inner));
    b.gated = arena.take(wide * size_t(inner));
    b.logits = arena.take(wide * size_t(experts));
    Run run{*inner_of(chosen_level()->name), step, rows, bytes, nullptr};
    run.partial = static_cast<float*>(arena.take(size_t(PIECES * rows * stored) * 4));
    struct Whole { const Run* run; const Block* blocks; int64_t count; const Buffers* buffers; int code; } whole{&run, blocks, count, &b, 0};
    const auto work = [](const void* data, int64_t, int64_t) {
        Whole& w = *const_cast<Whole*>(static_cast<const Whole*>(data));
        begin(*w.run, *w.buffers);
        for (int64_t i = 0; i < w.count && !w.code; ++i) w.code = block(*w.run, w.blocks[i], *w.buffers);
        if (!w.code) w.code = end(*w.run, *w.buffers);
    };
    if (many) work(&whole, 0, 1);
    else together_do(work, &whole, step.threads);
    arena.keep(MOST_KEPT);
    return whole.code;
}

}  // extern "C"
