// Sums of products in int16: which weights and which products they are for.
#pragma once

#include "gemm/plan.h"

namespace qgemm {

// vpmaddubsw adds neighbours in int16; kernels add so many quads of that before they widen.
inline constexpr int kQuadsInInt16 = 2;
// What weights of one sign may add up to there: 255 * 128 < 32768.
inline constexpr int kMostInInt16 = 128;
// Whether there are kernels for it: an ISA without VNNI, and K in one piece.
bool CanSumInInt16(const PlanKey& key);
// Whether it is also faster: with many rows for each thread, or few outliers among the weights w.
bool ShouldSumInInt16(const PlanKey& key, const std::int8_t* w);

}  // namespace qgemm
