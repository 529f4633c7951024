// Runs the tiles of a block of rows: down a panel, or of whole panels one after the other.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "gemm/plan.h"
#include "gemm/rows.h"
#include "runtime/scratch.h"

namespace qgemm {

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

inline constexpr int kMostSteps = kPanelColumns / 8;  // across a panel

// A panel of weights and what its tiles share.
struct PanelAtHand {
  std::int64_t first_column, width, valid;
  PanelColumns columns;
  const std::int8_t* w;
  const std::int8_t* next_w;  // what tiles fetch a part of; null: the next rows of x
  const std::int32_t* sums;
  float* partial;
  std::uint8_t* out;     // of the block's first row
  std::uint8_t* staged;  // the result of one tile, where the panel ends inside a vector
  float inverses[kPanelColumns];
  // TileRunner's: the arguments of the steps across it, each so many columns wide (0: none yet).
  const std::vector<TileStep>* steps;
  int step_columns;
  TileArgs args[kMostSteps];
};

// Of one thread, kept between calls.
struct Workspace {
  PreparedRows rows;
  std::unique_ptr<PanelSplitter> splitter;
  Scratch partial, out_tile, residual_tile, columns, column_sums;
  Scratch parts, sums;  // of a product whose K is in parts
  Scratch f32_panel;
  PanelAtHand panels[kMostFreshPanels];  // more than one only for new rows
  DeferredTile deferred;
  TileArgs deferring[2];  // of a tile, and of one whose end is deferred
};

Workspace& ThreadWorkspace();

// One at a time on a thread: tiles leave arguments in its workspace.
class TileRunner {
 public:
  TileRunner(const Plan& plan, const GemmOperands& operands, Workspace& workspace);
  TileRunner(const TileRunner&) = delete;
  TileRunner& operator=(const TileRunner&) = delete;
  // May come after the last item, when the plan is gone; families stay.
  ~TileRunner();

  // All tiles of a block of rows and of the first `count` of Workspace::panels, by the blocks of K
  // in [begin, end). With `fills` each tile's rows are prepared before it.
  void Run(const WorkItem& item, std::int64_t count, std::int64_t begin, std::int64_t end,
           bool fills);

  // All tiles of a block and of `count` panels of full width, from the first of Workspace::panels
  // on, if it WalksAcross.
  void RunAcross(const WorkItem& item, std::int64_t count);
  bool WalksAcross(const WorkItem& item);

  // Before the rows of x change, and before others have the results.
  void Finish();

  // Blocks of K that have sums of their own; parts and those of f32 panels have none and need none.
  std::int64_t Sums() const { return plan_.is_parts || plan_.MakesPanels() ? 1 : plan_.k_blocks; }

 private:
  // How far it is from a tile's arguments to those of the one below: bytes; elements, 0 for null.
  struct Descent {
    std::int64_t a, out, residual;
    std::int64_t partial, row_sums, zeros, scales, sums, groups;

    void Apply(TileArgs& args) const {
      args.a = static_cast<const std::uint8_t*>(args.a) + a;
      args.out = static_cast<std::uint8_t*>(args.out) + out;
      args.residual = static_cast<const std::uint8_t*>(args.residual) + residual;
      args.partial += partial;
      args.row_sums += row_sums;
      args.row_negative_zeros += zeros;
      args.row_scales += scales;
      args.sums += sums;
      args.row_groups += groups;
    }
  };
  // The same to those of the next panel. Not one with it: a tile on the way down leaves the columns
  // be.
  struct Crossing {
    std::int64_t b, out, residual, block_scales;
    std::int64_t sums, zeros, scales, bias;

