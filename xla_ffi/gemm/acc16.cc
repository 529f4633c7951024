#include "gemm/acc16.h"

#include <algorithm>

namespace qgemm {
namespace {

// As a share of the time of a row of a product in int32, measured on Zen 3: a row of the same
// product, a row of the outliers if all weights were such, and splitting a panel, which takes as
// long as so many rows, without outliers and with nothing but such.
constexpr double kRow = 0.68, kOutlierRow = 4.8, kSplit = 4, kOutlierSplit = 850;
// What there must be to gain at least, for the choice not to depend on the machine.
constexpr double kMargin = 1.25;
// Outliers per sum in int16 that could saturate, of four weights.
constexpr double kOutliersPerSum = 1.05 / 4;
constexpr std::int64_t kSampledSteps = 16;
// Beside smaller products, looking at the weights takes time.
constexpr double kLeastMacs = 1 << 26;

// The share of sums in int16 that the weights could saturate, from some rows of some panels.
double OutlierSums(const PackedLayout& layout, const std::int8_t* w) {
  const std::int64_t steps = layout.PaddedK() / (kQuad * kQuadsInInt16);
  std::int64_t seen = 0, over = 0;
  for (std::int64_t i = 0; i < kSampledSteps; ++i) {
    const std::int64_t panel = i * layout.Panels() / kSampledSteps;
    const std::int64_t row = layout.PanelWidth(panel) * kQuad;
    // Steps that differ from panel to panel.
    const std::int64_t step = (i * steps / kSampledSteps + panel) % steps;
    const std::int8_t* const at = w + layout.PanelOffset(panel) + step * kQuadsInInt16 * row;
    for (std::int64_t pair = 0; pair < row; pair += 2) {
      int positive = 0, negative = 0;
      for (const int value : {at[pair], at[pair + 1], at[pair + row], at[pair + row + 1]}) {
        positive += std::max(value, 0);
        negative -= std::min(value, 0);
      }
      over += positive > kMostInInt16 || negative > kMostInInt16;
      ++seen;
    }
  }
  return double(over) / double(seen);
}

}  // namespace

bool CanSumInInt16(const PlanKey& key) {
  return Acc16FamilyOf(key.isa) != nullptr && !key.spec.FloatSums() &&
         KBlocks(key.shape.k, key.spec.epilogue.w_zero, key.spec.group) == 1 && key.spec.group == 0;
}

bool ShouldSumInInt16(const PlanKey& key, const std::int8_t* w) {
  const auto& [m, n, k, batch, ragged] = key.shape;
  constexpr std::int64_t kLeastK = 64;
  if (!CanSumInInt16(key) || ragged || k < kLeastK) return false;
  if (double(m) * double(n) * double(k) < kLeastMacs) return false;
  const std::int64_t sharers = SharesRows(key.shape, key.threads) ? 1 : key.threads;
  const std::int64_t rows = std::min(m / sharers, kSharedBlockBytes / k);
  const auto pays = [rows](double outliers) {
    return double(rows) * (1 - kRow - kOutlierRow * outliers) >=
           kMargin * (kSplit + kOutlierSplit * outliers);
  };
  return pays(0) && pays(kOutliersPerSum * OutlierSums({k, n}, w));
}

}  // namespace qgemm
