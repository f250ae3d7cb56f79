// What the functions that Python calls ask of the numbers they are given: such that no loop runs wild and no sum overflows.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace quintet {

constexpr int64_t MOST_NUMBERS = int64_t(1) << 40;  // of a tensor: sums and products of such stay in range

static inline bool known_type(int type) { return type >= FP32 && type <= FP16; }

// Whether whole numbers of 8 or 4 bits, in groups of so many inputs that share a scale, are in a layout that `Integers` has.
static inline bool integers_fit(int bits, int scale_type, int64_t inputs, int64_t group, const void* zeros) {
    if ((bits != 4 && bits != 8) || (bits == 8 && zeros) || !known_type(scale_type)) return false;
    if (group < 1 || group > inputs || inputs % group) return false;
    return group % GROUP == 0 || (bits == 8 && group == inputs);
}

// Whether strides of texts, heads and places stay in range; there is one of each at least.
static inline bool strides_fit(const int64_t* strides, int64_t texts, int64_t heads, int64_t places) {
    const int64_t sizes[] = {texts, heads, places};
    for (int i = 0; i < 3; ++i)
        if (strides[i] < 0 || strides[i] > MOST_NUMBERS / sizes[i]) return false;
    return true;
}

}  // namespace quintet
