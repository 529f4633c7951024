// The packed layout of a weight matrix w[K, N], the same on every CPU (format version 1).
//
// Columns come in panels of 64, the last panel narrower: a multiple of 16 columns. K comes in steps
// of 4 bytes of each column: s = 4 elements (quads) of int8, 2 of float16 and bfloat16, 1 of
// float32. With K' = K rounded up to s and width(p) the columns of panel p, element (k, n), p = n /
// 64, is element
//     p * 64 * K' + ((k / s) * width(p) + n % 64) * s + k % s,
// but of float16, whose 16 columns are together for each k,
//     p * 64 * K' + (k / s) * width(p) * s + (n % 64 / 16 * s + k % s) * 16 + n % 16.
// Elements beyond K or N are zero.
//
// Weights in blocks have K in groups, the last one filled up with zeros. Within a panel a group has
// the scales of all columns, their minima if there are such, then steps of 4 bytes of each column:
// 4 elements of kU8; of kU4 8, of which byte i has element i in its low half and i + 4 in the high.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gemm/spec.h"

namespace qgemm {

inline constexpr std::int64_t kPanelColumns = 64;
inline constexpr std::int64_t kColumnUnit = 16;
inline constexpr std::int64_t kQuad = 4;
inline constexpr std::int64_t kStepBytes = 4;  // of a column

constexpr std::int64_t ElementsOfStep(WType w) {
  return w == WType::kF32 ? 1 : w == WType::kU4 ? 8 : IsFloat(w) ? 2 : 4;
}

constexpr std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t RoundUp(std::int64_t a, std::int64_t b) { return CeilDiv(a, b) * b; }

// Long sums: int32 holds K * 255 * 128 up to K = 65,793, and K * 255 * 255 (a weight with zero
// points) up to K = 33,025. Longer K is summed in blocks of this many elements, each exact, added
// up in f32. A weight with a scale per group of K (group > 0) has its groups as blocks.
constexpr std::int64_t KBlock(bool w_zero, std::int64_t group) {
  return group > 0 ? group : w_zero ? 32768 : 65536;
}
constexpr std::int64_t KBlocks(std::int64_t k, bool w_zero, std::int64_t group) {
  return std::max<std::int64_t>(1, CeilDiv(k, KBlock(w_zero, group)));
}

// Of an f32 panel that is made of packed weights so much is made at a time: it stays in the L2
// while all rows of a block meet it.
inline constexpr std::int64_t kF32PanelRows = 1024;

// Groups are whole quads, and their sums fit int32.
constexpr std::int64_t kGroupUnit = 16, kMaxGroup = 32768;
constexpr bool IsGroup(std::int64_t group) {
  return group >= 0 && group <= kMaxGroup && group % kGroupUnit == 0;
}

// Blocks: kernels take four steps at a time.
constexpr bool IsGroupOfBlocks(WType w, std::int64_t group) {
  return group > 0 && group <= kMaxGroup && group % (4 * ElementsOfStep(w)) == 0;
}

struct PackedLayout {
  std::int64_t k, n;
  WType w = WType::kS8;
  std::int64_t group = 0;  // of blocks
  BlockForm blocks{};

  constexpr std::int64_t Groups() const { return IsBlocks(w) ? CeilDiv(k, group) : 0; }
  constexpr std::int64_t StepsOfGroup() const { return group / ElementsOfStep(w); }
  constexpr std::int64_t Steps() const {
    return IsBlocks(w) ? Groups() * StepsOfGroup() : CeilDiv(k, ElementsOfStep(w));
  }
  // Of a column.
  constexpr std::int64_t GroupBytes() const { return blocks.Bytes() + StepsOfGroup() * kStepBytes; }
  constexpr std::int64_t ColumnBytes() const {
    return IsBlocks(w) ? Groups() * GroupBytes() : Steps() * kStepBytes;
  }
  constexpr std::int64_t PaddedK() const { return Steps() * ElementsOfStep(w); }
  constexpr std::int64_t PaddedN() const { return RoundUp(n, kColumnUnit); }
  constexpr std::int64_t Bytes() const { return ColumnBytes() * PaddedN(); }
  constexpr std::int64_t Elements() const { return PaddedK() * PaddedN(); }
  constexpr std::int64_t Panels() const { return CeilDiv(n, kPanelColumns); }
  constexpr std::int64_t PanelWidth(std::int64_t panel) const {
    return std::min(kPanelColumns, PaddedN() - panel * kPanelColumns);
  }
  // In bytes.
  constexpr std::int64_t PanelOffset(std::int64_t panel) const {
    return panel * kPanelColumns * ColumnBytes();
  }
  // Of element (k, n) that is not in a block, as above.
  constexpr std::int64_t ElementOffset(std::int64_t row, std::int64_t column) const {
    const std::int64_t s = ElementsOfStep(w), panel = column / kPanelColumns;
    const std::int64_t of_panel = column % kPanelColumns, of_step = row % s;
    const std::int64_t step = panel * kPanelColumns * PaddedK() + row / s * PanelWidth(panel) * s;
    if (w != WType::kF16) return step + of_panel * s + of_step;
    const std::int64_t unit = of_panel / kColumnUnit * s + of_step;
    return step + unit * kColumnUnit + column % kColumnUnit;
  }
};

}  // namespace qgemm
