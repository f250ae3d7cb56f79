// The functions that Python calls (ctypes), and the choice of the level. Sizes of buffers are checked by the caller, who
// knows them; what is checked here are numbers that would make loops run wild.
#include <atomic>
#include <cstring>
#include <initializer_list>

#if defined(QUINTET_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include "arena.h"
#include "checks.h"
#include "kernels.h"
#include "quintet.h"
#include "threads.h"

namespace quintet {
namespace {

const Level* level = nullptr;

thread_local Arena arena;  // what x is prepared as, and what lies between the products of experts

const Level* find_level(const char* name) {
#if defined(QUINTET_X86)
    if (!std::strcmp(name, "amx")) return &amx_level;
    if (!std::strcmp(name, "avx512")) return &avx512_level;
    if (!std::strcmp(name, "avx2")) return &avx2_level;
#elif defined(QUINTET_NEON)
    if (!std::strcmp(name, "neon")) return &neon_level;  // a part of every 64-bit ARM
#endif
    return !std::strcmp(name, "portable") ? &portable_level : nullptr;
}

#if defined(QUINTET_X86)
// Whether the CPU has tiles and products of bfloat16 and of bytes in them, and Linux lets this process use them: it has to be asked, as a
// thread's tiles are 8 KB that it keeps only for those who do.
bool has_tiles() {
#if defined(__linux__)
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1) || !(d >> 25 & 1)) return false;
    constexpr int ask_for_state = 0x1023, tiles = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA of asm/prctl.h
    return syscall(SYS_arch_prctl, ask_for_state, tiles) == 0;
#else
    return false;
#endif
}
#endif

bool has_level(const char* name) {
#if defined(QUINTET_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (!std::strcmp(name, "avx2")) return avx2;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
    if (!std::strcmp(name, "avx512")) return avx512;
    if (!std::strcmp(name, "amx")) return avx512 && has_tiles();
#endif
    return find_level(name) != nullptr;
}

constexpr int64_t PANEL = 1024;  // rows at a time: what they are prepared as takes memory
constexpr int64_t STRIPS_BYTES = 1280 * 1024;  // of prepared rows that stay in the second cache beside what is computed

// Whether a matrix with rows `stride` numbers apart is one that there can be.
bool fits(int64_t rows, int64_t stride) { return rows >= 0 && stride >= 0 && rows < MOST_NUMBERS && stride < MOST_NUMBERS / (rows + 1); }

// x (rows, inputs), weight (outputs, inputs).
bool sane(int type, int64_t rows, int64_t inputs, int64_t outputs, int64_t x_stride) {
    return level && known_type(type) && rows >= 1 && inputs >= 1 && fits(rows, inputs) && fits(outputs, inputs) &&
           fits(rows, outputs) && fits(rows, x_stride);
}

bool known(int activations) { return activations == AS_THEY_ARE || activations == ROUNDED || activations == IN_TILES; }

// Whether rows are prepared in strips.
bool in_strips(const Matvec&) { return false; }
template <class M>
bool in_strips(const M& m) { return level->tiles && m.type != FP32 && m.activations != ROUNDED; }

int64_t inputs_of(const Packed& m) { return m.groups * GROUP; }
template <class M>
int64_t inputs_of(const M& m) { return m.inputs; }

// Rows that are prepared and multiplied at a time.
int64_t rows_of_panel(bool strips, int64_t rows, int64_t inputs) {
    if (!strips) return PANEL;
    const int64_t fit = STRIPS_BYTES / (2 * inputs), most = fit < 64 ? 64 : fit > PANEL ? PANEL : fit;
    const int64_t panels = (rows + most - 1) / most;
    constexpr int64_t pair = 2 * STRIP;
    return ((rows + panels - 1) / panels + pair - 1) / pair * pair;
}

// Whether there is memory behind all of these; of no outputs there need not be.
bool given(int64_t outputs, std::initializer_list<const void*> all) {
    for (const void* one : all)
        if (outputs && !one) return false;
    return true;
}

