// Products by the transpose of a packed weight (the gradient of x): panels of the transpose, f32,
// are made of the packed weight one at a time, as they are needed.
//
// Panel p has columns k = 64 p, ... of the weight's rows, a row of it each column n of the weight:
// WType::kF32 in layout.h; kF32PanelRows of these at a time. Its values are those that the
// weight stands for, rounded to f32 once: f32(q - zero) * scale, fma(q, scale, minimum) of blocks,
// floats as they are.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gemm/layout.h"
#include "gemm/spec.h"

namespace qgemm {

struct TransposeSource {
  PackedLayout layout;
  const std::int8_t* w;
  const float* scale;                          // [n], or [groups, n]; of kS8
  const std::int32_t* zero;                    // as scale, or null
  std::int64_t group;                          // of scale, 0: none
  std::int64_t first_column = 0, columns = 0;  // which of the weight
};

using TransposeFn = void (*)(const TransposeSource& source, std::int64_t panel, float* to);

inline constexpr std::int64_t kUnitRows = 16;  // of K: within a group, whole steps of any type

// Up to eight columns of the packed weight by 16 elements of K.
struct TransposeUnit {
  const std::uint8_t* steps;  // the first step, from the first column on; null: all beyond K
  std::int64_t step_bytes;    // from step to step
  std::int64_t valid_steps;   // the others are beyond K
  std::int64_t columns;       // 1 to 8
  const float* scale;         // of the columns
  const std::int32_t* zero;
  const std::uint8_t* block_scales;  // of blocks, from the first column on
  std::int64_t minimum_offset;       // bytes from there to the minima
  BlockForm form;
  float* to;               // 16 elements for each column
  std::int64_t to_stride;  // elements from column to column
};

// Calls `run` with every unit of a panel of the transpose.
template <class Run>
void ForUnits(const TransposeSource& source, std::int64_t panel, float* to, const Run& run) {
  constexpr std::int64_t kColumns = 8;
  const PackedLayout& layout = source.layout;
  const std::int64_t s = ElementsOfStep(layout.w), first_k = panel * kPanelColumns;
  const std::int64_t to_width = std::min(kPanelColumns, RoundUp(layout.k, kColumnUnit) - first_k);
  TransposeUnit unit{};
  unit.form = layout.blocks;
  unit.to_stride = to_width;
  const std::int64_t first_panel = source.first_column / kPanelColumns;
  const std::int64_t panels = CeilDiv(source.columns, kPanelColumns);
  for (std::int64_t p = first_panel; p < first_panel + panels; ++p) {
    const auto* base = reinterpret_cast<const std::uint8_t*>(source.w) + layout.PanelOffset(p);
    const std::int64_t width = layout.PanelWidth(p);
    const std::int64_t valid = std::min(width, layout.n - p * kPanelColumns);
    unit.step_bytes = width * kStepBytes;
    for (std::int64_t k = first_k; k < first_k + to_width; k += kUnitRows) {
      const std::uint8_t* steps = base + k / s * unit.step_bytes;
      const std::uint8_t* scales = nullptr;
      if (IsBlocks(layout.w)) {
        scales = base + k / layout.group * width * layout.GroupBytes();
        steps = scales + width * layout.blocks.Bytes() + k % layout.group / s * unit.step_bytes;
      }
      const std::int64_t rest = (layout.PaddedK() - k) / s;
      unit.valid_steps = std::min(rest, kUnitRows / s);
      unit.minimum_offset = width * layout.blocks.ScaleBytes();
      for (std::int64_t j = 0; j < valid; j += kColumns) {
        const std::int64_t n = p * kPanelColumns + j;
        const std::int64_t of_group = source.group > 0 ? k / source.group * layout.n : 0;
        unit.columns = std::min(kColumns, valid - j);
        // The 16 columns of a step of float16 are together, k by k.
        unit.steps = steps + (layout.w == WType::kF16
                                  ? j / kColumnUnit * kColumnUnit * kStepBytes + j % kColumnUnit * 2
                                  : j * kStepBytes);
        if (source.scale != nullptr) unit.scale = source.scale + of_group + n;
        if (source.zero != nullptr) unit.zero = source.zero + of_group + n;
        if (scales != nullptr) unit.block_scales = scales + j * layout.blocks.ScaleBytes();
        unit.to = to + (n - source.first_column) * to_width + (k - first_k);
        run(unit);
      }
    }
  }
}

}  // namespace qgemm
