// The cache of a family's micro-kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gemm/kernel.h"
#include "runtime/kernel_cache.h"

namespace qgemm {

struct TileKeyHash {
  std::size_t operator()(const TileKey& key) const {
    const Epilogue& e = key.epilogue;
    const std::uint64_t bits = std::uint64_t(key.rows) | std::uint64_t(key.columns) << 4 |
                               std::uint64_t(key.panel_columns) << 12 |
                               std::uint64_t(key.part) << 20 | std::uint64_t(e.out) << 24 |
                               std::uint64_t(e.activation) << 28 | std::uint64_t(e.x_zero) << 32 |
                               std::uint64_t(e.x_scale) << 36 | std::uint64_t(e.w_zero) << 40 |
                               std::uint64_t(e.bias) << 41 | std::uint64_t(key.streams) << 42;
    return std::size_t(bits * 0x9e3779b97f4a7c15ULL);
  }
};

template <class Emitter>
using TileCache = KernelCache<TileKey, TileKeyHash, Emitter>;

}  // namespace qgemm