// Pieces of equal size for each of many rows, whose arithmetic is the limit: at most `most` outputs, a multiple of `step`.
Plan equal_pieces(int64_t outputs, int64_t bytes_each, int64_t threads, int64_t step, int64_t most) {
    Plan planned = plan(outputs, bytes_each, threads);
    const int64_t size = outputs / (4 * (threads > 1 ? threads : 1)) / step * step;
    planned.chunk = size < step ? step : size > most ? most : size;
    const int64_t pieces = (outputs + planned.chunk - 1) / planned.chunk;
    if (planned.threads > pieces) planned.threads = pieces;
    return planned;
}

// Products of many rows of x and a weight: x is prepared, then outputs are shared among threads. `m.prepared` is filled in, with so
// many bytes in all; null for `prepare` if there is nothing to do.
template <class M>
int prepare_and_share(M& m, size_t prepared, void (*prepare)(const M&, int64_t, int64_t), size_t memory,
                      void (*work)(const M&, int64_t, int64_t, void*), const Plan& planned, int64_t rows_at_once) {
    const size_t of_x = aligned(prepared), each = aligned(memory);
    const size_t of_threads = each * size_t(planned.threads > 1 ? planned.threads : 1);
    if (!arena.reset(of_x + of_threads)) return NO_MEMORY;
    m.prepared = arena.take(of_x);
    char* own = static_cast<char*>(arena.take(of_threads));
    struct Prepare { const M* m; void (*prepare)(const M&, int64_t, int64_t); } rows{&m, prepare};
    if (prepare)
        share_with(
            [](const void* a, int64_t begin, int64_t end, void*) {
                static_cast<const Prepare*>(a)->prepare(*static_cast<const Prepare*>(a)->m, begin, end);
            },
            &rows, m.rows, Plan{planned.threads, rows_at_once});
    struct Call { const M* m; void (*work)(const M&, int64_t, int64_t, void*); } call{&m, work};
    share_with(
        [](const void* a, int64_t begin, int64_t end, void* memory) {
            static_cast<const Call*>(a)->work(*static_cast<const Call*>(a)->m, begin, end, memory);
        },
        &call, m.outputs, planned, own, each);
    return DONE;
}

// Products of some rows of x and a weight. `prepared` are the bytes of a row.
template <class M>
int panel(M& m, size_t prepared, void (*prepare)(const M&, int64_t, int64_t), size_t memory, void (*work)(const M&, int64_t, int64_t, void*),
          int64_t bytes_each, int64_t threads) {
    const bool strips = in_strips(m);
    prepared *= size_t(strips ? whole_strips(m.rows) : m.rows);
    if (m.rows > FEW_ROWS) {
        const Plan planned = equal_pieces(m.outputs, bytes_each, threads, 32, strips ? 128 : 96);
        return prepare_and_share(m, prepared, prepare, memory, work, planned, strips ? STRIP : 4);
    }
    if (!arena.reset(prepared)) return NO_MEMORY;
    m.prepared = arena.take(prepared);
    prepare(m, 0, m.rows);
    struct Call { const M* m; void (*work)(const M&, int64_t, int64_t, void*); } call{&m, work};
    share(
        [](const void* a, int64_t begin, int64_t end) {
            static_cast<const Call*>(a)->work(*static_cast<const Call*>(a)->m, begin, end, nullptr);
        },
        &call, m.outputs, bytes_each, threads, m.rows > 1 ? 32 : 16);
    return DONE;
}

// Rows `first` and on of many, so many at most.
template <class M>
M rows_of(const M& all, int64_t first, int64_t most) {
    const int64_t size = bytes_of(all.type);
    M m = all;
    m.rows = all.rows - first < most ? all.rows - first : most;
    m.x = static_cast<const char*>(all.x) + first * all.x_stride * size;
    m.out = static_cast<char*>(all.out) + first * all.outputs * size;
    return m;
}

