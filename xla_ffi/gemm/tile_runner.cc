#include "gemm/tile_runner.h"

#include <algorithm>
#include <cstring>

#include "gemm/quantize.h"

namespace qgemm {
namespace {

template <class Pointer>
Pointer At(Pointer pointer, std::int64_t offset) {
  return pointer == nullptr ? pointer : pointer + offset;
}

const std::uint8_t* Bytes(const void* pointer) { return static_cast<const std::uint8_t*>(pointer); }

// How many elements of K a step of a panel has.
std::int64_t StepOf(const Plan& plan) {
  return plan.MakesPanels() ? 1 : ElementsOfStep(plan.layout.w);
}

}  // namespace

Workspace& ThreadWorkspace() {
  thread_local Workspace workspace;
  return workspace;
}

TileRunner::TileRunner(const Plan& plan, const GemmOperands& operands, Workspace& workspace)
    : plan_(plan),
      family_(*plan.family),
      operands_(operands),
      workspace_(workspace),
      defers_(plan.family->finish != nullptr),
      a_size_(SizeOf(plan.family->a_format)),
      out_size_(SizeOf(plan.epilogue.out)),
      out_row_(plan.key.shape.n * out_size_),
      residual_row_(plan.key.shape.n * SizeOf(plan.epilogue.residual)),
      row_bytes_(plan.layout.PaddedK() * a_size_),
      panel_bytes_(plan.layout.PanelOffset(1)),
      block_steps_(plan.k_block / StepOf(plan)),
      steps_(plan.parts ? 0 : plan.layout.PaddedK() / StepOf(plan)) {
  const Epilogue& epilogue = plan.epilogue;
  if (epilogue.x_zero == Granularity::kTensor) {
    const std::int32_t zero = operands.x_zero == nullptr ? 0 : operands.x_zero[0];
    x_negative_zero_ = NegativeZero(zero, plan.key.spec.x);
  }
  if (epilogue.x_scale == Granularity::kTensor && operands.x_scale != nullptr) {
    x_scale_ = operands.x_scale[0];
  }
  if (IsQuantized(epilogue.out)) {
    const bool is_signed = epilogue.out == OutType::kS8;
    const float scale = epilogue.out_scale_per_column ? 1.0F : operands.out_scale[0];
    out_ =
        StaticQuantizeArgs(scale, *operands.out_zero, is_signed ? -128 : 0, is_signed ? 127 : 255);
  }
  workspace.deferred.kernel = nullptr;  // of a call that ran out of memory
  if (!plan.MakesPanels()) groups_ = plan.layout.Groups();
  if (groups_ > 0) group_steps_ = plan.layout.StepsOfGroup();
}

TileRunner::~TileRunner() { SetUp(0); }

void TileRunner::Finish() {
  if (family_.finish != nullptr) family_.finish(workspace_.deferred);
}

void TileRunner::SetUp(int rows) {
  if (family_.set_up == nullptr || rows == set_up_rows_) return;
  family_.set_up(rows)();
  set_up_rows_ = rows;
}

void TileRunner::Run(const WorkItem& item, std::int64_t count, std::int64_t begin, std::int64_t end,
                     bool fills) {
  if (item.rows != split_rows_) Split(item.rows);
  fetched_ = 0;
  for (std::int64_t p = 0; p < count; ++p) workspace_.panels[p].step_columns = 0;
  for (const Tiles& tiles : tiles_) {
    if (tiles.count > 0) RunTiles(item, tiles, count, begin, end, fills);
  }
}

void TileRunner::Split(std::int64_t rows) {
  split_rows_ = rows;
  const EvenSplit tiles = plan_.Tiles(rows);
  const std::int64_t smaller = tiles.Smaller(), larger = tiles.Larger();
  tiles_[0].count = 0;
  if (larger > 0) tiles_[0] = TilesOf(0, smaller + 1, larger);
  tiles_[1] = TilesOf(larger * (smaller + 1), smaller, tiles.parts - larger);
}

void TileRunner::RunTiles(const WorkItem& item, const Tiles& tiles, std::int64_t count,
                          std::int64_t begin, std::int64_t end, bool fills) {
  const std::int64_t rows = tiles.rows, end_row = tiles.row + tiles.count * rows;
  SetUp(int(rows));
  for (std::int64_t p = 0; p < count; ++p) {
    SetPanel(workspace_.panels[p], have_common_[p], item.first_row, tiles, begin);
  }
  Fetches fetches = FetchesOf(item, tiles, fills);
  const bool one_block = end - begin == 1;
  const int first_part = int(PartOf(begin));
  const std::int64_t k_block = plan_.k_block;
  const bool ends = plan_.is_parts || end == plan_.k_blocks;  // there is a result
  const PanelAtHand& first = workspace_.panels[0];
  const bool plain = first.staged == nullptr && first.steps->size() == 1;
  if (plain && count == 1 && one_block && !fills && !defers_) {
    RunDown(item, tiles, first_part, begin * k_block, fetches);
    return;
  }
  for (std::int64_t row = tiles.row; row < end_row; row += rows) {
    if (fills) {
      workspace_.rows.Fill(plan_, operands_, row, rows);
      fetches.at = 0;
    }
    for (std::int64_t p = 0; p < count; ++p) {
      PanelAtHand& panel = workspace_.panels[p];
      const bool staged = panel.staged != nullptr;
      if (staged) Stage(panel, item.first_row + row, rows);
      TileArgs* next_step = panel.args;
      for (const TileStep& step : *panel.steps) {
        TileArgs* args = next_step++;
        if (defers_) {
          // Of blocks of K none is deferred: they may share the arguments.
          workspace_.deferring[turn_] = *args;
          args = &workspace_.deferring[turn_];
          args->next_bytes = fetches.bytes;
          turn_ = 1 - turn_;
        }
        for (std::int64_t block = begin; block < end; ++block) {
          const int part = one_block ? first_part : int(PartOf(block));
          if (!one_block) SetBlock(*args, panel, step.column, row, block);
          args->key = &step.keys[part];
          args->next = fetches.Next(block * k_block);
          step.kernels[part](args);
        }
        fetches.at += fetches.of_call;
        if (row + rows < item.rows) tiles.down.Apply(next_step[-1]);
      }
      if (staged && ends) Unstage(panel, row, rows);
    }
    fetches.begin += fetches.of_tile;
  }
  fetched_ = fetches.at;
}

void TileRunner::RunDown(const WorkItem& item, const Tiles& tiles, int part, std::int64_t first_k,
                         Fetches fetches) {
  PanelAtHand& panel = workspace_.panels[0];
  const TileStep& step = panel.steps->front();
  const TileFn kernel = step.kernels[part];
  TileArgs* const args = panel.args;
  args->key = &step.keys[part];
  std::int64_t below = item.rows - tiles.row;
  for (std::int64_t left = tiles.count; left > 0; --left) {
    args->next = fetches.Next(first_k);
    kernel(args);
    fetches.at += fetches.of_call;
    fetches.begin += fetches.of_tile;
    below -= tiles.rows;
    if (below > 0) tiles.down.Apply(*args);
  }
  fetched_ = fetches.at;
}

bool TileRunner::WalksAcross(const WorkItem& item) {
  if (plan_.k_blocks > 1 || plan_.PreparesPanels() || plan_.is_parts) return false;
  if (defers_ || family_.set_up != nullptr) return false;
  if (plan_.epilogue.out_scale_per_column) return false;
  if (item.rows != split_rows_) Split(item.rows);
  const auto& [larger, smaller] = tiles_;
  return larger.count == 0 ||
         StepColumns(larger.rows, kPanelColumns) == StepColumns(smaller.rows, kPanelColumns);
}

void TileRunner::RunAcross(const WorkItem& item, std::int64_t count) {
  constexpr int kWhole = int(KPart::kWhole);
  PanelAtHand& panel = workspace_.panels[0];
  const auto& [larger, smaller] = tiles_;
  panel.step_columns = 0;
  SetPanel(panel, have_common_[0], item.first_row, larger.count > 0 ? larger : smaller, 0);
  const Descent back = DescentBy(smaller.rows - item.rows);
  const Crossing across = CrossingFrom(panel);
  const std::int8_t* next = panel.next_w;
  const std::int8_t* const end = operands_.w + plan_.layout.Panels() * panel_bytes_;
  for (std::int64_t p = 0; p < count; ++p) {
    std::int64_t fetched = 0;
    for (const Tiles& tiles : tiles_) {
      for (std::int64_t tile = 0; tile < tiles.count; ++tile) {
        const bool last = &tiles == &smaller && tile + 1 == tiles.count;
        TileArgs* args = panel.args;
        for (const TileStep& step : plan_.Steps(tiles.rows, kPanelColumns)) {
          args->key = &step.keys[kWhole];
          args->next = next + fetched;
          step.kernels[kWhole](args);
          fetched += tiles.of_call;
          if (fetched >= panel_bytes_) fetched = 0;
          if (last) {
            back.Apply(*args);
            across.Apply(*args);
          } else {
            tiles.down.Apply(*args);
          }
          ++args;
        }
      }
    }
    next += panel_bytes_;
    if (next == end) next = operands_.w;
  }
}

KPart TileRunner::PartOf(std::int64_t block) const {
  if (plan_.is_parts || plan_.k_blocks == 1) return KPart::kWhole;
  if (block == 0) return KPart::kFirst;
  return block + 1 < plan_.k_blocks ? KPart::kMiddle : KPart::kLast;
}

int TileRunner::StepColumns(std::int64_t rows, std::int64_t width) const {
  const std::vector<TileStep>& steps = plan_.Steps(rows, width);
  return steps.size() > 1 ? steps[1].column : int(width);
}

void TileRunner::SetPanel(PanelAtHand& panel, int& has_common, std::int64_t first_row,
                          const Tiles& tiles, std::int64_t block) {
  const std::vector<TileStep>& steps = plan_.Steps(tiles.rows, panel.width);
  panel.steps = &steps;
  const int columns = StepColumns(tiles.rows, panel.width);
  if (columns == panel.step_columns) return;  // they have come to this row
  panel.step_columns = columns;
  int i = 0;
  for (const TileStep& step : steps) {
    TileArgs& args = panel.args[i++];
    if (i > has_common) SetCommon(args);
    SetColumns(args, panel, step.column);
    SetRows(args, panel, step.column, first_row, tiles.row);
    SetBlock(args, panel, step.column, tiles.row, block);
  }
  has_common = std::max(has_common, i);
}

void TileRunner::SetCommon(TileArgs& args) const {
  args.a_stride = plan_.a_stride;
  args.x_negative_zero = x_negative_zero_;
  args.x_scale = x_scale_;
  args.out_inverse = out_.inverse;
  args.out_low = out_.low;
  args.out_high = out_.high;
  args.out_zero = out_.zero;
  args.groups = groups_;
  args.group_steps = group_steps_;
  args.deferred = &workspace_.deferred;
}

void TileRunner::SetColumns(TileArgs& args, const PanelAtHand& panel, std::int64_t column) const {
  args.bias = At(panel.columns.bias, column);
  args.out_inverses = panel.inverses + column;
  if (groups_ == 0) return;
  const BlockForm& form = plan_.layout.blocks;
  args.block_scales = reinterpret_cast<const std::uint8_t*>(panel.w) + column * form.ScaleBytes();
  args.group_bytes = panel.width * plan_.layout.GroupBytes();
  args.row_groups_stride = workspace_.rows.groups_stride();
}

void TileRunner::SetRows(TileArgs& args, const PanelAtHand& panel, std::int64_t column,
                         std::int64_t first_row, std::int64_t row) const {
  const PreparedRows& prepared = workspace_.rows;
  args.row_negative_zeros = prepared.negative_zeros(row);
  args.row_scales = prepared.scales(row);
  args.row_groups = prepared.groups(row);
  // What is kept from block to block is that of all rows.
  args.partial = panel.partial + (plan_.MakesPanels() ? row * kPanelColumns + column : 0);
  args.sums = At(panel.sums, row * kPanelColumns + column);
  args.out = panel.out + row * out_row_ + column * out_size_;
  const bool staged = panel.staged != nullptr;
  args.out_stride = staged ? kPanelColumns * out_size_ : out_row_;
  args.residual_stride = staged ? kPanelColumns * SizeOf(plan_.epilogue.residual) : residual_row_;
  args.residual = At(Bytes(operands_.residual),
                     (first_row + row) * residual_row_ +
                         (panel.first_column + column) * SizeOf(plan_.epilogue.residual));
}

void TileRunner::SetBlock(TileArgs& args, const PanelAtHand& panel, std::int64_t column,
                          std::int64_t row, std::int64_t block) const {
  const PanelColumns& columns = panel.columns;
  const std::int64_t of_sums = Sums() == 1 ? 0 : block;
  args.column_sums = At(columns.sums, of_sums * columns.sums_stride + column);
  const std::int64_t group = of_sums * columns.scales_stride + column;
  args.column_scales = At(columns.scales, group);
  args.column_zeros = At(columns.zeros, group);
  args.row_sums = workspace_.rows.sums(of_sums, row);

  args.a = workspace_.rows.a(row) + block * plan_.k_block * a_size_;
  const std::int64_t before = block * block_steps_;
  args.quads = std::min(block_steps_, steps_ - before);
  const std::int64_t in_panel = plan_.MakesPanels() ? 0 : before * panel.width;
  args.b = plan_.key.acc16 ? panel.w + column * plan_.layout.PaddedK()
                           : panel.w + (in_panel + column) * kStepBytes;
  if (groups_ > 0) args.b += panel.width * plan_.layout.blocks.Bytes();
}

TileRunner::Descent TileRunner::DescentBy(std::int64_t rows) const {
  const PreparedRows& prepared = workspace_.rows;
  const auto of = [rows](const void* pointer, std::int64_t stride = 1) {
    return pointer == nullptr ? 0 : rows * stride;
  };
  const bool from_sums = plan_.key.acc16 || plan_.parts != nullptr;
  return {rows * plan_.a_stride,
          rows * out_row_,
          of(operands_.residual, residual_row_),
          plan_.MakesPanels() ? rows * kPanelColumns : 0,
          of(prepared.sums(0, 0)),
          of(prepared.negative_zeros(0)),
          of(prepared.scales(0)),
          from_sums ? rows * kPanelColumns : 0,
          of(prepared.groups(0))};
}

TileRunner::Crossing TileRunner::CrossingFrom(const PanelAtHand& panel) const {
  const auto of = [](const void* pointer) { return pointer == nullptr ? 0 : kPanelColumns; };
  const PanelColumns& columns = panel.columns;
  return {panel_bytes_,
          kPanelColumns * out_size_,
          of(operands_.residual) * SizeOf(plan_.epilogue.residual),
          groups_ > 0 ? panel_bytes_ : 0,
          of(columns.sums),
          of(columns.zeros),
          of(columns.scales),
          of(columns.bias)};
}

TileRunner::Tiles TileRunner::TilesOf(std::int64_t row, std::int64_t rows,
                                      std::int64_t count) const {
  Tiles tiles{row, rows, count, DescentBy(rows), rows * row_bytes_, rows * a_size_};
  const TileStep& step = plan_.Steps(rows, plan_.layout.PanelWidth(0)).front();
  const TileKey& key = step.keys[int(PartOf(0))];
  if (key.FetchesPart()) {
    tiles.of_call = key.columns * panel_bytes_ / kPanelColumns;
    tiles.of_element = key.columns * kStepBytes / ElementsOfStep(plan_.layout.w);
  }
  return tiles;
}

TileRunner::Fetches TileRunner::FetchesOf(const WorkItem& item, const Tiles& tiles,
                                          bool fills) const {
  const std::int8_t* const next_w = workspace_.panels[0].next_w;
  const std::int64_t row = tiles.row, rows = tiles.rows;
  if (fills) {  // the rows of the next tile
    const std::int64_t bytes = rows * plan_.RowBytes();
    const std::int64_t before = (item.first_row + row) * plan_.RowBytes();
    const std::uint8_t* const next = Bytes(operands_.x) + before + bytes;
    return {next, bytes, 0, tiles.of_call, bytes, tiles.of_element, 0};
  }
  if (next_w == nullptr) {
    const std::int64_t bytes = rows * plan_.a_stride;
    const std::uint8_t* const next = workspace_.rows.a(row + rows);
    return {next, 1, 0, 0, bytes, tiles.of_element, defers_ ? bytes / plan_.k_blocks : 0};
  }
  const auto* const next = reinterpret_cast<const std::uint8_t*>(next_w);
  if (!defers_) return {next, panel_bytes_, fetched_, tiles.of_call, 0, tiles.of_element, 0};
  // A single tile streams its own.
  const std::int64_t bytes = rows == item.rows ? 0 : panel_bytes_;
  const std::int64_t of_tile = bytes * rows / item.rows;
  return {next + bytes * row / item.rows, 1, 0, 0, of_tile, 0, of_tile / plan_.k_blocks};
}

void TileRunner::Stage(PanelAtHand& panel, std::int64_t row, std::int64_t rows) {
  TileArgs* args = panel.args;
  for (const TileStep& step : *panel.steps) args++->out = panel.staged + step.column * out_size_;
  if (operands_.residual == nullptr) return;
  const std::int64_t size = SizeOf(plan_.epilogue.residual), stride = kPanelColumns * size;
  auto* const to =
      workspace_.residual_tile.Reserve<std::uint8_t>(std::size_t(family_.max_rows * stride));
  std::memset(to, 0, std::size_t(rows * stride));
  const std::uint8_t* from =
      Bytes(operands_.residual) + row * residual_row_ + panel.first_column * size;
  for (std::int64_t r = 0; r < rows; ++r, from += residual_row_) {
    std::memcpy(to + r * stride, from, std::size_t(panel.valid * size));
  }
  args = panel.args;
  for (const TileStep& step : *panel.steps) args++->residual = to + step.column * size;
}

void TileRunner::Unstage(const PanelAtHand& panel, std::int64_t row, std::int64_t rows) {
  Finish();
  const std::uint8_t* from = panel.staged;
  std::uint8_t* to = panel.out + row * out_row_;
  for (std::int64_t r = 0; r < rows; ++r, to += out_row_, from += kPanelColumns * out_size_) {
    std::memcpy(to, from, std::size_t(panel.valid * out_size_));
  }
}

}  // namespace qgemm
