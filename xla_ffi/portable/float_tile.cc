// The micro-kernel of float sums in plain C++.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "gemm/layout.h"
#include "portable/block.h"
#include "portable/epilogue.h"
#include "portable/half.h"
#include "portable/portable.h"

namespace qgemm {
namespace {

template <class T>
float Load(const void* from, std::int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const std::uint8_t*>(from) + index * std::int64_t(sizeof(T)),
              sizeof(T));
  return ToFloat(value);
}

// Element (k, column) of a panel, or of the part of one that begins at a multiple of 16 columns.
template <class T, WType kType>
float WeightAt(const void* panel, std::int64_t width, std::int64_t k, std::int64_t column) {
  constexpr std::int64_t s = ElementsOfStep(kType);
  const std::int64_t step = k / s * width * s;
  if (kType != WType::kF16) return Load<T>(panel, step + column * s + k % s);
  const std::int64_t unit = column / kColumnUnit * s + k % s;
  return Load<T>(panel, step + unit * kColumnUnit + column % kColumnUnit);
}

template <class T, WType kType>
void RunTile(TileArgs* args) {
  const TileKey& key = *args->key;
  const bool subtracts = key.epilogue.w_zero && !key.f32_panel;
  const bool has_partial = key.part == KPart::kMiddle || key.part == KPart::kLast;
  float sums[kMostTileRows][kPanelColumns] = {};
  for (int row = 0; key.f32_panel && has_partial && row < key.rows; ++row) {
    std::copy_n(args->partial + row * kPanelColumns, key.columns, sums[row]);
  }
  for (std::int64_t k = 0; k < args->quads * ElementsOfStep(kType); ++k) {
    float w[kPanelColumns];
    for (int j = 0; j < key.columns; ++j) {
      w[j] = WeightAt<T, kType>(args->b, key.panel_columns, k, j);
      if (subtracts) w[j] -= float(args->column_zeros[j]);  // exact
    }
    if (key.rows == 0) {
      auto* const to = static_cast<float*>(args->out) + k * key.panel_columns;
      std::copy_n(w, key.columns, to);
    }
    for (int row = 0; row < key.rows; ++row) {
      const auto* a = static_cast<const std::uint8_t*>(args->a) + row * args->a_stride;
      const float x = Load<float>(a, k);
      for (int j = 0; j < key.columns; ++j) sums[row][j] = std::fma(x, w[j], sums[row][j]);
    }
  }
  const bool leaves_partial = key.part == KPart::kFirst || key.part == KPart::kMiddle;
  for (int row = 0; row < key.rows; ++row) {
    float* partial = args->partial + row * kPanelColumns;
    for (int j = 0; j < key.columns; ++j) {
      float y = sums[row][j];
      if (key.w == WType::kS8 && (key.epilogue.w_groups || !leaves_partial)) {
        y = y * args->column_scales[j];
      }
      if (has_partial && !key.f32_panel) y = partial[j] + y;
      if (leaves_partial) {
        partial[j] = y;
      } else {
        Finish(*args, row, j, y);
      }
    }
  }
}

void RunBlocks(TileArgs* args) {
  const TileKey& key = *args->key;
  const std::int64_t elements = ElementsOfStep(key.w) * args->group_steps;
  for (int j = 0; j < key.columns; ++j) {
    float sums[kMostTileRows] = {};
    for (std::int64_t g = 0; g < args->groups; ++g) {
      const BlockOfColumn block(*args, g, j);
      for (std::int64_t k = 0; k < elements; ++k) {
        const float w = std::fma(float(block.At(k)), block.Scale(), block.Minimum());
        if (key.rows == 0) {
          static_cast<float*>(args->out)[(g * elements + k) * key.panel_columns + j] = w;
        }
        for (int row = 0; row < key.rows; ++row) {
          const auto* a = static_cast<const std::uint8_t*>(args->a) + row * args->a_stride;
          sums[row] = std::fma(Load<float>(a, g * elements + k), w, sums[row]);
        }
      }
    }
    for (int row = 0; row < key.rows; ++row) Finish(*args, row, j, sums[row]);
  }
}

}  // namespace

TileFn PortableFloatTile(const TileKey& key) {
  if (key.f32_panel && key.rows > 0) return RunTile<float, WType::kF32>;
  if (IsBlocks(key.w)) return RunBlocks;
  return key.w == WType::kF16    ? RunTile<F16, WType::kF16>
         : key.w == WType::kBf16 ? RunTile<Bf16, WType::kBf16>
         : key.w == WType::kF32  ? RunTile<float, WType::kF32>
                                 : RunTile<std::int8_t, WType::kS8>;
}

}  // namespace qgemm
