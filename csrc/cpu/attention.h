// Attention as an operation of its own: what Python says, and how the work is cut.
//
// Letters: B texts, H query heads, G key/value heads, R = H / G heads of a group, T new tokens, S keys, D numbers in a head.
#pragma once

#include <cstdint>

namespace quintet {

// Mirrored in kernels/attention.py. Strides count numbers, of texts, heads and places; a head is in one piece.
struct AttentionCall {
    int32_t type;        // of queries, keys, values and out
    int32_t sinks_type;
    int64_t texts, heads, groups, tokens, keys, head;
    const void* queries;  // (B, H, T, D)
    const void* stored;   // keys (B, G, S, D)
    const void* values;   // (B, G, S, D)
    void* out;            // (B, H, T, D)
    int64_t query_strides[3], key_strides[3], value_strides[3], out_strides[3];
    int64_t past;            // place of the key of the first query
    int64_t window;          // keys that a query sees, its own included; 0 for all
    int64_t causal;          // 0: every query sees all keys
    double scale;            // above 0
    const uint8_t* padding;  // (B, S), 0 for keys that nobody sees, rows `padding_stride` apart; or null
    int64_t padding_stride;
    const void* sinks;       // (H,) of `sinks_type`, or null
    int64_t threads;
};

constexpr int64_t KEY_BLOCK = 128;   // keys that are packed together, and whose scores are summed up at a time
constexpr int64_t ROW_BLOCK = 48;    // rows, which are heads of a token, that a thread takes at a time
constexpr int64_t KEY_PIECE = 512;   // keys of a text that a thread takes at a time for a few tokens
constexpr int64_t FEW_TOKENS = 4;    // up to here keys are read where they are

// Blocks and pieces are counted from the first key of a text that is not padding, so that a text's result is the same
// in every batch.
struct Attention {
    const AttentionCall* call;
    const int64_t* first;   // (B,): that key
    const int64_t* starts;  // (B,): the first block, or piece, that a query sees
    const uint8_t* holes;   // (B,): whether padding follows
    int64_t count;          // blocks, or pieces, of each text, at most
    int64_t first_pair;     // pairs of a text and a group that are packed at the moment begin here
    char* memory;           // packed blocks (pairs, count, ...); or what pieces gave, (B, T, G, count, ...)
    int64_t bytes;          // of one of these
    int* no_memory;         // set when a thread found none
};

}  // namespace quintet
