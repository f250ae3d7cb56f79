// Work that threads share.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quintet {

using Work = void (*)(const void*, int64_t, int64_t);
using Worker = void (*)(const void*, int64_t, int64_t, void*);  // with memory of the thread's own

// Looks for the OpenMP runtime of the process; once.
void find_threads();

// The path of what was found, or nothing.
const char* threads_runtime();

// Runs `work` over pieces of 0 to `total` on the threads of the process' OpenMP runtime, when it is worth waking them.
// A piece is a multiple of `step`.
void share(Work work, const void* arguments, int64_t total, int64_t bytes_each, int64_t threads, int64_t step = 4);

// Runs `work(arguments, 0, 1)` with the threads held together: each `share` in it costs some words in memory and not a start
// of all threads; who comes late takes part in what comes next.
void together_do(Work work, const void* arguments, int64_t threads);

// How many threads are worth it, and what each takes at a time.
struct Plan {
    int64_t threads, chunk;
};

Plan plan(int64_t total, int64_t bytes_each, int64_t threads, int64_t step = 4);

// As `share`, by a plan, with `memory_each` bytes of `memory` for each thread.
void share_with(Worker work, const void* arguments, int64_t total, Plan plan, char* memory = nullptr, size_t memory_each = 0);

}  // namespace quintet
