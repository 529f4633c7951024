// The cache of a family's micro-kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "gemm/kernel.h"
#include "gemm/names.h"
#include "runtime/kernel_cache.h"

namespace qgemm {

struct TileKeyHash {
  std::size_t operator()(const TileKey& key) const {
    const std::uint64_t bits = std::uint64_t(key.rows) | std::uint64_t(key.columns) << 8 |
                               std::uint64_t(key.panel_columns) << 16 |
                               std::uint64_t(key.part) << 24 | std::uint64_t(key.streams) << 28 |
                               std::uint64_t(key.from_sums) << 29 | BitsOf(key.epilogue) << 32 |
                               std::uint64_t(key.w) << 54 | std::uint64_t(key.blocks.scale) << 57 |
                               std::uint64_t(key.blocks.minimum) << 59 |
                               std::uint64_t(key.f32_panel) << 60;
    const auto end = std::uint64_t(key.short_k) << 6 | std::uint64_t(key.ends) << 5 |
                     std::uint64_t(key.first_row);
    return std::size_t((bits ^ end << 25) * 0x9e3779b97f4a7c15ULL);
  }
};

template <class Emitter>
struct TileCache : KernelCache<TileKey, TileKeyHash, Emitter> {
  // `kind`: of an ISA's families all but the first have one, for names are theirs alone.
  explicit TileCache(Isa isa, const char* kind = "")
      : KernelCache<TileKey, TileKeyHash, Emitter>(std::string(IsaName(isa)) + kind) {}
};

}  // namespace qgemm
