// The output pipeline of one element in plain C++.
#pragma once

#include <cstdint>
#include <cstring>

#include "gemm/kernel.h"

namespace qgemm {

template <class T>
void Store(T value, void* out, std::int64_t index) {
  std::memcpy(static_cast<std::uint8_t*>(out) + index * std::int64_t(sizeof(T)), &value, sizeof(T));
}

// What follows the scales, in the order of numerics.
void Finish(const TileArgs& args, int row, int column, float y);

}  // namespace qgemm
