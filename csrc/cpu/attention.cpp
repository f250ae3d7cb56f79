// Attention as an operation: sizes, memory, and which threads do what.
#include "attention.h"

#include <cmath>
#include <cstring>
#include <initializer_list>

#include "arena.h"
#include "blocks.h"
#include "checks.h"
#include "quintet.h"
#include "threads.h"

namespace quintet {
namespace {

constexpr int64_t PACKED = int64_t(8) << 20;         // bytes of packed keys and values at a time, if that is enough for all threads
constexpr int64_t WORTH_HOLDING = int64_t(1) << 18;  // multiplications from which on threads are held together

thread_local Arena arena;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

bool sane(const AttentionCall& c) {
    for (int64_t size : {c.texts, c.heads, c.groups, c.tokens, c.keys, c.head})
        if (size < 1 || size > (int64_t(1) << 31)) return false;
    if (c.texts > MOST_NUMBERS / c.heads || c.texts * c.heads > MOST_NUMBERS / c.head) return false;
    if (c.texts * c.heads * c.head > MOST_NUMBERS / most(c.tokens, c.keys)) return false;
    if (!chosen_level() || !known_type(c.type) || !known_type(c.sinks_type) || c.heads % c.groups) return false;
    if (!strides_fit(c.query_strides, c.texts, c.heads, c.tokens) || !strides_fit(c.out_strides, c.texts, c.heads, c.tokens)) return false;
    if (!strides_fit(c.key_strides, c.texts, c.groups, c.keys) || !strides_fit(c.value_strides, c.texts, c.groups, c.keys)) return false;
    if (c.past < 0 || c.past > c.keys - c.tokens || c.window < 0 || c.window > MOST_NUMBERS || (c.window && !c.causal)) return false;
    if (c.padding && (c.padding_stride < 0 || c.padding_stride > MOST_NUMBERS / c.texts || !c.causal)) return false;
    return std::isfinite(c.scale) && c.scale > 0 && c.queries && c.stored && c.values && c.out;
}

// What is seen of each text, in blocks of `size` keys from its first real one on.
struct Seen {
    int64_t *first, *starts, count = 0;
    uint8_t* holes;

