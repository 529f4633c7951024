#include "gemm/f32_panels.h"

#include <algorithm>
#include <limits>

namespace qgemm {
namespace {

// From how many rows on a panel is made sooner than the tiles of all rows have converted it.
//
// Ice Lake, 1024x1024 weights, on a core: float16 takes 8 places of multiplications, beside 24 of
// these, and gains 1.04 times at 48 rows, 1.18 at 96, 1.3 at 256; bfloat16 with 4 gains 1.1 at 256;
// int8 and int4 with 12 and more 1.1 to 1.2 at 24 rows, 1.4 to 1.5 from 96 on. Where conversions
// run beside multiplications neither float16 nor bfloat16 gained at any number of rows (Zen 3 to
// Zen 5), nor int8 with AVX-512 (Zen 5); blocks, whose scales take multiplications, did: 1.05 times
// at 24 rows, 1.15 at 48, 1.2 from 128 on (Zen 5). With AVX2, whose tiles are smaller, they gained
// 1.2 to 1.4 times at 24 rows, 1.6 at 256, int8 1.1 from 96 on (Zen 3).
std::int64_t LeastRows(const PlanKey& key) {
  constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
  const WType w = key.spec.w;
  if (!Cpu().converts_beside) return w == WType::kF16 ? 64 : w == WType::kBf16 ? 192 : 24;
  if (IsBlocks(w)) return 24;
  return w == WType::kS8 && key.isa == Isa::kAvx2 ? 96 : kNever;
}

}  // namespace

std::int64_t F32PanelBlock(const PackedLayout& layout) {
  constexpr std::int64_t kSteps = 64;
  const std::int64_t unit = IsBlocks(layout.w) ? layout.group : kSteps;
  return std::max(unit, kF32PanelRows / unit * unit);
}

bool CanWidenPanels(const PlanKey& key) {
  const GemmSpec& spec = key.spec;
  const bool in_groups = spec.w == WType::kS8 && spec.group > 0;  // whose sums are scaled
  return spec.FloatSums() && !spec.transposed && !in_groups && !key.shape.ragged &&
         PairsFamilyOf(key.isa, spec.x, spec.w) == nullptr;
}

bool ShouldWidenPanels(const PlanKey& key) {
  if (!CanWidenPanels(key)) return false;
  // A thread makes a panel for its own rows.
  const std::int64_t sharers = SharesRows(key.shape, key.threads) ? 1 : key.threads;
  return key.shape.m / sharers >= LeastRows(key);
}

}  // namespace qgemm
