#include "gemm/gemm.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "gemm/quantize.h"
#include "gemm/rows.h"
#include "runtime/float_env.h"
#include "runtime/scratch.h"

namespace qgemm {
namespace {

// Of one thread, kept between calls.
struct Workspace {
  PreparedRows rows;
  std::unique_ptr<PanelSplitter> splitter;
  Scratch partial, out_tile, residual_tile, columns, column_sums;
  Scratch parts, sums;  // of a product whose K is in parts
  Scratch f32_panel;
  DeferredTile deferred;
};

Workspace& ThreadWorkspace() {
  thread_local Workspace workspace;
  return workspace;
}

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

// Runs the tiles of one row block and one panel.
class BlockRunner {
 public:
  BlockRunner(const Plan& plan, const GemmOperands& operands, Workspace& workspace)
      : plan_(plan), family_(*plan.family), operands_(operands), workspace_(workspace) {
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
      const QuantizeArgs q = StaticQuantizeArgs(scale, *operands.out_zero, is_signed ? -128 : 0,
                                                is_signed ? 127 : 255);
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
  BlockRunner(const BlockRunner&) = delete;
  BlockRunner& operator=(const BlockRunner&) = delete;
  // May come after the last item, when the plan is gone; families stay.
  ~BlockRunner() {
    if (set_up_rows_ != 0) family_.set_up(0)();
  }

  // Before the rows of x change, and before others have the results.
  void Finish() {
    if (family_.finish != nullptr) family_.finish(workspace_.deferred);
  }

  // While the rows are new, a tile fetches those of the next one; later, a part of the next panel.
  // `sums`, [rows][kPanelColumns], where the kernels start from sums that come from elsewhere.
  void Run(const WorkItem& item, bool new_rows, std::int64_t panel, std::int64_t next_panel,
           const std::int32_t* sums = nullptr) {
    const std::int64_t n = plan_.key.shape.n;
    const std::int64_t first_column = first_column_ = panel * kPanelColumns;
    const std::int64_t width = plan_.layout.PanelWidth(panel);
    const std::int64_t valid = std::min(width, n - first_column);
    const bool padded = valid < width;
    columns_ = ColumnsAt(operands_, plan_, column_sums_, first_column);
    if (padded) columns_ = PaddedColumns(columns_, valid, Sums(), workspace_.columns);
    width_ = width;
    w_ = operands_.w + plan_.layout.PanelOffset(panel);
    sums_ = sums;
    if (plan_.key.acc16) {
      workspace_.splitter->Split(w_, width, family_.max_columns(1));
      w_ = workspace_.splitter->weights();
      sums_ = workspace_.splitter->sums();
    }
    part_ = item.part;
    item_rows_ = item.rows;
    const bool more_rows = plan_.key.shape.m > family_.max_rows;
    const bool fetch_rows =
        (new_rows && more_rows) || plan_.PreparesPanels();  // whose blocks leave the L2
    next_w_ = fetch_rows ? nullptr : operands_.w + plan_.layout.PanelOffset(next_panel);
    const std::int64_t of_partial = plan_.MakesPanels() ? item.rows : family_.max_rows;
    partial_ = workspace_.partial.Reserve<float>(std::size_t(of_partial * kPanelColumns));

    const std::int64_t out_row = n * out_size_;
    const std::int64_t first_row = item.part * plan_.key.shape.m + item.first_row;
    auto* out =
        static_cast<std::uint8_t*>(operands_.out) + first_row * out_row + first_column * out_size_;
    out_stride_ = out_row;
    std::uint8_t* staged = nullptr;
    if (plan_.epilogue.out_scale_per_column) {
      Finish();
      InvertScales(first_column, valid);
    }
    if (padded) {
      out_stride_ = kPanelColumns * out_size_;
      staged =
          workspace_.out_tile.Reserve<std::uint8_t>(std::size_t(family_.max_rows * out_stride_));
    }
    if (!plan_.MakesPanels()) {
      const std::int64_t begin = plan_.is_parts ? part_ : 0;
      RunTiles(item, out, staged, begin, plan_.is_parts ? part_ + 1 : plan_.k_blocks, valid);
      return;
    }
    for (std::int64_t block = 0; block < plan_.k_blocks; ++block) {
      w_ = plan_.transpose != nullptr ? Transposed(panel, block) : Widened(panel, block);
      RunTiles(item, out, staged, block, block + 1, valid);
    }
  }

 private:
  // All tiles of a panel, from block to block of K; `staged`, if there is one, has room for the
  // result of one, of which so many columns are `valid`.
  void RunTiles(const WorkItem& item, std::uint8_t* out, std::uint8_t* staged, std::int64_t begin,
                std::int64_t end, std::int64_t valid) {
    const std::int64_t out_row = plan_.key.shape.n * out_size_;
    const bool ends = plan_.is_parts || end == plan_.k_blocks;
    // The larger tiles come first.
    const EvenSplit tiles = plan_.Tiles(item.rows);
    std::int64_t row = 0;
    for (const auto& [count, rows] : {std::pair(tiles.Larger(), tiles.Size(0)),
                                      std::pair(tiles.parts - tiles.Larger(), tiles.Smaller())}) {
      if (count == 0) continue;
      SetUp(int(rows));
      const std::vector<TileStep>& steps = plan_.Steps(rows, width_);
      for (std::int64_t tile = 0; tile < count; ++tile, row += rows, out += rows * out_row) {
        if (operands_.residual != nullptr) {
          SetResidual(item.first_row + row, rows, first_column_, valid, staged != nullptr);
        }
        RunTile(steps, row, rows, staged != nullptr ? staged : out, begin, end);
        if (staged != nullptr) Finish();
        for (std::int64_t r = 0; staged != nullptr && ends && r < rows; ++r) {
          std::memcpy(out + r * out_row, staged + r * out_stride_, std::size_t(valid * out_size_));
        }
      }
    }
  }

  // A part of a panel, for a block of K.
  const std::int8_t* Transposed(std::int64_t panel, std::int64_t block) {
    const std::int64_t first = block * plan_.k_block;
    const std::int64_t columns = std::min(plan_.k_block, plan_.layout.k - first);
    auto* to = workspace_.f32_panel.Reserve<float>(std::size_t(columns * kPanelColumns));
    const GemmSpec& spec = plan_.key.spec;
    plan_.transpose({plan_.source, operands_.w, operands_.w_scale, operands_.w_zero,
                     IsBlocks(spec.w) ? 0 : spec.group, first, columns},
                    panel, to);
    return reinterpret_cast<const std::int8_t*>(to);
  }

  const std::int8_t* Widened(std::int64_t panel, std::int64_t block) {
    const PackedLayout& layout = plan_.layout;
    const std::int64_t first = block * plan_.k_block, elements = ElementsOfStep(layout.w);
    const std::int64_t length = std::min(plan_.k_block, layout.PaddedK() - first);
    auto* to = workspace_.f32_panel.Reserve<float>(std::size_t((length + 2) * kPanelColumns));
    TileArgs args{};
    args.out = to;
    args.b = operands_.w + layout.PanelOffset(panel);
    if (IsBlocks(layout.w)) {
      args.group_bytes = width_ * layout.GroupBytes();
      args.b += first / layout.group * args.group_bytes;
      args.block_scales = reinterpret_cast<const std::uint8_t*>(args.b);
      args.b += width_ * layout.blocks.Bytes();
      args.groups = length / layout.group;
      args.group_steps = layout.StepsOfGroup();
    } else {
      args.b += first / elements * width_ * kStepBytes;
      args.quads = length / elements;
    }
    args.column_zeros = columns_.zeros;
    args.partial = to + length * kPanelColumns;
    const int index = PanelKind(width_);
    args.key = &plan_.widen_keys[index];
    plan_.widen[index](&args);
    return reinterpret_cast<const std::int8_t*>(to);
  }

  void SetUp(int rows) {
    if (family_.set_up == nullptr || rows == set_up_rows_) return;
    family_.set_up(rows)();
    set_up_rows_ = rows;
  }

  // Blocks of K that have sums of their own; parts and those of f32 panels have none and need none.
  std::int64_t Sums() const { return plan_.is_parts || plan_.MakesPanels() ? 1 : plan_.k_blocks; }

  // An int32 result takes K in one piece; the packed sums may be in several.
  void SumColumnBlocks() {
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

  void InvertScales(std::int64_t first_column, std::int64_t valid) {
    for (std::int64_t i = 0; i < kPanelColumns; ++i) {
      inverses_[i] = i < valid ? InverseScale(operands_.out_scale[first_column + i]) : 0.0F;
    }
  }

  // A tile's part of the residual, in whole vectors.
  void SetResidual(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns,
                   bool padded) {
    const std::int64_t size = SizeOf(plan_.epilogue.residual);
    const std::int64_t stride = plan_.key.shape.n * size;
    const auto* from =
        static_cast<const std::uint8_t*>(operands_.residual) + row * stride + column * size;
    residual_ = from;
    residual_stride_ = stride;
    if (!padded) return;
    residual_stride_ = kPanelColumns * size;
    auto* staged = workspace_.residual_tile.Reserve<std::uint8_t>(
        std::size_t(family_.max_rows * residual_stride_));
    std::memset(staged, 0, std::size_t(rows * residual_stride_));
    for (std::int64_t r = 0; r < rows; ++r) {
      std::memcpy(staged + r * residual_stride_, from + r * stride, std::size_t(columns * size));
    }
    residual_ = staged;
  }

  void RunTile(const std::vector<TileStep>& steps, std::int64_t row, std::int64_t rows,
               std::uint8_t* out, std::int64_t begin, std::int64_t end) {
    const PreparedRows& prepared = workspace_.rows;
    const auto at = [](const auto* p, std::int64_t column) {
      return p == nullptr ? p : p + column;
    };
    for (const TileStep& step : steps) {
      // Of blocks of K none is deferred: they may share the arguments.
      TileArgs& args = args_[turn_];
      if (family_.finish != nullptr) turn_ = 1 - turn_;
      args.row_negative_zeros = prepared.negative_zeros(row);
      args.row_scales = prepared.scales(row);
      // What is kept from block to block is that of all rows.
      const bool kept = plan_.MakesPanels();
      args.partial = partial_ + (kept ? row * kPanelColumns + step.column : 0);
      args.out = out + step.column * out_size_;
      args.out_stride = out_stride_;
      args.bias = at(columns_.bias, step.column);
      args.residual = at(residual_, step.column * SizeOf(plan_.epilogue.residual));
      args.residual_stride = residual_stride_;
      args.out_inverses = inverses_ + step.column;
      for (std::int64_t block = begin; block < end; ++block) {
        const std::int64_t first = block * plan_.k_block;
        const std::int64_t rest = plan_.layout.PaddedK() - first;
        const std::int64_t length = plan_.parts ? 0 : std::min(plan_.k_block, rest);
        args.a = prepared.a(row) + first * a_size_;
        const std::int64_t elements = kept ? 1 : ElementsOfStep(plan_.layout.w);
        const std::int64_t steps_before = kept ? 0 : first / elements;
        args.b = plan_.key.acc16 ? w_ + step.column * plan_.layout.PaddedK()
                                 : w_ + (steps_before * width_ + step.column) * kStepBytes;
        args.quads = length / elements;
        if (args.groups > 0) SetGroups(args, step.column, row);
        const std::int64_t of_sums = block % Sums();
        args.row_sums = prepared.sums(of_sums, row);
        args.sums = at(sums_, row * kPanelColumns + step.column);
        args.column_sums = at(columns_.sums, of_sums * columns_.sums_stride + step.column);
        const std::int64_t group = of_sums * columns_.scales_stride + step.column;
        args.column_scales = at(columns_.scales, group);
        args.column_zeros = at(columns_.zeros, group);
        const KPart part = plan_.is_parts || plan_.k_blocks == 1 ? KPart::kWhole
                           : block == 0                          ? KPart::kFirst
                           : block < plan_.k_blocks - 1          ? KPart::kMiddle
                                                                 : KPart::kLast;
        args.key = &step.keys[int(part)];
        SetNext(args, row, rows, first, step.column);
        step.kernels[int(part)](&args);
      }
    }
  }

  // Of weights in blocks.
  void SetGroups(TileArgs& args, std::int64_t column, std::int64_t row) const {
    const BlockForm& form = plan_.layout.blocks;
    args.b += width_ * form.Bytes();
    args.block_scales = reinterpret_cast<const std::uint8_t*>(w_) + column * form.ScaleBytes();
    args.group_bytes = width_ * plan_.layout.GroupBytes();
    args.row_groups = workspace_.rows.groups(row);
    args.row_groups_stride = workspace_.rows.groups_stride();
  }

  // What a tile fetches meanwhile. Where the tiles have all of the next panel, they begin again.
  void SetNext(TileArgs& args, std::int64_t row, std::int64_t rows, std::int64_t first_k,
               std::int64_t column) const {
    const std::int64_t offset = first_k * rows * a_size_;
    if (next_w_ == nullptr) {
      args.next = workspace_.rows.a(row + rows) + offset;
      if (family_.finish != nullptr) args.next_bytes = rows * plan_.a_stride / plan_.k_blocks;
      return;
    }
    const std::int64_t panel_bytes = plan_.layout.PanelOffset(1);
    if (family_.finish != nullptr) {
      // A single tile streams its own.
      const std::int64_t bytes = rows == item_rows_ ? 0 : panel_bytes;
      args.next = next_w_ + bytes * row / item_rows_;
      args.next_bytes = bytes * rows / item_rows_ / plan_.k_blocks;
      return;
    }
    const std::int64_t columns = args.key->columns;
    if (args.key->FetchesPart()) {
      const std::int64_t steps = first_k / ElementsOfStep(plan_.layout.w);
      args.next = next_w_ + column * panel_bytes / kPanelColumns + steps * columns * kStepBytes;
      return;
    }
    const std::int64_t row_bytes = plan_.layout.PaddedK() * a_size_;
    const std::int64_t rows_before = (row * width_ + column * rows) / columns;
    args.next =
        next_w_ + (rows_before * row_bytes + offset) % std::max<std::int64_t>(1, panel_bytes);
  }

  const Plan& plan_;
  const KernelFamily& family_;
  const GemmOperands& operands_;
  Workspace& workspace_;
  TileArgs args_[2]{};  // of a tile, and of one whose end is deferred
  int turn_ = 0;
  int set_up_rows_ = 0;
  std::int64_t out_size_ = 4;
  std::int64_t a_size_ = 1;
  const std::int32_t* column_sums_ = nullptr;
  float* partial_ = nullptr;  // sums of the blocks of K so far
  // Of the panel at hand.
  PanelColumns columns_{};
  std::int64_t width_ = 0;
  std::int64_t first_column_ = 0;
  std::int64_t part_ = 0;
  std::int64_t item_rows_ = 0;
  const std::int32_t* sums_ = nullptr;
  const std::int8_t* w_ = nullptr;
  const std::int8_t* next_w_ = nullptr;  // where the rows are in the cache
  float inverses_[kPanelColumns] = {};
  const std::uint8_t* residual_ = nullptr;  // of the tile at hand
  std::int64_t out_stride_ = 0, residual_stride_ = 0;
};

}  // namespace

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
  if (!has_rows) workspace.rows.Prepare(plan, operands, 0, m);
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
    runner.Run(item, true, panel, panel, sums);
  }
}

void RunItems(const Plan& plan, const std::vector<WorkItem>& items, const GemmOperands& operands,
              Job::Participant& self, std::int64_t first) {
  const FloatEnvironment ieee;
  Workspace& workspace = ThreadWorkspace();
  const Plan& tiles = plan.parts ? *plan.parts : plan;
  GemmOperands current;
  std::optional<BlockRunner> runner;
  std::int64_t batch = -1, prepared = -1;  // first row
  const auto of_product = std::int64_t(items.size());
  for (std::int64_t i = first; i >= 0; i = self.Next()) {
    const WorkItem& item = items[i % of_product];
    if (const std::int64_t product = item.batch + i / of_product; product != batch) {
      batch = product;
      prepared = -1;
      current = operands.Of(batch);
      runner.emplace(tiles, current, workspace);
    }
    const bool new_rows = item.first_row != prepared;
    if (new_rows) {
      workspace.rows.Prepare(plan, current, item.first_row, item.rows);
      prepared = item.first_row;
      if (plan.key.acc16) {
        if (workspace.splitter == nullptr) workspace.splitter = plan.family->make_splitter();
        workspace.splitter->SetRows(workspace.rows.a(0), plan.a_stride, item.rows,
                                    plan.layout.PaddedK() / kQuad);
      }
    }
    for (std::int64_t p = 0; p < item.panels; ++p) {
      // Most likely this thread's, though another item's.
      const std::int64_t next = (item.first_panel + p + 1) % plan.layout.Panels();
      runner->Run(item, new_rows && p == 0, item.first_panel + p, next);
    }
    runner->Finish();
  }
}

}  // namespace qgemm
