#include "gemm/describe.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "gemm/names.h"
#include "gemm/plan.h"
#include "gemm/quantize_rows.h"

namespace qgemm {
namespace {

std::string Joined(const char* a, const char* b) { return std::string(a) + ":" + b; }

int Participants(int threads, std::int64_t items) {
  return int(std::clamp<std::int64_t>(items, 1, threads));
}

// The kernel that does the most: of the most rows, in a whole panel. Null for an empty product.
const TileKey* MainTile(const Plan& plan) {
  const KPart part = plan.k_blocks == 1 || plan.is_parts ? KPart::kWhole : KPart::kLast;
  for (std::size_t rows = std::size(plan.steps); rows > 0; --rows) {
    for (const auto& steps : plan.steps[rows - 1]) {
      if (!steps.empty()) return &steps.front().keys[int(part)];
    }
  }
  return nullptr;
}

// Of the largest work item: rows x columns.
std::string Block(const Plan& plan) {
  std::int64_t rows = 0, columns = 0;
  for (const WorkItem& item : plan.items) {
    const std::int64_t width = std::min(item.panels * kPanelColumns, plan.key.shape.n);
    if (item.rows * width <= rows * columns) continue;
    rows = item.rows;
    columns = width;
  }
  return Dims({rows, columns});
}

}  // namespace

CallLine DescribeGemm(const Plan& plan) {
  const auto& [shape, spec, isa, threads, acc16, f32_panels] = plan.key;
  CallLine line{"gemm", IsaName(isa), "none",      Joined(Name(spec.x), Name(spec.w)),
                {},     {},           plan.threads};
  if (spec.transposed) line.types += "^T";
  line.types += std::string(":") + Name(spec.epilogue.out);
  if (shape.batch != 1 || shape.ragged) {
    line.shape = std::to_string(shape.batch) + (shape.ragged ? "|" : "*");
  }
  line.shape += Dims({shape.m, shape.n, shape.k});
  const Plan& main = plan.parts ? *plan.parts : plan;  // what takes the time
  if (const TileKey* tile = MainTile(main)) {
    const bool copied = !IsFloat(spec.x) || IsAsItIs(plan.family->a_format);
    const char* rows = plan.in_place      ? "in_place"
                       : copied           ? "copied"
                       : spec.FloatSums() ? "widened"
                                          : "quantized";
    line.kernel = Name(*tile);
    line.plan = "tile:" + Dims({tile->rows, tile->columns});
    if (!shape.ragged) {  // whose items are those of a call
      const std::int64_t items = std::int64_t(main.items.size()) * main.products;
      line.plan += " block:" + Block(main) + " items:" + std::to_string(items);
    }
    line.plan += " k_blocks:" + std::to_string(plan.k_blocks) + " rows:" + rows +
                 (acc16 ? " sums:int16" : "") + (f32_panels ? " panels:f32" : "") +
                 (plan.parts ? " k_parts:" + std::to_string(plan.parts->k_blocks) : "");
  } else {
    line.plan = "items:0";
  }
  return line;
}

CallLine DescribeQuantize(const QuantizeRowsOperands& operands, Isa isa, std::int64_t items,
                          std::int64_t rows_per_item, int threads) {
  const bool per_row = operands.row_scales != nullptr;
  const bool asymmetric = operands.row_zeros != nullptr;
  const QuantizeArgs& args = operands.static_args;
  const float least = args.low + float(args.zero);  // of q
  const bool is_signed = per_row ? !asymmetric : least < 0;
  CallLine line{"quantize", IsaName(isa), {}, {}, {}, {}, Participants(threads, items)};
  if (per_row) line.kernel = RowKernelName(RowOp::kRange, operands.x_type) + "+";
  line.kernel += RowKernelName(RowOp::kToByte, operands.x_type);
  line.types = Joined(Name(operands.x_type), is_signed ? "s8" : "u8");
  line.shape = Dims({operands.rows, operands.k});
  line.plan = std::string("scheme:") +
              (!per_row     ? "static"
               : asymmetric ? "per_row_asymmetric"
                            : "per_row_symmetric") +
              " block:" + Dims({std::min(rows_per_item, operands.rows), operands.k}) +
              " items:" + std::to_string(items);
  return line;
}

CallLine DescribePack(const PackedLayout& layout, int threads) {
  return {"pack",
          IsaName(Isa::kPortable),
          "pack_panel",
          Joined(Name(layout.w), Name(layout.w)),
          Dims({layout.k, layout.n}),
          "items:" + std::to_string(layout.Panels()),
          Participants(threads, layout.Panels())};
}

}  // namespace qgemm
