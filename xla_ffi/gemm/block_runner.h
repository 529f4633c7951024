// Takes the panels that a block of rows meets, and has their tiles run.
#pragma once

#include <cstdint>

#include "gemm/plan.h"
#include "gemm/tile_runner.h"

namespace qgemm {

class BlockRunner {
 public:
  BlockRunner(const Plan& plan, const GemmOperands& operands, Workspace& workspace);
  BlockRunner(const BlockRunner&) = delete;
  BlockRunner& operator=(const BlockRunner&) = delete;

  // Before the rows of x change, and before others have the results.
  void Finish() { tiles_.Finish(); }

  // All tiles of a panel. While the rows are new, a tile fetches those of the next one; later, a
  // part of the next panel. `sums`, [rows][kPanelColumns], where the kernels start from sums that
  // come from elsewhere.
  void Run(const WorkItem& item, bool new_rows, std::int64_t panel,
           const std::int32_t* sums = nullptr);

  // The panels of full width from the item's `begin`th on, whose arguments follow from those of the
  // panel before (1x1024x1024 on Zen 4: 7 % faster); returns how many they were.
  std::int64_t RunAcross(const WorkItem& item, std::int64_t begin);

  // The first panels (Plan::fresh_panels) of a new block, of more than one tile, whose rows of x
  // are prepared a tile at a time; returns how many they were. Their tiles fetch the next tile's
  // rows (1024x1024x1024 on Zen 4: a row of f32 from memory is quantized in 370 cycles in place of
  // 600, the product is 2 % faster).
  std::int64_t RunNewRows(const WorkItem& item);

 private:
  // A panel, or of one that is prepared (Plan::MakesPanels) a block of K.
  void Take(const WorkItem& item, std::int64_t panel, const std::int32_t* sums, PanelAtHand& to);
  const std::int8_t* Transposed(const PanelAtHand& panel, std::int64_t block);
  const std::int8_t* Widened(const PanelAtHand& panel, std::int64_t block);
  // An int32 result takes K in one piece; the packed sums may be in several.
  void SumColumnBlocks();
  void InvertScales(PanelAtHand& panel) const;

  const Plan& plan_;
  const KernelFamily& family_;
  const GemmOperands& operands_;
  Workspace& workspace_;
  TileRunner tiles_;
  const std::int64_t panel_bytes_;
  const std::int32_t* column_sums_ = nullptr;
};

}  // namespace qgemm
