// The instructions of tiles (AMX), in assembler: intrinsics of some compilers do not say what memory they read.
//
// Everything is in an unnamed namespace: the linker must not take one level's code for another's.
#pragma once

#include <cstdint>

#if defined(__clang__)  // which looks at what is in assembler too
#define QUINTET_TILED __attribute__((target("amx-tile,amx-bf16,amx-int8")))
#else
#define QUINTET_TILED
#endif

namespace quintet {
namespace {

// Lines and bytes of a line of each of eight tiles: 16 and 64, which is the most, unless something else is said.
struct TileShapes {
    alignas(64) uint8_t wanted[64] = {1};
    TileShapes() {
        for (int tile = 0; tile < 8; ++tile) set(tile, 16, 64);
    }
    void set(int tile, int64_t lines, int64_t bytes) { wanted[16 + 2 * tile] = uint8_t(bytes), wanted[48 + tile] = uint8_t(lines); }
};

// A thread has tiles for as long as this lives.
struct Tiles {
    QUINTET_TILED explicit Tiles(const TileShapes& shapes) { __asm__ volatile("ldtilecfg %0" : : "m"(shapes.wanted)); }
    QUINTET_TILED ~Tiles() { __asm__ volatile("tilerelease" : : : "memory"); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

}  // namespace
}  // namespace quintet

// "memory": what was stored before must be there, and what is stored here may be read later. `stride` are bytes.
#define QUINTET_TILE_LOAD(tile, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(int64_t(stride)) : "memory")
#define QUINTET_TILE_STORE(tile, to, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(int64_t(stride)) : "memory")
#define QUINTET_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
#define QUINTET_TILE_ADD(sum, weight, x) __asm__ volatile("tdpbf16ps %%tmm" #x ", %%tmm" #weight ", %%tmm" #sum : :)
#define QUINTET_TILE_ADD_BYTES(sum, weight, x) __asm__ volatile("tdpbssd %%tmm" #x ", %%tmm" #weight ", %%tmm" #sum : :)