    Seen(const AttentionCall& c, int64_t size, int64_t* memory) : first(memory), starts(memory + c.texts), holes(reinterpret_cast<uint8_t*>(memory + 2 * c.texts)) {
        const int64_t end = c.causal ? c.past + c.tokens : c.keys;
        for (int64_t text = 0; text < c.texts; ++text) {
            first[text] = 0, holes[text] = 0;
            if (c.padding) {
                const uint8_t* row = c.padding + text * c.padding_stride;
                while (first[text] < end && !row[first[text]]) ++first[text];
                holes[text] = end > first[text] && std::memchr(row + first[text], 0, size_t(end - first[text]));
            }
            const int64_t low = c.window ? most(c.past + 1 - c.window - first[text], 0) : 0;
            starts[text] = low / size;
            count = most(count, (end - first[text] + size - 1) / size - starts[text]);
        }
        count = most(count, 1);
    }
};

struct Whole {
    const Inner* inner;
    Attention* a;
    int64_t pairs, threads, seen;  // pairs of a text and a group; keys that a row sees, on average
};

#define QUINTET_EACH(name)                                            \
    [](const void* data, int64_t begin, int64_t end) {                \
        const Whole& w = *static_cast<const Whole*>(data);            \
        w.inner->name(*w.a, begin, end);                              \
    }

void many(const void* data, int64_t, int64_t) {
    const Whole& w = *static_cast<const Whole*>(data);
    const AttentionCall& c = *w.a->call;
    const int64_t bytes = bytes_of(c.type), at_once = most(PACKED / (w.a->count * w.a->bytes), most(w.threads, 1));
    const int64_t units = (c.tokens * (c.heads / c.groups) + ROW_BLOCK - 1) / ROW_BLOCK;
    for (w.a->first_pair = 0; w.a->first_pair < w.pairs; w.a->first_pair += at_once) {
        const int64_t pairs = least(at_once, w.pairs - w.a->first_pair);
        share(QUINTET_EACH(attention_pack), data, pairs * w.a->count, 2 * KEY_BLOCK * c.head * bytes, w.threads, 1);
        share(QUINTET_EACH(attention_rows), data, pairs * units, ROW_BLOCK * w.seen * c.head / 4 + 1, w.threads, 1);
    }
}

int few(const AttentionCall& c, const Inner& inner, int* no_memory) {
    const int64_t each = (c.head + 17) / 16 * 16 * 4, ones = c.texts * c.tokens * c.groups, bytes = bytes_of(c.type);
    const size_t texts = size_t(c.texts) * 3 * sizeof(int64_t);
    if (!arena.reset(texts)) return NO_MEMORY;
    int64_t count = Seen(c, KEY_PIECE, static_cast<int64_t*>(arena.take(texts))).count;
    if (ones > MOST_NUMBERS / count || ones * count > MOST_NUMBERS / (each * (c.heads / c.groups))) return REFUSED;
    if (!arena.reset(texts + 64 + size_t(ones * count * each * (c.heads / c.groups)))) return NO_MEMORY;
    const Seen seen(c, KEY_PIECE, static_cast<int64_t*>(arena.take(texts)));
    Attention a{&c, seen.first, seen.starts, seen.holes, count, 0, nullptr, each * (c.heads / c.groups), no_memory};
    a.memory = static_cast<char*>(arena.take(size_t(ones * count * a.bytes)));
    const Whole w{&inner, &a, ones, c.threads, count};
    share(QUINTET_EACH(attention_pieces), &w, ones * count, 2 * least(KEY_PIECE, c.keys) * c.head * bytes, c.threads, 1);
    share(QUINTET_EACH(attention_joined), &w, ones, count * a.bytes, c.threads, 1);
    return DONE;
}

}  // namespace
}  // namespace quintet

using namespace quintet;

extern "C" {

int64_t quintet_attention_bytes() { return sizeof(AttentionCall); }

int quintet_attention(const AttentionCall* call) {
    if (!call) return REFUSED;
    const AttentionCall& c = *call;
    if (!sane(c)) return REFUSED;
    const Inner& inner = *inner_of(chosen_level()->name);
    int no_memory = 0;
    if (c.tokens <= FEW_TOKENS) {
        const int code = few(c, inner, &no_memory);
        return code ? code : no_memory ? NO_MEMORY : DONE;
    }
    const int64_t pairs = c.texts * c.groups, bytes = inner.attention_bytes(c.type, c.head);
    const size_t texts = size_t(c.texts) * 3 * sizeof(int64_t);
    if (!arena.reset(texts)) return NO_MEMORY;
    const int64_t count = Seen(c, KEY_BLOCK, static_cast<int64_t*>(arena.take(texts))).count;
    const int64_t at_once = least(pairs, most(PACKED / (count * bytes), most(c.threads, 1)));
    if (!arena.reset(texts + 64 + size_t(at_once * count * bytes))) return NO_MEMORY;
    const Seen seen(c, KEY_BLOCK, static_cast<int64_t*>(arena.take(texts)));
    Attention a{&c, seen.first, seen.starts, seen.holes, count, 0, nullptr, bytes, &no_memory};
    a.memory = static_cast<char*>(arena.take(size_t(at_once * count * bytes)));
    const int64_t keys = c.window ? least(c.window + ROW_BLOCK, c.keys) : c.causal ? c.keys - c.tokens / 2 : c.keys;
    const Whole w{&inner, &a, pairs, c.threads, keys};
    if (c.texts * c.heads * c.tokens * keys * c.head < WORTH_HOLDING) many(&w, 0, 1);
    else together_do(many, &w, c.threads);
    return no_memory ? NO_MEMORY : DONE;
}

}  // extern "C"
