// The functions that Python calls (kernels/loader.py tells ctypes of their arguments), and what they return.
//
// What holds for all of them:
// - `type`, `scale_type` and so on are a Type; `activations` are Activations (kernels.h).
// - Tensors are contiguous where no stride is said, and may start at any byte. Strides count numbers, not bytes.
// - x and out are of `type`, and so is a bias, which is null where there is none.
// - `threads`: so many at most; with 1 or less, or without a runtime of OpenMP, the caller's alone. They change no bit.
// - An int is a Result where nothing else is said; unless it is DONE, nothing that was written counts. How long buffers are
//   is not known here: the caller has checked that.
// - Several threads may call at once, after one has called quintet_choose.
#pragma once

#include <cstdint>

namespace quintet {

enum Result : int {
    DONE = 0,
    REFUSED = 1,     // sizes, types or kinds that there cannot be, null where there must be something, or no level chosen
    NO_MEMORY = 2,   // for what lies between
    BAD_EXPERT = 3,  // an index that is none of an expert
};

struct AttentionCall;  // attention.h
struct Block;          // blocks.h
struct StepCall;

}  // namespace quintet

extern "C" {

// Changes with every change of the functions below; the loader compares it with what it was written for.
int quintet_version();

// Whether this CPU has the instructions of a level: 1 yes, 0 no, -1 there is no level of that name in this build.
int quintet_has(const char* name);

// Takes this level from now on, and at the first call looks for threads. REFUSED for one that there is not.
int quintet_choose(const char* name);

// Path of the OpenMP runtime whose threads are used, "" for none.
const char* quintet_runtime();

// out (rows, outputs) = x (rows, inputs) @ weight.T + bias, with a weight (outputs, inputs) of `type`; rows of x and of the
// weight lie `x_stride` and `weight_stride` apart. Bias (outputs,).
int quintet_matvec(int type, int64_t rows, int64_t inputs, int64_t outputs, const void* weight, int64_t weight_stride,
                   const void* x, int64_t x_stride, const void* bias, void* out, int64_t threads);

// The same, made for many rows of bfloat16 and an even number of inputs; what it is not made for it leaves to the other.
int quintet_matmul(int type, int64_t rows, int64_t inputs, int64_t outputs, const void* weight, int64_t weight_stride,
                   const void* x, int64_t x_stride, const void* bias, void* out, int64_t threads);

// The same with a weight in MXFP4 of inputs in `groups` of 32: blocks (outputs, groups, 16), two numbers in a byte, the first
// in its low half, and scales (outputs, groups), a power of two each.
int quintet_mxfp4_matvec(int type, int activations, int64_t rows, int64_t groups, int64_t outputs, const uint8_t* blocks,
                         const uint8_t* scales, const void* x, int64_t x_stride, const void* bias, void* out,
                         int64_t threads);

// The same with a weight of whole numbers of `bits` 8, (outputs, inputs), or 4, (outputs, inputs / 2), each times the scale of
// its group: scales (outputs, inputs / group) of `scale_type`. `group` is a multiple of 32 that divides inputs; or, with 8
// bits, inputs, however many. Zeros, of 4 bits only: (ceil(outputs / 8), inputs / group) words of 4 bytes, or null for 8.
int quintet_integers(int bits, int type, int scale_type, int activations, int64_t rows, int64_t inputs, int64_t outputs, int64_t group,
                     const uint8_t* weight, const void* scales, const uint8_t* zeros, const void* x, int64_t x_stride,
                     const void* bias, void* out, int64_t threads);

// out (rows, hidden) = for each row of x (rows, hidden), the sum of weights * what the experts that it chose make of it: gate
// and up, clamped SwiGLU (`alpha`, `limit`), down; all in MXFP4. `inner` is F, the width of an expert; F and hidden are
// multiples of 32. gate_up_blocks (experts, 2 F, hidden / 32, 16), rows of gate and up in turn; gate_up_scales (experts, 2 F,
// hidden / 32); gate_up_bias (experts, 2 F); down_blocks (experts, hidden, F / 32, 16); down_scales (experts, hidden, F / 32);
// down_bias (experts, hidden). `indices` and `weights` (rows, chosen) of each row in the order of its sum, which is by rising
// experts.
int quintet_mxfp4_experts(int type, int activations, int64_t rows, int64_t experts, int64_t chosen, int64_t hidden, int64_t inner,
                          const uint8_t* gate_up_blocks, const uint8_t* gate_up_scales, const void* gate_up_bias,
                          const uint8_t* down_blocks, const uint8_t* down_scales, const void* down_bias,
                          const int64_t* indices, const float* weights, const void* x, void* out, float alpha,
                          float limit, int64_t threads);

// The output head: for each of 1 to 8 rows of x (rows, inputs) the `wanted` best, at most 1,024, of the products with a
// weight of `bits` 0 (of `type`, rows `stride` apart), 8 or 4 (as for quintet_integers). values and indices (rows, wanted):
// the best first, of equal ones the lowest index first. log_sums (rows,): log(sum e^x) over all outputs; or null.
int quintet_head_topk(int bits, int type, int scale_type, int64_t rows, int64_t inputs, int64_t outputs, int64_t group,
                      const void* weight, int64_t stride, const void* scales, const uint8_t* zeros, const void* x,
                      int64_t x_stride, const void* bias, int64_t wanted, float* values, int64_t* indices, float* log_sums,
                      int64_t threads);

// out (rows, size): a norm of each row of x (rows, size), of `kind` 0 (layer norm) or 1 (RMS norm), with weight and bias
// (size,) of `weight_type`, the bias or null. With a residual (rows, size) it is the norm of their sum, which is written to
// total (rows, size); residual and total are null together.
int quintet_norm(int kind, int type, int weight_type, int64_t rows, int64_t size, const void* x, const void* residual, void* total,
                 const void* weight, const void* bias, double eps, void* out, int64_t threads);

// out (texts, heads, tokens, head) = x of that shape with the first `size` numbers of each head rotated, number i with number
// i + size / 2. `strides` of x: of texts, heads and tokens. cosines and sines (angle_texts, tokens, size) of `angle_type`;
// angle_texts is texts, or 1 for the same in all.
int quintet_rope(int type, int angle_type, int64_t texts, int64_t heads, int64_t tokens, int64_t head, int64_t size, int64_t angle_texts,
                 const void* x, const int64_t* strides, const void* cosines, const void* sines, void* out, int64_t threads);

// Attention over stored keys and values; attention.h has the shapes.
int quintet_attention(const quintet::AttentionCall* call);

// 1 to 8 new tokens, over all texts, through `count` blocks of a model: call->out = what they make of call->x, or of the
// embeddings of call->ids; with the model's last norm and the scores of its head where the call asks for them. Keys and values of
// the tokens are written to the stores of each block; blocks.h has the shapes.
int quintet_blocks(const quintet::Block* blocks, int64_t count, const quintet::StepCall* call);

// Asks for the lines of memory at `count` addresses, which need not be anybody's: who reads them next does not wait for each.
int quintet_ask_for(const void* const* addresses, int64_t count);

// Sizes of the structures, so that their mirrors in Python can be compared with what was compiled.
int64_t quintet_attention_bytes();
int64_t quintet_block_bytes();
int64_t quintet_step_bytes();

}  // extern "C"
