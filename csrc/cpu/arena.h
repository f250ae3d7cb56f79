// Memory of one call, kept for the next one of the same thread.
#pragma once

#include <cstddef>
#include <cstdlib>

namespace quintet {

// Bytes that `Arena::take` hands out for so many: whole lines of the cache.
static inline size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

struct Arena {
    char* memory = nullptr;
    size_t size = 0, used = 0;
    ~Arena() { std::free(memory); }
    bool reset(size_t wanted) {
        used = 0;
        if (wanted <= size) return true;
        std::free(memory);
        size = (wanted + 4095) / 4096 * 4096;
        memory = static_cast<char*>(std::aligned_alloc(64, size));
        if (!memory) size = 0;
        return memory != nullptr;
    }
    // Gives memory back that is more than so much.
    void keep(size_t most) {
        if (size <= most) return;
        std::free(memory);
        memory = nullptr, size = used = 0;
    }
    void* take(size_t bytes) {
        void* made = memory + used;
        used += aligned(bytes);
        return made;
    }
};

}  // namespace quintet
