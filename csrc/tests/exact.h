// Buffers of exactly the size that a kernel is told, random numbers that every type holds exactly, and bounds of error.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../cpu/kernels.h"

using quintet::BF16;
using quintet::FP16;
using quintet::FP32;

inline size_t number_bytes(int type) { return type == FP32 ? 4 : 2; }

struct Random {
    uint64_t state;
    uint64_t next() {  // xorshift*
        state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
        return state * 0x2545f4914f6cdd1dull >> 16;
    }
    int64_t below(int64_t most) { return int64_t(next() % uint64_t(most)); }
    int64_t between(int64_t least, int64_t most) { return least + below(most - least + 1); }
    bool one_in(int64_t count) { return below(count) == 0; }
    float number() { return float(between(-64, 64)) / 32; }  // 7 bits: exact in every type
};

// `size` bytes. Under the address sanitizer what lies around them is watched; otherwise a page that nobody may read
// follows them. `odd` makes them start at an odd address.
class Buffer {
public:
    Buffer(size_t size, bool odd) : size_(size) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
        base_ = static_cast<char*>(std::malloc(size + odd + !size));
        data_ = base_ + odd;
#else
        const size_t page = size_t(sysconf(_SC_PAGESIZE));
        mapped_ = (size + odd + page - 1) / page * page + page;
        base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (base_ == MAP_FAILED || mprotect(base_ + mapped_ - page, page, PROT_NONE)) std::abort();
        data_ = base_ + mapped_ - page - size;
        if ((reinterpret_cast<uintptr_t>(data_) & 1) != uintptr_t(odd)) --data_;
#endif
        std::memset(data_, 0xff, size_);  // NaN in every type: what is left unwritten is seen
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
        std::free(base_);
#else
        munmap(base_, mapped_);
#endif
    }
    char* data() const { return data_; }
    const uint8_t* bytes() const { return reinterpret_cast<const uint8_t*>(data_); }
    size_t size() const { return size_; }

    void fill(Random& random) {
        for (size_t i = 0; i < size_; ++i) data_[i] = char(random.below(256));
    }
    void fill(Random& random, uint8_t least, uint8_t most) {
        for (size_t i = 0; i < size_; ++i) data_[i] = char(random.between(least, most));
    }
    void put(int type, int64_t index, float value) {
        char* to = data_ + index * int64_t(number_bytes(type));
        if (type == FP32) {
            std::memcpy(to, &value, 4);
            return;
        }
        uint16_t bits;
        if (type == BF16) {
            uint32_t wide;
            std::memcpy(&wide, &value, 4);
            bits = uint16_t(wide >> 16);
        } else {
            int exponent;
            const float part = std::frexp(std::fabs(value), &exponent);
            bits = value == 0 ? 0 : uint16_t((value < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | (int(part * 2048) & 1023));
        }
        std::memcpy(to, &bits, 2);
    }
    double get(int type, int64_t index) const {
        const char* from = data_ + index * int64_t(number_bytes(type));
        float value;
        if (type == FP32) {
            std::memcpy(&value, from, 4);
            return value;
        }
        uint16_t bits;
        std::memcpy(&bits, from, 2);
        if (type == BF16) {
            const uint32_t wide = uint32_t(bits) << 16;
            std::memcpy(&value, &wide, 4);
            return value;
        }
        const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
        double size = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
        if (exponent == 31) size = mantissa ? NAN : INFINITY;
        return bits & 0x8000 ? -size : size;
    }
    void numbers(int type, Random& random) {
        for (int64_t i = 0; i < int64_t(size_ / number_bytes(type)); ++i) put(type, i, random.number());
    }

private:
    size_t size_, mapped_ = 0;
    char *base_, *data_;
};

// A number of a row of `count` as 8 bits hold it: a multiple of a 127th of the largest of its block of 32.
template <class Get>
double in_8_bits(Get get, int64_t count, int64_t index) {
    float largest = 0;
    for (int64_t i = index / 32 * 32; i < count && i < index / 32 * 32 + 32; ++i) largest = std::fmax(largest, std::fabs(float(get(i))));
    const float scale = largest / 127;
    return scale == 0 ? 0 : double(std::nearbyint(float(get(index)) / scale)) * scale;
}

// What a sum should be, and the sizes of what was added.
struct Sum {
    double value = 0, sizes = 0;
    void add(double term) { value += term, sizes += std::fabs(term); }
};

// Half a step of the type at the exact value, and `loss` of what was added for sums in float32.
inline double bound(int type, const Sum& exact, double loss) {
    const double unit = type == FP32 ? 0x1p-24 : type == BF16 ? 0x1p-8 : 0x1p-11;
    return 1.001 * unit * std::fabs(exact.value) + loss * exact.sizes + 0x1p-25;
}