template <class M>
int product(const M& all, size_t prepared, void (*prepare)(const M&, int64_t, int64_t), size_t memory,
            void (*work)(const M&, int64_t, int64_t, void*), int64_t bytes_each, int64_t threads) {
    const int64_t most = rows_of_panel(in_strips(all), all.rows, inputs_of(all));
    for (int64_t first = 0; first < all.rows; first += most) {
        M m = rows_of(all, first, most);
        if (const int code = panel(m, prepared, prepare, memory, work, bytes_each, threads)) return code;
    }
    return DONE;
}

constexpr int64_t EXPERT_PANEL = 512;

int expert_panel(Experts& m, int64_t experts, int64_t chosen, const int64_t* indices, const float* weights, int64_t threads) {
    const bool strips = in_strips(m);
    const int64_t most_strips = (m.chosen + STRIP - 1) / STRIP + (m.chosen < experts ? m.chosen : experts);
    const size_t ints = aligned(size_t(3 * experts + 3 + m.chosen + experts) * sizeof(int64_t));
    const size_t shares = aligned(size_t(m.chosen) * sizeof(float));
    const int64_t rows_of_x = strips ? most_strips * STRIP : m.rows, rows_of_values = strips ? most_strips * STRIP : m.chosen;
    const size_t of_x = aligned(level->packed_bytes(m.type, m.activations, m.hidden) * size_t(rows_of_x));
    const size_t of_values = aligned(size_t(m.chosen * m.inner) * sizeof(float));
    const size_t of_prepared = aligned(level->packed_bytes(m.type, m.activations, m.inner) * size_t(rows_of_values));
    const size_t for_x = level->packed_memory(m.type, m.activations, m.hidden);
    const size_t for_values = level->packed_memory(m.type, m.activations, m.inner);
    const size_t each = aligned(for_x > for_values ? for_x : for_values) + aligned(size_t(m.rows * OUTER) * sizeof(float));
    if (threads < 1) threads = 1;
    if (threads > 256) threads = 256;
    if (!arena.reset(ints + shares + of_x + of_values + of_prepared + each * size_t(threads))) return NO_MEMORY;
    auto* asked = static_cast<int64_t*>(arena.take(ints));
    int64_t *starts = asked + experts, *first_strips = starts + experts + 1, *rows_of = first_strips + experts + 1, *counts = rows_of + m.chosen;
    auto* sorted = static_cast<float*>(arena.take(shares));
    std::memset(counts, 0, size_t(experts) * sizeof(int64_t));
    for (int64_t i = 0; i < m.chosen; ++i) ++counts[indices[i]];
    m.count = 0;
    int64_t place = 0, strip = 0, most = 0;  // choices of one expert: a row may choose it more than once
    for (int64_t e = 0; e < experts; ++e) {
        if (!counts[e]) continue;
        most = counts[e] > most ? counts[e] : most;
        asked[m.count] = e;
        first_strips[m.count] = strip;
        strip += (counts[e] + STRIP - 1) / STRIP;
        starts[m.count++] = place;
        place += counts[e];
        counts[e] = place - counts[e];
    }
    starts[m.count] = place, first_strips[m.count] = strip;
    for (int64_t i = 0; i < m.chosen; ++i) {
        const int64_t to = counts[indices[i]]++;
        rows_of[to] = i / chosen;
        sorted[to] = weights[i];
    }
    m.asked = asked, m.starts = starts, m.strips = first_strips, m.rows_of = rows_of, m.weights = sorted;
    m.prepared = arena.take(of_x);
    m.values = static_cast<float*>(arena.take(of_values));
    m.prepared_values = arena.take(of_prepared);
    char* memory = static_cast<char*>(arena.take(each * size_t(threads)));
    const int64_t hidden_bytes = m.hidden / GROUP * (GROUP_BYTES + 1), inner_bytes = m.inner / GROUP * (GROUP_BYTES + 1);
    const int64_t inner_total = m.count * m.inner, down_bytes = m.count * inner_bytes;
    // what is prepared: rows and choices, or strips
    const int64_t of_hidden = strips ? strip : m.rows, of_inner = strips ? strip : m.chosen, at_once = strips ? 1 : 4;
    if (m.rows <= FEW_ROWS && most <= FEW_ROWS) {
#define QUINTET_EACH(name) \
    [](const void* a, int64_t begin, int64_t end) { level->name(*static_cast<const Experts*>(a), begin, end, nullptr); }
        level->experts_prepare(m, 0, of_hidden, nullptr);
        share(QUINTET_EACH(experts_inner), &m, inner_total, 2 * hidden_bytes, threads, 16);
        level->experts_between(m, 0, of_inner, nullptr);
        share(QUINTET_EACH(experts_outer), &m, m.hidden, down_bytes, threads, OUTER);
        return DONE;
#undef QUINTET_EACH
    }
#define QUINTET_EACH(name) \
    [](const void* a, int64_t begin, int64_t end, void* own) { level->name(*static_cast<const Experts*>(a), begin, end, own); }
    Plan planned = plan(inner_total, 2 * hidden_bytes, threads);
    planned.chunk = OUTER;
    share_with(QUINTET_EACH(experts_prepare), &m, of_hidden, Plan{planned.threads, at_once});
    share_with(QUINTET_EACH(experts_inner), &m, inner_total, planned, memory, each);
    share_with(QUINTET_EACH(experts_between), &m, of_inner, Plan{planned.threads, at_once});
    share_with(QUINTET_EACH(experts_outer), &m, m.hidden, planned, memory, each);
#undef QUINTET_EACH
    return DONE;
}

}  // namespace

