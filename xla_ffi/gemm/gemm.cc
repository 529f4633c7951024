#include "gemm/gemm.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <type_traits>
#include <utility>

#include "gemm/block_runner.h"
#include "runtime/float_env.h"

namespace qgemm {

GemmOperands GemmOperands::Of(std::int64_t index) const {
  const auto move = [index](auto& pointer, std::int64_t stride) {
    using Pointer = std::remove_reference_t<decltype(pointer)>;
    if (pointer == nullptr) return;
    const auto address = reinterpret_cast<std::uintptr_t>(pointer) + std::uintptr_t(index * stride);
    pointer = reinterpret_cast<Pointer>(address);
  };
  GemmOperands o = *this;
  move(o.x, strides.x);
  move(o.w, strides.w);
  move(o.w_scale, strides.w_scale);
  move(o.column_sums, strides.column_sums);
  move(o.w_zero, strides.w_zero);
  move(o.x_scale, strides.x_scale);
  move(o.x_zero, strides.x_zero);
  move(o.bias, strides.bias);
  move(o.residual, strides.residual);
  move(o.out_scale, strides.out_scale);
  move(o.out_zero, strides.out_zero);
  move(o.out, strides.out);
  return o;
}

const std::vector<WorkItem>& RaggedItems(const Plan& plan, const GemmOperands& operands) {
  thread_local std::vector<WorkItem> items;
  items.clear();
  const GemmShape& shape = plan.key.shape;
  if (shape.m == 0 || shape.n == 0) return items;
  const std::int64_t rows = shape.batch == 0 ? 0 : AddGroups(plan, operands.group_sizes, items);
  const std::int64_t row_bytes = shape.n * SizeOf(plan.epilogue.out);
  std::memset(static_cast<std::uint8_t*>(operands.out) + rows * row_bytes, 0,
              std::size_t((shape.m - rows) * row_bytes));
  return items;
}

std::int32_t* PartSums(const Plan& plan) {
  const GemmShape& shape = plan.key.shape;
  return ThreadWorkspace().parts.Reserve<std::int32_t>(
      std::size_t(plan.parts->k_blocks * shape.m * shape.n));
}

void FinishParts(const Plan& plan, const GemmOperands& operands, const std::int32_t* parts,
                 bool has_rows) {
  const FloatEnvironment ieee;
  const auto& [m, n, k, batch, ragged] = plan.key.shape;
  Workspace& workspace = ThreadWorkspace();
  const WorkItem& item = plan.items.front();
  if (!has_rows) {
    workspace.rows.Begin(plan, operands, 0, m);
    workspace.rows.Fill(plan, operands);
  }
  auto* sums = workspace.sums.Reserve<std::int32_t>(std::size_t(m * kPanelColumns));
  BlockRunner runner(plan, operands, workspace);
  for (std::int64_t panel = 0; panel < item.panels; ++panel) {
    const std::int64_t first = panel * kPanelColumns;
    const std::int64_t valid = std::min(kPanelColumns, n - first);
    std::fill_n(sums, m * kPanelColumns, 0);
    for (std::int64_t row = 0; row < plan.parts->k_blocks * m; ++row) {
      std::int32_t* const to = sums + row % m * kPanelColumns;
      for (std::int64_t i = 0; i < valid; ++i) {
        // May wrap, as the kernels do.
        to[i] = std::int32_t(std::uint32_t(to[i]) + std::uint32_t(parts[row * n + first + i]));
      }
    }
    runner.Run(item, true, panel, sums);
  }
}

void RunItems(const Plan& plan, const std::vector<WorkItem>& items, const GemmOperands& operands,
              Job::Participant& self, std::int64_t first) {
  const FloatEnvironment ieee;
  Workspace& workspace = ThreadWorkspace();
  const Plan& tiles = plan.parts ? *plan.parts : plan;
  GemmOperands current;
  std::optional<BlockRunner> runner;
  std::int64_t batch = -1;
  bool prepared = false;  // rows, of this product
  const auto of_product = std::int64_t(items.size());
  for (std::int64_t i = first; i >= 0; i = self.Next()) {
    const WorkItem& item = items[i % of_product];
    if (const std::int64_t product = item.batch + i / of_product; product != batch) {
      batch = product;
      prepared = false;
      current = operands.Of(batch);
      runner.emplace(tiles, current, workspace);
    }
    const bool new_rows = !prepared || !workspace.rows.Seek(item.first_row, item.rows);
    std::int64_t p = 0;
    if (new_rows) {
      workspace.rows.Begin(plan, current, item.first_row, item.rows);
      prepared = true;
      if (tiles.fresh_panels > 0 && tiles.Tiles(item.rows).parts > 1) {
        p = runner->RunNewRows(item);
      } else {
        workspace.rows.Fill(plan, current);
      }
    }
    if (new_rows && plan.key.acc16) {
      if (workspace.splitter == nullptr) workspace.splitter = plan.family->make_splitter();
      workspace.splitter->SetRows(workspace.rows.a(0), plan.a_stride, item.rows,
                                  plan.layout.PaddedK() / kQuad);
    }
    p += runner->RunAcross(item, p);
    for (; p < item.panels; ++p) runner->Run(item, new_rows && p == 0, item.first_panel + p);
    runner->Finish();
  }
}

}  // namespace qgemm
