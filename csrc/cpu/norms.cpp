// Norms and rotations as operations: the functions of inner.h over rows that threads share.
#include <initializer_list>

#include "arena.h"
#include "blocks.h"
#include "checks.h"
#include "quintet.h"
#include "threads.h"

namespace quintet {
namespace {

thread_local Arena arena;

struct Norming {
    const Inner* inner;
    const Norm* norm;
    int type;
    int64_t size, bytes;
    const char *x, *residual;
    char *total, *out;
    int* no_memory;
};

void norm_rows(const void* data, int64_t begin, int64_t end) {
    const Norming& n = *static_cast<const Norming*>(data);
    if (!arena.reset(size_t(n.size) * 4)) return __atomic_store_n(n.no_memory, 1, __ATOMIC_RELAXED);
    auto* row = reinterpret_cast<float*>(arena.memory);
    for (int64_t at = begin * n.size * n.bytes; at < end * n.size * n.bytes; at += n.size * n.bytes) {
        n.inner->widen(n.type, n.x + at, row, n.size);
        if (n.residual) {
            n.inner->add(n.type, n.residual + at, row, n.size);
            n.inner->narrow(n.type, row, n.total + at, n.size);
            n.inner->widen(n.type, n.total + at, row, n.size);  // as who adds first and norms then
        }
        n.inner->norm(*n.norm, row, 1, n.size, n.type, n.out + at);
    }
}

struct Turning {
    const Inner* inner;
    int type, angle_type;
    int64_t heads, tokens, head, size, angle_texts, bytes, angle_bytes;
    const char *x, *cosines, *sines;
    const int64_t* strides;
    char* out;
    int* no_memory;
};

void turn_rows(const void* data, int64_t begin, int64_t end) {
    const Turning& t = *static_cast<const Turning*>(data);
    if (!arena.reset(size_t(t.head) * 4)) return __atomic_store_n(t.no_memory, 1, __ATOMIC_RELAXED);
    auto* row = reinterpret_cast<float*>(arena.memory);
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t token = unit % t.tokens, head = unit / t.tokens % t.heads, text = unit / t.tokens / t.heads;
        const int64_t angle = ((t.angle_texts > 1 ? text : 0) * t.tokens + token) * t.size * t.angle_bytes;
        t.inner->widen(t.type, t.x + (text * t.strides[0] + head * t.strides[1] + token * t.strides[2]) * t.bytes, row, t.head);
        t.inner->rotate(t.angle_type, t.cosines + angle, t.sines + angle, t.size, row);
        t.inner->narrow(t.type, row, t.out + unit * t.head * t.bytes, t.head);
    }
}

}  // namespace
}  // namespace quintet

using namespace quintet;

extern "C" {

int quintet_norm(int kind, int type, int weight_type, int64_t rows, int64_t size, const void* x, const void* residual, void* total,
                 const void* weight, const void* bias, double eps, void* out, int64_t threads) {
    if (!known_type(type) || !known_type(weight_type)) return REFUSED;
    if (!chosen_level() || (kind != 0 && kind != 1) || rows < 1 || size < 1 || size > MOST_NUMBERS / rows) return REFUSED;
    if (!x || !weight || !out || !residual != !total) return REFUSED;
    const Norm norm{kind, weight_type, weight, bias, eps};
    const int64_t bytes = bytes_of(type);
    int no_memory = 0;
    const Norming n{inner_of(chosen_level()->name), &norm, type, size, bytes, static_cast<const char*>(x), static_cast<const char*>(residual),
                    static_cast<char*>(total), static_cast<char*>(out), &no_memory};
    share(norm_rows, &n, rows, 2 * size * bytes, threads, 1);
    return no_memory ? NO_MEMORY : DONE;
}

int quintet_rope(int type, int angle_type, int64_t texts, int64_t heads, int64_t tokens, int64_t head, int64_t size, int64_t angle_texts,
                 const void* x, const int64_t* strides, const void* cosines, const void* sines, void* out, int64_t threads) {
    if (!known_type(type) || !known_type(angle_type)) return REFUSED;
    for (int64_t one : {texts, heads, tokens, head})
        if (one < 1 || one > (int64_t(1) << 31)) return REFUSED;
    if (!chosen_level() || texts > MOST_NUMBERS / heads || texts * heads > MOST_NUMBERS / tokens) return REFUSED;
    if (texts * heads * tokens > MOST_NUMBERS / head) return REFUSED;
    if (size < 2 || size % 2 || size > head || (angle_texts != 1 && angle_texts != texts)) return REFUSED;
    if (!x || !strides || !cosines || !sines || !out || !strides_fit(strides, texts, heads, tokens)) return REFUSED;
    int no_memory = 0;
    const int64_t bytes = bytes_of(type);
    const Turning t{inner_of(chosen_level()->name), type, angle_type, heads, tokens, head, size, angle_texts, bytes,
                    bytes_of(angle_type), static_cast<const char*>(x), static_cast<const char*>(cosines),
                    static_cast<const char*>(sines), strides, static_cast<char*>(out), &no_memory};
    share(turn_rows, &t, texts * heads * tokens, 4 * head * bytes, threads, 1);
    return no_memory ? NO_MEMORY : DONE;
}

}  // extern "C"
