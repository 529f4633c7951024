// Packing, element by element against the formula of layout.h.
#pragma once

#include <cstdint>
#include <cstdio>
#include <vector>

#include "gemm/pack.h"
#include "pools.h"
#include "random.h"
#include "runtime/cpu.h"

namespace qgemm::test {

// `offset`: bytes from an aligned address to where the result begins.
inline bool PacksByFormula(const PackedLayout& layout, std::int64_t offset) {
  const std::int64_t k = layout.k, n = layout.n, blocks = KBlocks(k, false, 0);
  std::vector<std::int8_t> w(k * n), packed(layout.Bytes() + offset, 77);
  for (auto& value : w) value = std::int8_t(Random(-128, 127));
  std::vector<std::int32_t> sums(blocks * n, 77), expected(blocks * n, 0);
  Threads pool;
  Pack(layout, {w.data(), nullptr, packed.data() + offset, sums.data()}, pool, 2);
  std::int64_t wrong = 0;
  for (std::int64_t row = 0; row < layout.PaddedK(); ++row) {
    for (std::int64_t column = 0; column < layout.PaddedN(); ++column) {
      const std::int64_t panel = column / kPanelColumns;
      const std::int64_t quads = row / kQuad * layout.PanelWidth(panel) + column % kPanelColumns;
      const std::int8_t found =
          packed[offset + layout.PanelOffset(panel) + quads * kQuad + row % kQuad];
      const bool valid = row < k && column < n;
      const std::int8_t value = valid ? w[row * n + column] : std::int8_t(0);
      wrong += found != value;
      if (valid) expected[row / KBlock(false, 0) * n + column] += value;
    }
  }
  if (wrong == 0 && sums == expected) return true;
  std::printf("FAILED packing %lldx%lld: %lld of its elements\n", (long long)k, (long long)n,
              (long long)wrong);
  return false;
}

inline bool RunPacking() {
  bool good = true;
  for (const std::int64_t offset : {0, 1}) {
    good = PacksByFormula({37, 100}, offset) && good;
    good = PacksByFormula({66000, 17}, offset) && good;
    // Streamed past the caches, where the result is aligned.
    const std::int64_t large = std::int64_t(Cpu().l3_bytes) / 4 + 1;
    good = PacksByFormula({large / 1000 + 3, 1000}, offset) && good;
  }
  return good;
}

}  // namespace qgemm::test
