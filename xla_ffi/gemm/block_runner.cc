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

BlockRunner::BlockRunner(const Plan& plan, const GemmOperands& operands, Workspace& workspace)
    : plan_(plan),
      family_(*plan.family),
      operands_(operands),
      workspace_(workspace),
      tiles_(plan, operands, workspace),
      panel_bytes_(plan.layout.PanelOffset(1)),
      column_sums_(operands.column_sums) {
  if (plan.k_blocks == 1 && !plan.is_parts && !plan.epilogue.float_sums) SumColumnBlocks();
}

void BlockRunner::Run(const WorkItem& item, bool new_rows, std::int64_t panel,
                      const std::int32_t* sums) {
  PanelAtHand& at_hand = workspace_.panels[0];
  Take(item, panel, sums, at_hand);
  const bool more_rows = plan_.key.shape.m > family_.max_rows;
  const bool fetch_rows =
      (new_rows && more_rows) || plan_.PreparesPanels();  // whose blocks leave the L2
  if (fetch_rows) at_hand.next_w = nullptr;
  if (!plan_.MakesPanels()) {
    const std::int64_t begin = plan_.is_parts ? item.part : 0;
    tiles_.Run(item, 1, begin, plan_.is_parts ? begin + 1 : plan_.k_blocks, false);
    return;
  }
  for (std::int64_t block = 0; block < plan_.k_blocks; ++block) {
    at_hand.w = plan_.transpose != nullptr ? Transposed(at_hand, block) : Widened(at_hand, block);
    tiles_.Run(item, 1, block, block + 1, false);
  }
}

std::int64_t BlockRunner::RunAcross(const WorkItem& item, std::int64_t begin) {
  const std::int64_t first = item.first_panel + begin;
  const std::int64_t whole = plan_.key.shape.n / kPanelColumns - first;
  const std::int64_t count = std::min(item.panels - begin, whole);
  if (count < 2 || !tiles_.WalksAcross(item)) return 0;
  Take(item, first, nullptr, workspace_.panels[0]);
  tiles_.RunAcross(item, count);
  return count;
}

std::int64_t BlockRunner::RunNewRows(const WorkItem& item) {
  const std::int64_t count = std::min(plan_.fresh_panels, item.panels);
  PanelAtHand* const panels = workspace_.panels;
  for (std::int64_t p = 0; p < count; ++p) Take(item, item.first_panel + p, nullptr, panels[p]);
  for (std::int64_t p = 0; p < count; ++p) panels[p].next_w = panels[count - 1].next_w;
  tiles_.Run(item, count, 0, plan_.k_blocks, true);
  return count;
}

void BlockRunner::Take(const WorkItem& item, std::int64_t panel, const std::int32_t* sums,
                       PanelAtHand& to) {
  const std::int64_t n = plan_.key.shape.n;
  to.first_column = panel * kPanelColumns;
  to.width = plan_.layout.PanelWidth(panel);
  to.valid = std::min(to.width, n - to.first_column);
  const bool padded = to.valid < to.width;
  to.columns = ColumnsAt(operands_, plan_, column_sums_, to.first_column);
  if (padded) to.columns = PaddedColumns(to.columns, to.valid, tiles_.Sums(), workspace_.columns);
  to.w = operands_.w + panel * panel_bytes_;
  // Most likely this thread's, though another item's.
  to.next_w = panel + 1 < plan_.layout.Panels() ? to.w + panel_bytes_ : operands_.w;
  to.sums = sums;
  if (plan_.key.acc16) {
    workspace_.splitter->Split(to.w, to.width, family_.max_columns(1));
    to.w = workspace_.splitter->weights();
    to.sums = workspace_.splitter->sums();
  }
  const std::int64_t of_partial = plan_.MakesPanels() ? item.rows : family_.max_rows;
  to.partial = workspace_.partial.Reserve<float>(std::size_t(of_partial * kPanelColumns));

  const std::int64_t out_size = SizeOf(plan_.epilogue.out);
  const std::int64_t first_row = item.part * plan_.key.shape.m + item.first_row;
  to.out = static_cast<std::uint8_t*>(operands_.out) + (first_row * n + to.first_column) * out_size;
  to.staged = nullptr;
  if (padded) {
    to.staged = workspace_.out_tile.Reserve<std::uint8_t>(
        std::size_t(family_.max_rows * kPanelColumns * out_size));
  }
  if (plan_.epilogue.out_scale_per_column) {
    Finish();
    InvertScales(to);
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

}  // namespace qgemm
