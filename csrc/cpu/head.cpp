// The output head: the best of the products with all rows of a weight, and the log of the sum of their e^x. The products are
// made a few at a time, and thrown away: no row as long as the vocabulary is written.
//
// Numbers are rounded to the type of x, as the product alone would give them. Outputs are cut into slices that depend on
// nothing but their number, and slices are put together in order: threads change no bit.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <new>

#include "arena.h"
#include "blocks.h"
#include "checks.h"
#include "quintet.h"
#include "threads.h"

namespace quintet {
namespace {

constexpr int64_t CHUNK = 256;                      // outputs at a time, whose numbers stay in the first cache
constexpr int64_t SLICES = 256;                     // about so many; more for a short weight would cost more than they save
constexpr int64_t MOST_WANTED = 1024;

thread_local Arena arena;

struct Call {
    const Level* level;
    const Inner* inner;
    int bits;  // 0 for plain numbers
    Matvec plain;
    Integers whole;
    int64_t rows, outputs, slice, wanted, held;  // outputs in a slice; best of all, best kept of a slice
    int64_t* ranks;                              // (slices, rows, held)
    int64_t* counts;                             // (slices, rows)
    Total* totals;                               // (slices, rows), or null
    std::atomic<int64_t>* floors;                // (rows,)
};

// `count` products from `begin` on, (rows, count) of the type of x.
void products(const Call& c, int64_t begin, int64_t count, void* out) {
    if (!c.bits) {
        Matvec m = c.plain;
        const int64_t bytes = bytes_of(m.type);
        m.weight = static_cast<const char*>(m.weight) + begin * m.weight_stride * bytes;
        if (m.bias) m.bias = static_cast<const char*>(m.bias) + begin * bytes;
        m.outputs = count, m.out = out;
        return c.level->matvec(m, 0, count, nullptr);
    }
    Integers m = c.whole;
    const int64_t groups = m.inputs / m.group;
    m.weight += begin * m.inputs * m.bits / 8;
    m.scales = static_cast<const char*>(m.scales) + begin * groups * bytes_of(m.scale_type);
    if (m.zeros) m.zeros += begin / 8 * groups * 4;  // begin is a multiple of CHUNK
    if (m.bias) m.bias = static_cast<const char*>(m.bias) + begin * bytes_of(m.type);
    m.outputs = count, m.out = out;
    c.level->integers(m, 0, count, nullptr);
}

void one_slice(const Call& c, int64_t slice) {
    const int64_t end = std::min((slice + 1) * c.slice, c.outputs);
    const int type = c.bits ? c.whole.type : c.plain.type;
    alignas(64) char made[FEW_ROWS * CHUNK * 4];
    float numbers[CHUNK];
    Best best[FEW_ROWS];
    for (int64_t r = 0; r < c.rows; ++r) {
        best[r] = {c.ranks + (slice * c.rows + r) * c.held, c.held, 0, c.floors[r].load(std::memory_order_relaxed)};
        if (c.totals) c.totals[slice * c.rows + r] = {-HUGE_VALF, 0};
    }
    for (int64_t begin = slice * c.slice; begin < end; begin += CHUNK) {
        const int64_t count = std::min(CHUNK, end - begin);
        products(c, begin, count, made);
        for (int64_t r = 0; r < c.rows; ++r) {
            c.inner->widen(type, made + r * count * bytes_of(type), numbers, count);
            c.inner->pick(numbers, count, begin, best[r], c.totals ? c.totals + slice * c.rows + r : nullptr);
        }
    }
    for (int64_t r = 0; r < c.rows; ++r) {
        c.counts[slice * c.rows + r] = best[r].held;
        if (best[r].held < c.wanted) continue;
        // As many as are wanted are not below this one: others need not keep what is.
        int64_t before = c.floors[r].load(std::memory_order_relaxed);
        while (before < best[r].ranks[0] && !c.floors[r].compare_exchange_weak(before, best[r].ranks[0], std::memory_order_relaxed)) {}
    }
}

void slices_of(const void* data, int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) one_slice(*static_cast<const Call*>(data), slice);
}

void together(const Call& c, int64_t slices, int64_t row, int64_t* all, float* values, int64_t* indices, float* log_sum) {
    int64_t count = 0;
    for (int64_t s = 0; s < slices; ++s) {
        const int64_t* from = c.ranks + (s * c.rows + row) * c.held;
        count = std::copy(from, from + c.counts[s * c.rows + row], all + count) - all;
    }
    std::partial_sort(all, all + c.wanted, all + count, std::greater<int64_t>());
    for (int64_t i = 0; i < c.wanted; ++i) values[i] = number_of(all[i]), indices[i] = index_of(all[i]);
    if (!log_sum) return;
    float most = -HUGE_VALF;
    double sum = 0;
    for (int64_t s = 0; s < slices; ++s) most = std::max(most, c.totals[s * c.rows + row].most);
    for (int64_t s = 0; s < slices; ++s) {
        const Total& t = c.totals[s * c.rows + row];
        if (t.sum != t.sum) sum = t.sum;
        else if (t.sum > 0) sum += t.most == most ? t.sum : t.sum * std::exp(double(t.most) - double(most));
    }
    *log_sum = sum == 0 ? -HUGE_VALF : float(double(most) + std::log(sum));
}

}  // namespace
}  // namespace quintet

