#include "gemm/block_runner.h"

#include <algorithm>
#include <cstring>

#include "gemm/quantize.h"

namespace qgemm {
namespace {

PanelColumns ColumnsAt(const GemmOperands& o, const Plan& plan, const std::int32_t* sums,
                       std::int64_t column) {
  const std::int64_t n = plan.key.shape.n;
  const auto at = [column](const auto* p) { return p == nullptr ? p : p + column; };
  if (plan.key.spec.transposed) return {};  // in the panel already
  return {at(sums), n, at(o.w_scale), at(o.w_zero), plan.epilogue.w_groups ? n : 0, at(o.bias)};
}

PanelColumns PaddedColumns(const PanelColumns& from, std::int64_t valid, std::int64_t k_blocks,
                           Scratch& memory) {
  auto* next = memory.Reserve<std::uint8_t>(std::size_t((3 * k_blocks + 1) * kPanelColumns * 4));
  const auto copy = [&](const auto* p, std::int64_t count, std::int64_t stride) {
    if (p == nullptr) return p;
    const auto* const copied = reinterpret_cast<decltype(p)>(next);
    for (std::int64_t i = 0; i < count; ++i) {
      std::memset(next, 0, kPanelColumns * 4);
      std::memcpy(next, p + i * stride, std::size_t(valid) * 4);
      next += kPanelColumns * 4;
    }
    return copied;
  };
  const bool groups = from.scales_stride > 0;
  PanelColumns to{};
  to.sums = copy(from.sums, k_blocks, from.sums_stride);
  to.sums_stride = kPanelColumns;
  to.scales = copy(from.scales, groups ? k_blocks : 1, from.scales_stride);
  to.zeros = copy(from.zeros, groups ? k_blocks : 1, from.scales_stride);
  to.scales_stride = groups ? kPanelColumns : 0;
  to.bias = copy(from.bias, 1, 0);
  return to;
}

}  // namespace

Workspace& ThreadWorkspace() {
  thread_local Workspace workspace;
  return workspace;
}

BlockRunner::BlockRunner(const Plan& plan, const GemmOperands& operands, Workspace& workspace)
    : plan_(plan),
      family_(*plan.family),
      operands_(operands),
      workspace_(workspace),
      row_bytes_(plan.layout.PaddedK() * SizeOf(plan.family->a_format)),
      panel_bytes_(plan.layout.PanelOffset(1)) {
  const Epilogue& epilogue = plan.epilogue;
  out_size_ = SizeOf(epilogue.out);
  a_size_ = SizeOf(plan.family->a_format);
  column_sums_ = operands.column_sums;
  if (plan.k_blocks == 1 && !plan.is_parts && !epilogue.float_sums) SumColumnBlocks();
  TileArgs& args = args_[0];
  if (epilogue.x_zero == Granularity::kTensor) {
    const std::int32_t zero = operands.x_zero == nullptr ? 0 : operands.x_zero[0];
    args.x_negative_zero = NegativeZero(zero, plan.key.spec.x);
  }
  if (epilogue.x_scale == Granularity::kTensor && operands.x_scale != nullptr) {
    args.x_scale = operands.x_scale[0];
  }
  if (IsQuantized(epilogue.out)) {
    const bool is_signed = epilogue.out == OutType::kS8;
    const float scale = epilogue.out_scale_per_column ? 1.0F : operands.out_scale[0];
    const QuantizeArgs q =
        StaticQuantizeArgs(scale, *operands.out_zero, is_signed ? -128 : 0, is_signed ? 127 : 255);
    args.out_inverse = q.inverse;
    args.out_low = q.low;
    args.out_high = q.high;
    args.out_zero = q.zero;
  }
  args.a_stride = plan.a_stride;
  args.deferred = &workspace.deferred;
  workspace.deferred.kernel = nullptr;  // of a call that ran out of memory
  if (!plan.MakesPanels()) args.groups = plan.layout.Groups();
  if (args.groups > 0) args.group_steps = plan.layout.StepsOfGroup();
  args_[1] = args;
}

BlockRunner::~BlockRunner() {
  if (set_up_rows_ != 0) family_.set_up(0)();
}

void BlockRunner::Finish() {
  if (family_.finish != nullptr) family_.finish(workspace_.deferred);
}

void BlockRunner::Run(const WorkItem& item, bool new_rows, std::int64_t panel,
                      const std::int32_t* sums) {
  PanelAtHand& at_hand = panels_[0];
  fetched_ = 0;
  Take(item, panel, sums, at_hand);
  const bool more_rows = plan_.key.shape.m > family_.max_rows;
  const bool fetch_rows =
      (new_rows && more_rows) || plan_.PreparesPanels();  // whose blocks leave the L2
  if (fetch_rows) at_hand.next_w = nullptr;
  if (!plan_.MakesPanels()) {
    const std::int64_t begin = plan_.is_parts ? item.part : 0;
    RunTiles(item, at_hand, begin, plan_.is_parts ? begin + 1 : plan_.k_blocks);
    return;
  }
  for (std::int64_t block = 0; block < plan_.k_blocks; ++block) {
    at_hand.w = plan_.transpose != nullptr ? Transposed(at_hand, block) : Widened(at_hand, block);
    RunTiles(item, at_hand, block, block + 1);
  }
}

std::int64_t BlockRunner::RunNewRows(const WorkItem& item) {
  const std::int64_t count = std::min(plan_.fresh_panels, item.panels);
  for (std::int64_t p = 0; p < count; ++p) Take(item, item.first_panel + p, nullptr, panels_[p]);
  for (std::int64_t p = 0; p < count; ++p) panels_[p].next_w = panels_[count - 1].next_w;
  const EvenSplit tiles = plan_.Tiles(item.rows);
  for (std::int64_t tile = 0; tile < tiles.parts; ++tile) {
    const std::int64_t row = tiles.Begin(tile), rows = tiles.Size(tile);
    workspace_.rows.Fill(plan_, operands_, row, rows);
    fetched_ = 0;
    next_rows_ = tile + 1 == tiles.parts ? nullptr
                                         : static_cast<const std::uint8_t*>(operands_.x) +
                                               (item.first_row + row + rows) * plan_.RowBytes();
    for (std::int64_t p = 0; p < count; ++p) {
      RunTile(item, panels_[p], row, rows, 0, plan_.k_blocks);
    }
  }
  return count;
}

void BlockRunner::Take(const WorkItem& item, std::int64_t panel, const std::int32_t* sums,
                       PanelAtHand& to) {
  const std::int64_t n = plan_.key.shape.n;
  to.taken = ++taken_;
  to.first_column = panel * kPanelColumns;
  to.width = plan_.layout.PanelWidth(panel);
  to.valid = std::min(to.width, n - to.first_column);
  const bool padded = to.valid < to.width;
  to.columns = ColumnsAt(operands_, plan_, column_sums_, to.first_column);
  if (padded) to.columns = PaddedColumns(to.columns, to.valid, Sums(), workspace_.columns);
  to.w = operands_.w + plan_.layout.PanelOffset(panel);
  // Most likely this thread's, though another item's.
  to.next_w = operands_.w + plan_.layout.PanelOffset((panel + 1) % plan_.layout.Panels());
  to.sums = sums;
  if (plan_.key.acc16) {
    workspace_.splitter->Split(to.w, to.width, family_.max_columns(1));
    to.w = workspace_.splitter->weights();
    to.sums = workspace_.splitter->sums();
  }
  const std::int64_t of_partial = plan_.MakesPanels() ? item.rows : family_.max_rows;
  partial_ = workspace_.partial.Reserve<float>(std::size_t(of_partial * kPanelColumns));

  const std::int64_t out_row = n * out_size_;
  const std::int64_t first_row = item.part * plan_.key.shape.m + item.first_row;
  to.out =
      static_cast<std::uint8_t*>(operands_.out) + first_row * out_row + to.first_column * out_size_;
  to.out_stride = out_row;
  to.staged = nullptr;
  if (plan_.epilogue.out_scale_per_column) {
    Finish();
    InvertScales(to);
  }
  if (padded) {
    to.out_stride = kPanelColumns * out_size_;
    to.staged =
        workspace_.out_tile.Reserve<std::uint8_t>(std::size_t(family_.max_rows * to.out_stride));
  }
}

void BlockRunner::RunTiles(const WorkItem& item, const PanelAtHand& panel, std::int64_t begin,
                           std::int64_t end) {
  const EvenSplit tiles = plan_.Tiles(item.rows);
  const std::int64_t larger = tiles.Larger(), smaller = tiles.Smaller();
  for (std::int64_t tile = 0, row = 0, rows = 0; tile < tiles.parts; ++tile, row += rows) {
    rows = smaller + (tile < larger ? 1 : 0);
    RunTile(item, panel, row, rows, begin, end);
  }
}

const std::int8_t* BlockRunner::Transposed(const PanelAtHand& panel, std::int64_t block) {
  const std::int64_t first = block * plan_.k_block;
  const std::int64_t columns = std::min(plan_.k_block, plan_.layout.k - first);
  auto* to = workspace_.f32_panel.Reserve<float>(std::size_t(columns * kPanelColumns));
  const GemmSpec& spec = plan_.key.spec;
  plan_.transpose({plan_.source, operands_.w, operands_.w_scale, operands_.w_zero,
                   IsBlocks(spec.w) ? 0 : spec.group, first, columns},
                  panel.first_column / kPanelColumns, to);
  return reinterpret_cast<const std::int8_t*>(to);
}

const std::int8_t* BlockRunner::Widened(const PanelAtHand& panel, std::int64_t block) {
  const PackedLayout& layout = plan_.layout;
  const std::int64_t first = block * plan_.k_block, elements = ElementsOfStep(layout.w);
  const std::int64_t length = std::min(plan_.k_block, layout.PaddedK() - first);
  auto* to = workspace_.f32_panel.Reserve<float>(std::size_t((length + 2) * kPanelColumns));
  TileArgs args{};
  args.out = to;
  args.b = operands_.w + layout.PanelOffset(panel.first_column / kPanelColumns);
  const std::int64_t width = panel.width;
  if (IsBlocks(layout.w)) {
    args.group_bytes = width * layout.GroupBytes();
    args.b += first / layout.group * args.group_bytes;
    args.block_scales = reinterpret_cast<const std::uint8_t*>(args.b);
    args.b += width * layout.blocks.Bytes();
    args.groups = length / layout.group;
    args.group_steps = layout.StepsOfGroup();
  } else {
    args.b += first / elements * width * kStepBytes;
    args.quads = length / elements;
  }
  args.column_zeros = panel.columns.zeros;
  args.partial = to + length * kPanelColumns;
  const int index = PanelKind(width);
  args.key = &plan_.widen_keys[index];
  plan_.widen[index](&args);
  return reinterpret_cast<const std::int8_t*>(to);
}

void BlockRunner::SetUp(int rows) {
  if (family_.set_up == nullptr || rows == set_up_rows_) return;
  family_.set_up(rows)();
  set_up_rows_ = rows;
}

void BlockRunner::SumColumnBlocks() {
  const std::int64_t n = plan_.key.shape.n;
  const std::int64_t blocks = KBlocks(plan_.key.shape.k, plan_.epilogue.w_zero, 0);
  if (blocks == 1) return;
  auto* total = workspace_.column_sums.Reserve<std::int32_t>(std::size_t(n));
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint32_t sum = 0;
    for (std::int64_t b = 0; b < blocks; ++b) {
      sum += std::uint32_t(operands_.column_sums[b * n + i]);
    }
    total[i] = std::int32_t(sum);
  }
  column_sums_ = total;
}

