// How one GEMM runs: blocks, work items and kernels for a shape, an ISA and a number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "gemm/kernel.h"
#include "gemm/layout.h"
#include "gemm/spec.h"

namespace qgemm {

// Bytes of x in a block where panels are prepared for each: a block has many rows.
inline constexpr std::int64_t kSharedBlockBytes = 1 << 20;

// Whether threads then share blocks of rows and have panels of their own, which each prepares once.
constexpr bool SharesRows(const GemmShape& shape, std::int64_t threads) {
  return CeilDiv(shape.n, kPanelColumns) >= 4 * threads;
}

// The first panels that new rows of x meet share the fetching of them: so many at most.
inline constexpr std::int64_t kMostFreshPanels = 4;

// Kernels are those of whole panels, or of a last one that is narrower.
constexpr int PanelKind(std::int64_t width) { return width == kPanelColumns ? 0 : 1; }

struct PlanKey {
  GemmShape shape;
  GemmSpec spec;
  Isa isa = Isa::kPortable;
  int threads = 1;
  bool acc16 = false;       // with the second family of the ISA, which CanSumInInt16
  bool f32_panels = false;  // made ahead of the tiles, which CanWidenPanels

  friend bool operator==(const PlanKey& a, const PlanKey& b) {
    return a.shape == b.shape && a.spec == b.spec && a.isa == b.isa && a.threads == b.threads &&
           a.acc16 == b.acc16 && a.f32_panels == b.f32_panels;
  }
};

// The kernels of one tile at `column` of a panel, one for each KPart in use.
struct TileStep {
  int column;
  TileKey keys[4];
  TileFn kernels[4];
};

// `total` split into `parts` that differ by at most one, the larger ones first.
struct EvenSplit {
  std::int64_t total = 0, parts = 1;

  std::int64_t Begin(std::int64_t i) const { return i * Smaller() + (i < Larger() ? i : Larger()); }
  std::int64_t Size(std::int64_t i) const { return Smaller() + (i < Larger() ? 1 : 0); }
  std::int64_t Smaller() const { return total / parts; }
  std::int64_t Larger() const { return total % parts; }  // how many have one more
};

// What a participant claims: a block of rows of one product by some panels, one after the other;
// of Plan::parts, one part of K. `batch`: of a ragged product, which of the weights.
struct WorkItem {
  std::int64_t batch, first_row, rows, first_panel, panels, part = 0;
};

struct Plan {
  PlanKey key;
  const KernelFamily* family = nullptr;
  PackedLayout layout{};
  std::vector<WorkItem> items;  // of each product of a batch; of a ragged one see AddGroups
  std::int64_t products = 1;
  int threads = 1;           // worth using where they are at hand
  int woken = 1;             // worth waking
  RowKernels row_kernels{};  // where x is float
  Epilogue epilogue;         // of the kernels: with the zero point that the format of x brings
  std::int64_t k_blocks = 1;
  std::int64_t k_block = 0;  // elements of K in all but the last block
  // Where there are fewer panels than threads: the sums of parts of K, [part][M][N], the parts
  // being its k_blocks. This plan then adds them up and is only the epilogue.
  std::shared_ptr<const Plan> parts;
  bool is_parts = false;

  // By a transpose: the packed weight, and what makes panels of it.
  PackedLayout source{};
  TransposeFn transpose = nullptr;

  // With PlanKey::f32_panels: what makes a panel, and the last one.
  TileKey widen_keys[2]{};
  TileFn widen[2]{};

  // Whether the tiles meet f32 panels, made a block of K at a time: all rows by one, then by the
  // next.
  bool MakesPanels() const { return transpose != nullptr || key.f32_panels; }
  // Whether a panel of weights is prepared before its tiles, which takes as long as some rows.
  bool PreparesPanels() const { return key.acc16 || MakesPanels(); }

  std::int64_t RowBytes() const { return key.shape.k * SizeOf(key.spec.x); }  // of x
  bool in_place = false;      // the kernels read the rows of x where they are
  std::int64_t a_stride = 0;  // bytes between the rows that kernels read

  // The tiles of a row block of so many rows.
  EvenSplit Tiles(std::int64_t rows) const { return {rows, CeilDiv(rows, family->max_rows)}; }
  // The steps across a panel of `width` columns with tiles of so many rows.
  const std::vector<TileStep>& Steps(std::int64_t rows, std::int64_t width) const {
    return steps[rows - 1][PanelKind(width)];
  }

  std::vector<TileStep> steps[kMostTileRows][2];
  std::int64_t rows_in_cache = 0;  // of a block that shares the L2 with a panel of weights
  // The rows of a new block are prepared a tile at a time, each for so many panels that their tiles
  // meanwhile fetch the next ones; 0: all at once, before the first panel.
  std::int64_t fresh_panels = 0;
};

// The items of a ragged product, whose groups have so many rows, and how many rows they have in
// all. A negative size counts as 0, and rows beyond those of x do not count.
std::int64_t AddGroups(const Plan& plan, const std::int32_t* sizes, std::vector<WorkItem>& items);

// Made at first use, then cached for the life of the process.
std::shared_ptr<const Plan> GetPlan(const PlanKey& key);

struct PlanCacheInfo {
  std::int64_t plans;         // in the cache
  std::int64_t hits, misses;  // of lookups since the process began
};

PlanCacheInfo InfoOfPlans();

}  // namespace qgemm
