// Runs the tiles of blocks of rows and panels.
#pragma once

#include <cstdint>
#include <memory>

#include "gemm/plan.h"
#include "gemm/rows.h"
#include "runtime/scratch.h"

namespace qgemm {

// Of one thread, kept between calls.
struct Workspace {
  PreparedRows rows;
  std::unique_ptr<PanelSplitter> splitter;
  Scratch partial, out_tile, residual_tile, columns, column_sums;
  Scratch parts, sums;  // of a product whose K is in parts
  Scratch f32_panel;
  DeferredTile deferred;
};

Workspace& ThreadWorkspace();

// The data of a panel's columns. Kernels read whole vectors of it, so where a panel ends inside one
// the data is a zero-padded copy.
struct PanelColumns {
  // Of the first block of K, then `stride` apart.
  const std::int32_t* sums;
  std::int64_t sums_stride;
  const float* scales;
  const std::int32_t* zeros;
  std::int64_t scales_stride;  // of scales and zeros: 0 unless the blocks are groups
  const float* bias;
};

// A panel of weights and what its tiles share.
struct PanelAtHand {
  std::int64_t taken;  // different for each
  std::int64_t first_column, width, valid;
  PanelColumns columns;
  const std::int8_t* w;
  const std::int8_t* next_w;  // what tiles fetch a part of; null: the next rows of x
  const std::int32_t* sums;
  std::uint8_t* out;     // of the block's first row
  std::uint8_t* staged;  // the result of one tile, where the panel ends inside a vector
  std::int64_t out_stride;
  float inverses[kPanelColumns];
};

class BlockRunner {
 public:
  BlockRunner(const Plan& plan, const GemmOperands& operands, Workspace& workspace);
  BlockRunner(const BlockRunner&) = delete;
  BlockRunner& operator=(const BlockRunner&) = delete;
  // May come after the last item, when the plan is gone; families stay.
  ~BlockRunner();

  // Before the rows of x change, and before others have the results.
  void Finish();

  // All tiles of a panel. While the rows are new, a tile fetches those of the next one; later, a
  // part of the next panel. `sums`, [rows][kPanelColumns], where the kernels start from sums that
  // come from elsewhere.
  void Run(const WorkItem& item, bool new_rows, std::int64_t panel,
           const std::int32_t* sums = nullptr);

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

  // Blocks of K that have sums of their own; parts and those of f32 panels have none and need none.
  std::int64_t Sums() const { return plan_.is_parts || plan_.MakesPanels() ? 1 : plan_.k_blocks; }

  // From block to block of K; the larger tiles come first.
  void RunTiles(const WorkItem& item, const PanelAtHand& panel, std::int64_t begin,
                std::int64_t end);
  void RunTile(const WorkItem& item, const PanelAtHand& panel, std::int64_t row, std::int64_t rows,
               std::int64_t begin, std::int64_t end);
  // The kernels across a panel.
  void RunSteps(const WorkItem& item, const PanelAtHand& panel, std::int64_t row, std::int64_t rows,
                std::uint8_t* out, std::int64_t begin, std::int64_t end);
  void SetUp(int rows);

  // Of a tile's arguments what all columns share, and what the tiles of some columns share.
  void SetRows(TileArgs& args, std::int64_t column, std::int64_t row, std::uint8_t* out) const;
  void SetColumns(TileArgs& args, const PanelAtHand& panel, std::int64_t column,
                  std::int64_t block) const;
  // A tile's part of the residual, in whole vectors.
  void SetResidual(std::int64_t row, std::int64_t rows, const PanelAtHand& panel);
  // What a tile fetches meanwhile, after what those before it have. Where these have all of it, it
  // begins again.
  void SetNext(TileArgs& args, const WorkItem& item, const PanelAtHand& panel, std::int64_t row,
               std::int64_t rows, std::int64_t first_k, std::int64_t column);

  // Whose columns are in a tile's arguments: those stay from tile to tile (K = 256 on Zen 4: 1.5 %
  // faster, K = 64 5 %).
  struct ColumnsSet {
    std::int64_t taken;
    int column;
    std::int64_t block;

    friend bool operator==(const ColumnsSet& a, const ColumnsSet& b) {
      return a.taken == b.taken && a.column == b.column && a.block == b.block;
    }
  };

  const Plan& plan_;
  const KernelFamily& family_;
  const GemmOperands& operands_;
  Workspace& workspace_;
  TileArgs args_[2]{};  // of a tile, and of one whose end is deferred
  ColumnsSet set_[2]{};
  int turn_ = 0;
  int set_up_rows_ = 0;
  std::int64_t out_size_ = 4;
  std::int64_t a_size_ = 1;
  const std::int64_t row_bytes_, panel_bytes_;  // of prepared rows, of whole panels
  const std::int32_t* column_sums_ = nullptr;
  float* partial_ = nullptr;                 // sums of the blocks of K so far
  PanelAtHand panels_[kMostFreshPanels];     // more than one only for new rows
  std::int64_t taken_ = 0;                   // panels so far
  const std::uint8_t* next_rows_ = nullptr;  // of x, for the tiles at hand to fetch
  std::int64_t fetched_ = 0;                 // bytes of them or of the next panel, so far
  const std::uint8_t* residual_ = nullptr;   // of the tile at hand
  std::int64_t residual_stride_ = 0;
};

}  // namespace qgemm