using namespace quintet;

extern "C" {

int quintet_head_topk(int bits, int type, int scale_type, int64_t rows, int64_t inputs, int64_t outputs, int64_t group,
                      const void* weight, int64_t stride, const void* scales, const uint8_t* zeros, const void* x,
                      int64_t x_stride, const void* bias, int64_t wanted, float* values, int64_t* indices, float* log_sums,
                      int64_t threads) {
    const Level* level = chosen_level();
    if (!level || !known_type(type) || rows < 1 || rows > FEW_ROWS || inputs < 1 || outputs < 1) return REFUSED;
    if (inputs > MOST_NUMBERS || outputs > INT32_MAX || inputs > MOST_NUMBERS / outputs || x_stride < 0 || x_stride > MOST_NUMBERS) return REFUSED;
    if (!weight || !x || !values || !indices || wanted < 1 || wanted > outputs || wanted > MOST_WANTED) return REFUSED;
    if (!bits && (stride < 0 || stride > MOST_NUMBERS / outputs)) return REFUSED;
    if (bits && (!scales || !integers_fit(bits, scale_type, inputs, group, zeros))) return REFUSED;
    Call c{};
    c.level = level, c.inner = inner_of(level->name), c.bits = bits, c.rows = rows, c.outputs = outputs, c.wanted = wanted;
    const int64_t chunks = (outputs + CHUNK - 1) / CHUNK;
    c.slice = CHUNK * std::max<int64_t>(1, chunks / SLICES);
    c.held = std::min(wanted, c.slice);
    const int64_t slices = (outputs + c.slice - 1) / c.slice;
    const size_t prepared = (bits ? level->packed_bytes(type, AS_THEY_ARE, inputs) : level->matvec_bytes(type, inputs)) * size_t(whole_strips(rows));
    const size_t ranks = size_t(slices * c.held) * 8, each = size_t(slices * rows);
    if (!arena.reset(prepared + ranks * size_t(rows + 1) + each * (8 + sizeof(Total)) + sizeof(std::atomic<int64_t>) * FEW_ROWS + 8 * 64))
        return NO_MEMORY;
    void* room = arena.take(prepared);
    c.ranks = static_cast<int64_t*>(arena.take(ranks * size_t(rows)));
    auto* all = static_cast<int64_t*>(arena.take(ranks));
    c.counts = static_cast<int64_t*>(arena.take(each * 8));
    c.totals = log_sums ? static_cast<Total*>(arena.take(each * sizeof(Total))) : nullptr;
    c.floors = static_cast<std::atomic<int64_t>*>(arena.take(sizeof(std::atomic<int64_t>) * FEW_ROWS));
    for (int64_t r = 0; r < rows; ++r) new (c.floors + r) std::atomic<int64_t>(INT64_MIN);
    int64_t bytes = inputs * bytes_of(type);
    if (bits) {
        Integers& m = c.whole;
        m.type = type, m.bits = bits, m.scale_type = scale_type, m.rows = rows, m.inputs = inputs, m.outputs = outputs, m.group = group;
        m.weight = static_cast<const uint8_t*>(weight), m.scales = scales, m.zeros = zeros;
        m.x = x, m.x_stride = x_stride, m.bias = bias, m.prepared = room;
        level->integers_prepare(m, 0, rows);
        bytes = inputs * bits / 8 + inputs / group * bytes_of(scale_type);
    } else {
        c.plain = {type, rows, inputs, outputs, weight, stride, x, x_stride, bias, nullptr, room};
        level->matvec_prepare(c.plain, 0, rows);
    }
    share(slices_of, &c, slices, c.slice * bytes, threads, 1);
    for (int64_t r = 0; r < rows; ++r)
        together(c, slices, r, all, values + r * wanted, indices + r * wanted, log_sums ? log_sums + r : nullptr);
    return DONE;
}

}  // extern "C"
