// What a level of instructions offers: plain functions over raw pointers, without threads, by ranges of outputs.
//
// Letters: rows R of x; inputs and outputs of a weight; groups G of 32 inputs; k experts of inner width F.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quintet {

enum Type : int { FP32 = 0, BF16 = 1, FP16 = 2 };

// Bytes of a number. Static, so that no level takes what another compiled with its instructions.
static constexpr int64_t bytes_of(int type) { return type == FP32 ? 4 : 2; }

// What packed weights are multiplied with: x as it is, or rounded to 8 bits in blocks of 32 inputs; or as it is, with sums in the
// order of tiles, where the level has them and x is of bfloat16 (otherwise that is the first).
enum Activations : int { AS_THEY_ARE = 0, ROUNDED = 1, IN_TILES = 2 };

// Numbers that may start at any byte, as in a mapped file.
typedef float Loose32 __attribute__((aligned(1)));
typedef uint16_t Loose16 __attribute__((aligned(1)));

constexpr int64_t FEW_ROWS = 8;       // up to here weights are unpacked for each call of a range
constexpr int64_t STRIP = 16;         // rows that are prepared together where there are tiles: memory is for a multiple of it
static constexpr int64_t whole_strips(int64_t rows) { return (rows + STRIP - 1) / STRIP * STRIP; }
constexpr int64_t GROUP = 32;        // numbers that share a scale in MXFP4
constexpr int64_t GROUP_BYTES = 16;  // two numbers in a byte, the first in its low half

// out = x @ weight.T + bias. Everything but the sums is of `type`.
struct Matvec {
    int type;
    int64_t rows, inputs, outputs;
    const void* weight;     // (outputs, inputs), rows `weight_stride` elements apart
    int64_t weight_stride;
    const void* x;          // (rows, inputs), rows `x_stride` elements apart
    int64_t x_stride;
    const void* bias;       // (outputs,) or null
    void* out;              // (rows, outputs), contiguous
    void* prepared;         // what `prepare` made of x
};

// The same with a weight in MXFP4: blocks (outputs, G, 16) and scales (outputs, G), both contiguous.
struct Packed {
    int type, activations;
    int64_t rows, groups, outputs;
    const uint8_t* blocks;
    const uint8_t* scales;
    const void* x;          // (rows, 32 G)
    int64_t x_stride;
    const void* bias;
    void* out;
    void* prepared;
};

// The same with a weight of whole numbers, each times the scale of its group. 8 bits: signed bytes (outputs, inputs), and
// zeros null. 4 bits: two in a byte, the first in its low half, as code - zero; inputs and group are multiples of 32.
struct Integers {
    int type, bits, scale_type, activations;
    int64_t rows, inputs, outputs;
    int64_t group;          // inputs that share a scale: a multiple of 32 that divides inputs, or inputs
    const uint8_t* weight;  // contiguous
    const void* scales;     // (outputs, inputs / group), contiguous
    const uint8_t* zeros;   // null for 8, or words (ceil(outputs / 8), inputs / group): output o in bits 4 (o % 8) and on
    const void* x;
    int64_t x_stride;
    const void* bias;
    void* out;
    void* prepared;
};

constexpr int64_t OUTER = 64;  // outputs of experts that a thread sums up at a time

// Rows through the experts that they choose: gate and up (E, 2F, ...), clamped SwiGLU, down (E, D, ...), sum of weights *
// results. Choices are sorted by expert; those of a row are summed up in that order.
struct Experts {
    int type, activations;
    int64_t rows, chosen, hidden, inner;  // chosen: n k of all rows; D and F are multiples of 32
    const uint8_t *gate_up_blocks, *gate_up_scales;
    const void* gate_up_bias;             // (E, 2F)
    const uint8_t *down_blocks, *down_scales;
    const void* down_bias;                // (E, D)
    int64_t count;                        // experts that are asked
    const int64_t* asked;                 // (count,), rising
    const int64_t* starts;                // (count + 1,): where the choices of an expert begin
    const int64_t* strips;                // (count + 1,): with tiles, where its strips of x begin
    const int64_t* rows_of;               // (chosen,): row of a choice
    const float* weights;                 // (chosen,)
    const void* x;                        // (rows, D)
    void* out;                            // (rows, D)
    float alpha, limit;
    void* prepared;                       // of x
    float* values;                        // (chosen, F), what the SwiGLU said
    void* prepared_values;
};

// Products of many rows of bfloat16 with weights of that type.
struct Matmul {
    int64_t outputs;  // that are computed together
    int64_t most;     // of a piece
    // Bytes of a prepared row, 0 where x is read as it is; and rows `begin` to `end`, a multiple of STRIP the first one.
    size_t (*bytes)(int64_t inputs);
    void (*prepare)(const Matvec&, int64_t begin, int64_t end);
    size_t (*memory)(int64_t rows, int64_t inputs);  // of a thread
    void (*product)(const Matvec&, int64_t begin, int64_t end, void* memory);
};

struct Level {
    const char* name;
    // Bytes that one row of `inputs` takes when prepared, at most; a multiple of 64. Rows `begin` to `end` are prepared at a time.
    size_t (*matvec_bytes)(int type, int64_t inputs);
    void (*matvec_prepare)(const Matvec&, int64_t begin, int64_t end);
    // Bytes of memory that a thread needs for more than FEW_ROWS rows.
    size_t (*matvec_memory)(int type, int64_t inputs);
    void (*matvec)(const Matvec&, int64_t begin, int64_t end, void* memory);
    // Many rows of bfloat16 with weights as they are stored; inputs are even. Null where nothing is gained by it.
    const Matmul* matmul;
    bool tiles;  // whether there are tiles: for all packed weights with x of 16 bits that is not ROUNDED
    // Of weights of 8 and 4 bits, whatever the format: bytes of a prepared row at most, and memory of a thread.
    size_t (*packed_bytes)(int type, int activations, int64_t inputs);
    size_t (*packed_memory)(int type, int activations, int64_t inputs);
    void (*packed_prepare)(const Packed&, int64_t begin, int64_t end);
    void (*packed)(const Packed&, int64_t begin, int64_t end, void* memory);
    void (*integers_prepare)(const Integers&, int64_t begin, int64_t end);
    void (*integers)(const Integers&, int64_t begin, int64_t end, void* memory);
    // Ranges of rows, or with tiles of strips; of count * F; of chosen, or of strips; of D. Memory is what `packed` needs, and OUTER floats
    // for each row.
    void (*experts_prepare)(const Experts&, int64_t begin, int64_t end, void*);
    void (*experts_inner)(const Experts&, int64_t begin, int64_t end, void* memory);
    void (*experts_between)(const Experts&, int64_t begin, int64_t end, void*);
    void (*experts_outer)(const Experts&, int64_t begin, int64_t end, void* memory);
};

extern const Level portable_level;
extern const Level avx2_level;
extern const Level avx512_level;
extern const Level amx_level;
extern const Level neon_level;

const Level* chosen_level();  // what is in use; null before one is chosen

}  // namespace quintet
