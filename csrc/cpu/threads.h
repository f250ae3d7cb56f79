// Threads and the level in use, from library.cpp.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace quintet {

using Work = void (*)(const void*, int64_t, int64_t);

// Runs `work` over pieces of 0 to `total` on the threads of the process' OpenMP runtime, when it is worth waking them.
// A piece is a multiple of `step`.
void share(Work work, const void* arguments, int64_t total, int64_t bytes_each, int64_t threads, int64_t step = 4);

// Runs `work(arguments, 0, 1)` with the threads held together: each `share` in it costs a word in memory and not a start
// of all threads. Pieces go to whoever is free; who comes late takes part in what comes next.
void together_do(Work work, const void* arguments, int64_t threads);

const Level* chosen_level();

}  // namespace quintet
