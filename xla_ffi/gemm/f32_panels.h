// Weights that become f32 a panel at a time, for all rows of a block, instead of as tiles load
// them. The sums are the same.
#pragma once

#include "gemm/plan.h"

namespace qgemm {

// How many elements of K are made at a time: whole groups, whole steps of any type.
std::int64_t F32PanelBlock(const PackedLayout& layout);

// Whether there are kernels for it: float sums, each of K in one piece.
bool CanWidenPanels(const PlanKey& key);
// Whether it is also faster.
bool ShouldWidenPanels(const PlanKey& key);

}  // namespace qgemm
