// Packing, element by element against the formula of layout.h.
#pragma once

#include <cstdint>
#include <cstdio>
#include <set>
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
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = std::int8_t(i * 2654435761U >> 13);
  std::vector<std::int32_t> sums(blocks * n, 77), expected(blocks * n, 0);
  Threads pool;
  Pack(layout, PackOperands{w.data(), nullptr, packed.data() + offset, sums.data()}, pool, 2);
  std::int64_t wrong = 0;
  for (std::int64_t row = 0; row < layout.PaddedK(); ++row) {
    for (std::int64_t column = 0; column < layout.PaddedN(); ++column) {
      const std::int8_t found = packed[offset + layout.ElementOffset(row, column)];
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

inline bool PacksFloatsByFormula(const PackedLayout& layout) {
  std::vector<std::uint16_t> w(layout.k * layout.n), packed(layout.Elements(), 77);
  for (auto& value : w) value = std::uint16_t(Random(0, 65535));
  Threads pool;
  Pack(layout, PackFloatOperands{w.data(), packed.data()}, pool, 2);
  std::set<std::int64_t> offsets;
  std::int64_t wrong = 0;
  for (std::int64_t row = 0; row < layout.PaddedK(); ++row) {
    for (std::int64_t column = 0; column < layout.PaddedN(); ++column) {
      const bool valid = row < layout.k && column < layout.n;
      const std::int64_t offset = layout.ElementOffset(row, column);
      offsets.insert(offset);
      wrong += packed.at(offset) != (valid ? w[row * layout.n + column] : 0);
    }
  }
  if (wrong == 0 && std::int64_t(offsets.size()) == layout.Elements()) return true;
  std::printf("FAILED packing floats %lldx%lld\n", (long long)layout.k, (long long)layout.n);
  return false;
}

inline bool RunPacking() {
  bool good = true;
  for (const WType w : {WType::kF16, WType::kBf16}) {
    for (const std::int64_t n : {1, 16, 17, 64, 100, 200}) {
      good = PacksFloatsByFormula({37, n, w}) && good;
      good = PacksFloatsByFormula({4, n, w}) && good;
    }
  }
  for (const std::int64_t offset : {0, 1}) {
    good = PacksByFormula({37, 100}, offset) && good;
    good = PacksByFormula({66000, 17}, offset) && good;
  }
  // Streamed past the caches.
  const std::int64_t large = std::int64_t(Cpu().l3_bytes) / 4 + 1;
  good = PacksByFormula({large / 1000 + 3, 1000}, 0) && good;
  return good;
}

}  // namespace qgemm::test
