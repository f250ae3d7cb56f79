// Threads and the level in use, from library.cpp.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace quintet {

using Work = void (*)(const void*, int64_t, int64_t);

// Runs `work` over pieces of 0 to `total` on the threads of the process' OpenMP runtime, when it is worth waking them.
// A piece is a multiple of `step`.
void share(Work work, const void* arguments, int64_t total, int64_t bytes_each, int64_t threads, int64_t step = 4);

const Level* chosen_level();

}  // namespace quintet
