// A step through the blocks of a model, of a few tokens or of a prompt: what Python fills in, and the parts that each level of instructions
// compiles for itself.
//
// Letters: rows R = B * T, B texts with T new tokens each; H query heads, G key/value heads, D numbers in a head; E width.
#pragma once

#include <cstdint>

#include "attention.h"
#include "kernels.h"

namespace quintet {

// The structures below are mirrored field by field in fused/structs.py.

struct Linear {
    int32_t kind;        // 0 to 2: numbers of that Type; 3: float32 stored (inputs, outputs); 8 or 4: whole numbers of so many bits
    int32_t scale_type;  // Type of the scales
    int32_t activations; // of packed weights and many rows: what x is multiplied as
    int64_t inputs, outputs;
    int64_t stride;      // of plain weights: numbers from a row (of `kind` 3: an input) to the next
    int64_t group;       // inputs that share a scale
    const void* weight;
    const void* scales;
    const void* zeros;
    const void* bias;    // of the type of the step, or null
};

struct Norm {
    int32_t kind;  // 0: layer norm; 1: RMS norm
    int32_t type;  // of weight and bias
    const void* weight;
    const void* bias;  // or null
    double eps;
};

enum Order : int32_t { PRE = 0, POST = 1, PARALLEL = 2 };
enum Layout : int32_t { SEPARATE = 0, IN_TURN = 1, BY_HEAD = 2 };
enum Activation : int32_t { RELU = 0, SILU = 1, GELU = 2, GELU_TANH = 3 };

struct Block {
    int32_t order, layout, activation, gated;
    int64_t heads, groups, head;  // H, G, D
    int64_t window;               // keys that a query sees, its own included; 0 for all
    double scale;
    Norm norm1, norm2;
    Linear q, k, v, out;  // in the layouts of one matrix `q` is all three
    Linear gate, up, down;
    const void* sinks;  // (H,) of `sinks_type`, or null
    int32_t sinks_type;
    // Experts in MXFP4, with `router`, in the place of gate, up and down; 0 for none.
    int32_t experts, chosen, activations;
    float alpha, limit;
    int64_t inner;
    Linear router;
    const uint8_t *gate_up_blocks, *gate_up_scales;
    const void* gate_up_bias;
    const uint8_t *down_blocks, *down_scales;
    const void* down_bias;
    // Of this step: stores (B, G, places, D) of `stored`, with strides of texts, heads and places.
    void *keys, *values;
    int64_t key_strides[3], value_strides[3];
    int64_t place;           // where the first new token goes
    const uint8_t* padding;  // (B, padding_length), 1 for real tokens, by slot; or null
    int64_t padding_stride, padding_length;
    int64_t slot;            // of place 0 of the stores
    int64_t stored;          // the step's type, or EIGHT_BITS: then heads are of eight_bits(D) bytes, and strides too
};

// A head in 8 bits: D whole numbers, and behind them a scale in bfloat16 for each 32 of them, the last ones perhaps fewer.
constexpr int EIGHT_BITS = 3;
constexpr int64_t EIGHT_GROUP = 32;
static constexpr int64_t eight_bits(int64_t head) { return head + 2 * ((head + EIGHT_GROUP - 1) / EIGHT_GROUP); }

struct StepCall {
    int32_t type;             // of x, out, plain weights, stores
    int32_t rope_type;
    int64_t texts, tokens, width;  // B, T, E
    const void* x;            // (R, E), or null: then they are the embeddings of `ids`
    void* out;                // (R, E)
    const void *cosines, *sines;  // (B or 1, T, rope_size), or null
    int64_t rope_size, rope_texts;
    int64_t threads;
    // Tables (vocabulary, E) and (positions, E) of the step's type, and the rows of them that are added; the second or null.
    const int64_t *ids, *places;  // (R,)
    const void *id_table, *place_table;
    int64_t vocabulary, positions;
    // Behind the blocks, where it is asked for.
    int32_t ends;             // whether `last` makes `out` of what the blocks give
    int32_t scored;           // whether `head` makes scores of `out`
    Norm last;
    Linear head;              // of `kind` 3 not
    int64_t wanted;           // so many of the best scores, as quintet_head_topk; or 0 for all
    void* scores;             // (R, outputs) of `type`
    float* best;              // (R, wanted)
    int64_t* best_ids;        // (R, wanted)
};

// Queries in float32, (R, H, D), over the stores; `out` (R, H * D) of the step's type. By ranges of R * G.
struct Attend {
    int type;
    const Block* block;
    int64_t tokens;
    const float* queries;
    void* out;
};

constexpr int64_t PIECES = 16;

// The best of a range of numbers, as ranks: the greater the better. A number is above another, or as great with a lower
// index; NaN is above all. `floor`: what is not above it cannot be among the best of all.
struct Best {
    int64_t* ranks;  // a heap, the worst in front, of `held`
    int64_t wanted, held, floor;
};

static inline int32_t key_of(float x) {  // in the order of the numbers
    int32_t bits;
    x += 0.0f;  // one zero
    __builtin_memcpy(&bits, &x, 4);
    return x != x ? INT32_MAX : bits ^ (bits >> 31 & 0x7fffffff);
}
static inline int64_t rank_of(int32_t key, int64_t index) { return int64_t(uint64_t(uint32_t(key)) << 32 | (0xffffffffu - uint32_t(index))); }
static inline int64_t index_of(int64_t rank) { return int64_t(0xffffffffu - uint32_t(rank & 0xffffffff)); }
static inline float number_of(int64_t rank) {
    const int32_t key = int32_t(rank >> 32), bits = key ^ (key >> 31 & 0x7fffffff);
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}

// The sum of e^x as e^most * sum.
struct Total {
    float most;
    double sum;
};

struct Inner {
    const char* name;
    void (*norm)(const Norm&, const float* x, int64_t rows, int64_t size, int type, void* out);
    // in place of x, float32
    void (*norm_wide)(const Norm&, float* x, int64_t rows, int64_t size);
    void (*widen)(int type, const void* from, float* to, int64_t count);
    void (*narrow)(int type, const float* from, void* to, int64_t count);
    void (*add)(int type, const void* from, float* to, int64_t count);
    // x (D,) rotated in its first `size` numbers
    void (*rotate)(int type, const void* cosines, const void* sines, int64_t size, float* x);
    // x (count,) as a head in 8 bits: the scale is a 127th of the largest number of its group
    void (*encode)(const float* x, int64_t count, void* to);
    void (*attend)(const Attend&, int64_t begin, int64_t end);
    // out = f(gate) * up, or f(gate) where up is null
    void (*activate)(int activation, int type, const void* gate, const void* up, void* out, int64_t count);
    void (*softmax)(float* x, int64_t count);
    // a product with a weight of `kind` 3: sums over PIECES runs of inputs, (PIECES, rows, outputs), by ranges of pieces;
    // and their sum, by ranges of outputs
    void (*columns)(const Linear&, int64_t rows, const float* x, float* partial, int64_t begin, int64_t end);
    void (*columns_sum)(const Linear&, int64_t rows, const float* partial, float* out, int64_t begin, int64_t end);
    // Many tokens: bytes of a packed block of keys and values; blocks to pack, pairs * count of them; and blocks of rows
    int64_t (*attention_bytes)(int type, int64_t head);
    void (*attention_pack)(const Attention&, int64_t begin, int64_t end);
    void (*attention_rows)(const Attention&, int64_t begin, int64_t end);
    // A few: pieces of keys, B * T * G * count of them; and their sums, B * T * G
    void (*attention_pieces)(const Attention&, int64_t begin, int64_t end);
    void (*attention_joined)(const Attention&, int64_t begin, int64_t end);
    // numbers `first` and on of a row: those among its best, and their part of the sum (null: not asked)
    void (*pick)(const float* x, int64_t count, int64_t first, Best&, Total*);
};

// By the name of a level, see library.cpp.
const Inner* inner_of(const char* name);

extern const Inner portable_inner;
extern const Inner avx2_inner;
extern const Inner avx512_inner;
extern const Inner amx_inner;
extern const Inner neon_inner;

}  // namespace quintet