    void Apply(TileArgs& args) const {
      args.b += b;
      args.out = static_cast<std::uint8_t*>(args.out) + out;
      args.residual = static_cast<const std::uint8_t*>(args.residual) + residual;
      args.block_scales += block_scales;
      args.column_sums += sums;
      args.column_zeros += zeros;
      args.column_scales += scales;
      args.bias += bias;
    }
  };
  // Of a block, `count` tiles of one height. They fetch so many bytes beside each call, and beside
  // each element of K.
  struct Tiles {
    std::int64_t row, rows, count;
    Descent down;
    std::int64_t of_call, of_element;
  };
  // What tiles fetch meanwhile: each call what comes after that of the call before, up to `size`
  // bytes, then from the beginning again.
  struct Fetches {
    const std::uint8_t* begin;
    std::int64_t size, at;
    std::int64_t of_call, of_tile;  // from one call to the next; from tile to tile, the beginning
    std::int64_t of_element;        // of K: from block to block of it
    std::int64_t bytes;             // TileArgs::next_bytes

    const std::uint8_t* Next(std::int64_t first_k) {
      if (at >= size) at = 0;
      return begin + at + first_k * of_element;
    }
  };

  // Once rows of x have been prepared, for what is null then is so in all blocks.
  void Split(std::int64_t rows);
  void RunTiles(const WorkItem& item, const Tiles& tiles, std::int64_t count, std::int64_t begin,
                std::int64_t end, bool fills);
  // The same down one panel, of a single step and a single block of K, with hardly anything between
  // the tiles (256x1024x1024 on Zen 4: 1.005 times as fast).
  void RunDown(const WorkItem& item, const Tiles& tiles, int part, std::int64_t first_k,
               Fetches fetches);
  KPart PartOf(std::int64_t block) const;
  void SetUp(int rows);

  // The arguments of a panel's first tile, then what a block of K has of its own.
  void SetPanel(PanelAtHand& panel, int& has_common, std::int64_t first_row, const Tiles& tiles,
                std::int64_t block);
  void SetCommon(TileArgs& args) const;
  void SetColumns(TileArgs& args, const PanelAtHand& panel, std::int64_t column) const;
  void SetRows(TileArgs& args, const PanelAtHand& panel, std::int64_t column,
               std::int64_t first_row, std::int64_t row) const;
  void SetBlock(TileArgs& args, const PanelAtHand& panel, std::int64_t column, std::int64_t row,
                std::int64_t block) const;
  Descent DescentBy(std::int64_t rows) const;
  Crossing CrossingFrom(const PanelAtHand& panel) const;
  int StepColumns(std::int64_t rows, std::int64_t width) const;
  Tiles TilesOf(std::int64_t row, std::int64_t rows, std::int64_t count) const;
  Fetches FetchesOf(const WorkItem& item, const Tiles& tiles, bool fills) const;

  // Of a panel that ends inside a vector: whole vectors of a tile's residual and result.
  void Stage(PanelAtHand& panel, std::int64_t row, std::int64_t rows);
  void Unstage(const PanelAtHand& panel, std::int64_t row, std::int64_t rows);

  const Plan& plan_;
  const KernelFamily& family_;
  const GemmOperands& operands_;
  Workspace& workspace_;
  const bool defers_;
  int turn_ = 0;  // of Workspace::deferring
  int set_up_rows_ = 0;
  int have_common_[kMostFreshPanels] = {};  // of a panel's arguments, so many
  // Bytes: elements, rows of the result, of the residual, of x as prepared; whole panels.
  const std::int64_t a_size_, out_size_, out_row_, residual_row_, row_bytes_, panel_bytes_;
  const std::int64_t block_steps_, steps_;  // of K, of a block and of all
  // What the arguments of all tiles share.
  std::int32_t x_negative_zero_ = 0;
  float x_scale_ = 0;
  QuantizeArgs out_{};
  std::int64_t groups_ = 0, group_steps_ = 0;
  std::int64_t split_rows_ = -1;  // of the block that the tiles are of
  Tiles tiles_[2];                // the larger ones first, of which there may be none
  std::int64_t fetched_ = 0;      // Fetches::at, of the tiles before
};

}  // namespace qgemm