void BlockRunner::InvertScales(PanelAtHand& panel) const {
  for (std::int64_t i = 0; i < kPanelColumns; ++i) {
    const std::int64_t column = panel.first_column + i;
    panel.inverses[i] = i < panel.valid ? InverseScale(operands_.out_scale[column]) : 0.0F;
  }
}

void BlockRunner::SetResidual(std::int64_t row, std::int64_t rows, const PanelAtHand& panel) {
  const std::int64_t size = SizeOf(plan_.epilogue.residual);
  const std::int64_t stride = plan_.key.shape.n * size;
  const auto* from = static_cast<const std::uint8_t*>(operands_.residual) + row * stride +
                     panel.first_column * size;
  residual_ = from;
  residual_stride_ = stride;
  if (panel.staged == nullptr) return;
  residual_stride_ = kPanelColumns * size;
  auto* staged = workspace_.residual_tile.Reserve<std::uint8_t>(
      std::size_t(family_.max_rows * residual_stride_));
  std::memset(staged, 0, std::size_t(rows * residual_stride_));
  for (std::int64_t r = 0; r < rows; ++r) {
    std::memcpy(staged + r * residual_stride_, from + r * stride, std::size_t(panel.valid * size));
  }
  residual_ = staged;
}

void BlockRunner::RunTile(const WorkItem& item, const PanelAtHand& panel, std::int64_t row,
                          std::int64_t rows, std::int64_t begin, std::int64_t end) {
  SetUp(int(rows));
  if (operands_.residual != nullptr) SetResidual(item.first_row + row, rows, panel);
  const std::int64_t out_row = plan_.key.shape.n * out_size_;
  std::uint8_t* const out = panel.out + row * out_row;
  RunSteps(item, panel, row, rows, panel.staged != nullptr ? panel.staged : out, begin, end);
  if (panel.staged == nullptr) return;
  Finish();
  if (!plan_.is_parts && end < plan_.k_blocks) return;  // there is no result yet
  for (std::int64_t r = 0; r < rows; ++r) {
    std::memcpy(out + r * out_row, panel.staged + r * panel.out_stride,
                std::size_t(panel.valid * out_size_));
  }
}

