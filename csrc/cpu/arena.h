// Memory of one call, kept for the next one of the same thread.
#pragma once

#include <cstdlib>

namespace quintet {

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
    void* take(size_t bytes) {
        void* made = memory + used;
        used += (bytes + 63) / 64 * 64;
        return made;
    }
};

}  // namespace quintet