const Level* chosen_level() { return level; }

}  // namespace quintet

using namespace quintet;

extern "C" {

int quintet_version() { return 14; }

int quintet_has(const char* name) { return find_level(name) ? has_level(name) : -1; }

int quintet_choose(const char* name) {
    static std::atomic<bool> once{false};
    if (!once.exchange(true)) find_threads();
    if (!find_level(name) || !has_level(name)) return REFUSED;
    level = find_level(name);
    return DONE;
}

const char* quintet_runtime() { return threads_runtime(); }

int quintet_matvec(int type, int64_t rows, int64_t inputs, int64_t outputs, const void* weight, int64_t weight_stride,
                   const void* x, int64_t x_stride, const void* bias, void* out, int64_t threads) {
    if (!sane(type, rows, inputs, outputs, x_stride) || !fits(outputs, weight_stride)) return REFUSED;
    if (!given(outputs, {weight, x, out})) return REFUSED;
    Matvec m{type, rows, inputs, outputs, weight, weight_stride, x, x_stride, bias, out, nullptr};
    return product(m, level->matvec_bytes(type, inputs), level->matvec_prepare, level->matvec_memory(type, inputs), level->matvec,
                   inputs * bytes_of(type), threads);
}

int quintet_matmul(int type, int64_t rows, int64_t inputs, int64_t outputs, const void* weight, int64_t weight_stride,
                   const void* x, int64_t x_stride, const void* bias, void* out, int64_t threads) {
    if (!sane(type, rows, inputs, outputs, x_stride) || !fits(outputs, weight_stride)) return REFUSED;
    if (!given(outputs, {weight, x, out})) return REFUSED;
    if (type != BF16 || inputs % 2 || !level->matmul)
        return quintet_matvec(type, rows, inputs, outputs, weight, weight_stride, x, x_stride, bias, out, threads);
    const Matvec all{type, rows, inputs, outputs, weight, weight_stride, x, x_stride, bias, out, nullptr};
    const Matmul& matmul = *level->matmul;
    const Plan planned = equal_pieces(outputs, inputs * bytes_of(type), threads, matmul.outputs, matmul.most);
    const int64_t most = rows_of_panel(level->tiles, rows, inputs);
    for (int64_t first = 0; first < rows; first += most) {
        Matvec m = rows_of(all, first, most);
        const size_t prepared = matmul.bytes(inputs) * size_t(whole_strips(m.rows));
        if (const int code = prepare_and_share(m, prepared, matmul.prepare, matmul.memory(m.rows, inputs), matmul.product, planned, STRIP)) return code;
    }
    return DONE;
}

int quintet_mxfp4_matvec(int type, int activations, int64_t rows, int64_t groups, int64_t outputs, const uint8_t* blocks,
                         const uint8_t* scales, const void* x, int64_t x_stride, const void* bias, void* out,
                         int64_t threads) {
    if (groups < 1 || groups > MOST_NUMBERS / GROUP || !sane(type, rows, groups * GROUP, outputs, x_stride) || !known(activations)) return REFUSED;
    if (!given(outputs, {blocks, scales, x, out})) return REFUSED;
    Packed m{type, activations, rows, groups, outputs, blocks, scales, x, x_stride, bias, out, nullptr};
    return product(m, level->packed_bytes(type, activations, groups * GROUP), level->packed_prepare,
                   level->packed_memory(type, activations, groups * GROUP), level->packed,
                   groups * (GROUP_BYTES + 1), threads);
}

int quintet_integers(int bits, int type, int scale_type, int activations, int64_t rows, int64_t inputs, int64_t outputs, int64_t group,
                     const uint8_t* weight, const void* scales, const uint8_t* zeros, const void* x, int64_t x_stride,
                     const void* bias, void* out, int64_t threads) {
    if (!sane(type, rows, inputs, outputs, x_stride) || !known(activations)) return REFUSED;
    if (!given(outputs, {weight, scales, x, out})) return REFUSED;
    if (!integers_fit(bits, scale_type, inputs, group, zeros)) return REFUSED;
    Integers m{type, bits, scale_type, activations, rows, inputs, outputs, group, weight, scales, zeros, x, x_stride, bias, out, nullptr};
    return product(m, level->packed_bytes(type, activations, inputs), level->integers_prepare,
                   level->packed_memory(type, activations, inputs),
                   level->integers, inputs * bits / 8 + inputs / group * bytes_of(scale_type), threads);
}

int quintet_mxfp4_experts(int type, int activations, int64_t rows, int64_t experts, int64_t chosen, int64_t hidden, int64_t inner,
                          const uint8_t* gate_up_blocks, const uint8_t* gate_up_scales, const void* gate_up_bias,
                          const uint8_t* down_blocks, const uint8_t* down_scales, const void* down_bias,
                          const int64_t* indices, const float* weights, const void* x, void* out, float alpha,
                          float limit, int64_t threads) {
    if (inner < 1 || inner > MOST_NUMBERS / 2 || !sane(type, rows, hidden, 2 * inner, hidden) || !known(activations)) return REFUSED;
    if (hidden % GROUP || inner % GROUP || chosen < 0 || chosen > 4096 || experts < 0 || experts > 65536) return REFUSED;
    if (!given(1, {x, out}) || !given(chosen, {indices, weights})) return REFUSED;
    if (!given(experts, {gate_up_blocks, gate_up_scales, gate_up_bias, down_blocks, down_scales, down_bias})) return REFUSED;
    for (int64_t i = 0; i < rows * chosen; ++i)
        if (indices[i] < 0 || indices[i] >= experts) return BAD_EXPERT;
    Experts m{};
    m.type = type, m.activations = activations, m.hidden = hidden, m.inner = inner, m.alpha = alpha, m.limit = limit;
    m.gate_up_blocks = gate_up_blocks, m.gate_up_scales = gate_up_scales, m.gate_up_bias = gate_up_bias;
    m.down_blocks = down_blocks, m.down_scales = down_scales, m.down_bias = down_bias;
    const int64_t row_bytes = hidden * bytes_of(type);
    for (int64_t first = 0; first < rows; first += EXPERT_PANEL) {
        m.rows = rows - first < EXPERT_PANEL ? rows - first : EXPERT_PANEL;
        m.chosen = m.rows * chosen;
        m.x = static_cast<const char*>(x) + first * row_bytes;
        m.out = static_cast<char*>(out) + first * row_bytes;
        if (const int code = expert_panel(m, experts, chosen, indices + first * chosen, weights + first * chosen, threads)) return code;
    }
    return DONE;
}

}  // extern "C"