void BlockRunner::RunSteps(const WorkItem& item, const PanelAtHand& panel, std::int64_t row,
                           std::int64_t rows, std::uint8_t* out, std::int64_t begin,
                           std::int64_t end) {
  const bool defers = family_.finish != nullptr;
  for (const TileStep& step : plan_.Steps(rows, panel.width)) {
    // Of blocks of K none is deferred: they may share the arguments.
    const int turn = turn_;
    TileArgs& args = args_[turn];
    if (defers) turn_ = 1 - turn;
    SetRows(args, step.column, row, out);
    for (std::int64_t block = begin; block < end; ++block) {
      const ColumnsSet columns{panel.taken, step.column, block};
      if (defers || !(columns == set_[turn])) SetColumns(args, panel, step.column, block);
      set_[turn] = columns;
      const std::int64_t first = block * plan_.k_block;
      args.a = workspace_.rows.a(row) + first * a_size_;
      args.row_sums = workspace_.rows.sums(Sums() == 1 ? 0 : block, row);
      args.sums = panel.sums ? panel.sums + row * kPanelColumns + step.column : nullptr;
      const int part = int(plan_.is_parts || plan_.k_blocks == 1 ? KPart::kWhole
                           : block == 0                          ? KPart::kFirst
                           : block < plan_.k_blocks - 1          ? KPart::kMiddle
                                                                 : KPart::kLast);
      args.key = &step.keys[part];
      SetNext(args, item, panel, row, rows, first, step.column);
      step.kernels[part](&args);
    }
    fetched_ += rows * row_bytes_;
  }
}

