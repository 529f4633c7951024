// The packed layout of a weight matrix w[K, N] of int8, the same on every CPU (format version 1).
//
// Columns come in panels of 64, the last panel narrower: a multiple of 16 columns. K comes in
// quads. With K4 = K rounded up to 4 and width(p) the columns of panel p, element (k, n), p = n /
// 64, lies at
//     p * 64 * K4 + ((k / 4) * width(p) + n % 64) * 4 + k % 4.
// Elements beyond K or N are zero.
#pragma once

#include <algorithm>
#include <cstdint>

namespace qgemm {

inline constexpr std::int64_t kPanelColumns = 64;
inline constexpr std::int64_t kColumnUnit = 16;
inline constexpr std::int64_t kQuad = 4;

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

// Groups are whole quads, and their sums fit int32.
constexpr std::int64_t kGroupUnit = 16, kMaxGroup = 32768;
constexpr bool IsGroup(std::int64_t group) {
  return group >= 0 && group <= kMaxGroup && group % kGroupUnit == 0;
}

struct PackedLayout {
  std::int64_t k, n;

  constexpr std::int64_t PaddedK() const { return RoundUp(k, kQuad); }
  constexpr std::int64_t PaddedN() const { return RoundUp(n, kColumnUnit); }
  constexpr std::int64_t Bytes() const { return PaddedK() * PaddedN(); }
  constexpr std::int64_t Panels() const { return CeilDiv(n, kPanelColumns); }
  constexpr std::int64_t PanelWidth(std::int64_t panel) const {
    return std::min(kPanelColumns, PaddedN() - panel * kPanelColumns);
  }
  constexpr std::int64_t PanelOffset(std::int64_t panel) const {
    return panel * kPanelColumns * PaddedK();
  }
};

}  // namespace qgemm