void BlockRunner::SetRows(TileArgs& args, std::int64_t column, std::int64_t row,
                          std::uint8_t* out) const {
  const PreparedRows& prepared = workspace_.rows;
  args.row_negative_zeros = prepared.negative_zeros(row);
  args.row_scales = prepared.scales(row);
  args.row_groups = prepared.groups(row);
  // What is kept from block to block is that of all rows.
  args.partial = partial_ + (plan_.MakesPanels() ? row * kPanelColumns + column : 0);
  args.out = out + column * out_size_;
  if (residual_ == nullptr) return;
  args.residual = residual_ + column * SizeOf(plan_.epilogue.residual);
  args.residual_stride = residual_stride_;
}

void BlockRunner::SetColumns(TileArgs& args, const PanelAtHand& panel, std::int64_t column,
                             std::int64_t block) const {
  const auto at = [](const auto* p, std::int64_t offset) { return p == nullptr ? p : p + offset; };
  const PanelColumns& columns = panel.columns;
  args.out_stride = panel.out_stride;
  args.bias = at(columns.bias, column);
  args.out_inverses = panel.inverses + column;
  const std::int64_t of_sums = Sums() == 1 ? 0 : block;
  args.column_sums = at(columns.sums, of_sums * columns.sums_stride + column);
  const std::int64_t group = of_sums * columns.scales_stride + column;
  args.column_scales = at(columns.scales, group);
  args.column_zeros = at(columns.zeros, group);

  const bool made = plan_.MakesPanels();
  const std::int64_t first = block * plan_.k_block, rest = plan_.layout.PaddedK() - first;
  const std::int64_t length = plan_.parts ? 0 : std::min(plan_.k_block, rest);
  const std::int64_t elements = made ? 1 : ElementsOfStep(plan_.layout.w);
  const std::int64_t steps_before = made ? 0 : first / elements;
  args.quads = length / elements;
  args.b = plan_.key.acc16 ? panel.w + column * plan_.layout.PaddedK()
                           : panel.w + (steps_before * panel.width + column) * kStepBytes;
  if (args.groups == 0) return;
  const BlockForm& form = plan_.layout.blocks;
  args.b += panel.width * form.Bytes();
  args.block_scales = reinterpret_cast<const std::uint8_t*>(panel.w) + column * form.ScaleBytes();
  args.group_bytes = panel.width * plan_.layout.GroupBytes();
  args.row_groups_stride = workspace_.rows.groups_stride();
}

void BlockRunner::SetNext(TileArgs& args, const WorkItem& item, const PanelAtHand& panel,
                          std::int64_t row, std::int64_t rows, std::int64_t first_k,
                          std::int64_t column) {
  const std::int64_t offset = first_k * rows * a_size_;
  if (next_rows_ != nullptr) {
    if (fetched_ >= rows * plan_.RowBytes()) fetched_ = 0;
    args.next = next_rows_ + fetched_ + offset;
    return;
  }
  if (panel.next_w == nullptr) {
    args.next = workspace_.rows.a(row + rows) + offset;
    if (family_.finish != nullptr) args.next_bytes = rows * plan_.a_stride / plan_.k_blocks;
    return;
  }
  if (family_.finish != nullptr) {
    // A single tile streams its own.
    const std::int64_t bytes = rows == item.rows ? 0 : panel_bytes_;
    args.next = panel.next_w + bytes * row / item.rows;
    args.next_bytes = bytes * rows / item.rows / plan_.k_blocks;
    return;
  }
  const std::int64_t columns = args.key->columns;
  if (args.key->FetchesPart()) {
    const std::int64_t steps = first_k / ElementsOfStep(plan_.layout.w);
    args.next = panel.next_w + column * panel_bytes_ / kPanelColumns + steps * columns * kStepBytes;
    return;
  }
  if (fetched_ >= panel_bytes_) fetched_ = 0;
  args.next = panel.next_w + fetched_ + offset;
}

}  // namespace qgemm
