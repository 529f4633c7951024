#include "attention/attention.h"

#include <cmath>
#include <string>

#include "attention/softmax.h"
#include "gemm/names.h"
#include "gemm/plan.h"
#include "portable/half.h"
#include "runtime/float_env.h"
#include "runtime/scratch.h"

namespace qgemm {
namespace {

constexpr float kLog2E = 1.4426950408889634F;
constexpr std::int64_t kFloat = sizeof(float);
// Multiplications of f32 that are worth a thread more, at hand or to be woken.
constexpr double kMacsToHand = 20e3, kMacsToWake = 300e3;

// Of one thread, kept between calls.
struct Workspace {
  Scratch queries, scores, mixed;
};

Workspace& ThreadWorkspace() {
  thread_local Workspace workspace;
  return workspace;
}

void StoreAs(XType type, float value, void* out, std::int64_t at) {
  if (type == XType::kF32) {
    static_cast<float*>(out)[at] = value;
  } else if (type == XType::kBf16) {
    static_cast<Bf16*>(out)[at] = ToBf16(value);
  } else {
    static_cast<F16*>(out)[at] = ToF16(value);
  }
}

// Products of f32 with int8: [rows, k] by `width` columns, in a panel of so many.
class Product {
 public:
  explicit Product(const KernelFamily& family) : family_(family) {
    for (float& one : ones_) one = 1;
  }

  // scales: of the columns, null for 1.
  void Run(const float* a, std::int64_t a_stride, const std::int8_t* panel, std::int64_t width,
           std::int64_t rows, std::int64_t quads, const float* scales, float* out,
           std::int64_t out_stride) {
    const int widest = family_.max_columns(int(rows));
    TileArgs args{};
    args.a = a;
    args.a_stride = a_stride * kFloat;
    args.next = a;
    args.quads = quads;
    args.out_stride = out_stride * kFloat;
    for (std::int64_t column = 0; column < width;) {
      const int columns = int(std::min<std::int64_t>(widest, width - column));
      args.b = panel + column * kStepBytes;
      args.out = out + column;
      args.column_scales = scales == nullptr ? ones_ : scales + column;
      const TileKey key = Key(int(rows), columns, int(width));
      args.key = &key;
      Kernel(key)(&args);
      column += columns;
    }
  }

 private:
  static TileKey Key(int rows, int columns, int width) {
    TileKey key;
    key.rows = rows;
    key.columns = columns;
    key.panel_columns = width;
    key.epilogue.float_sums = true;
    return key;
  }

  // The cache of kernels takes a lock: once for each kind of tile.
  TileFn Kernel(const TileKey& key) {
    for (int i = 0; i < known_; ++i) {
      if (keys_[i] == key) return kernels_[i];
    }
    const TileFn kernel = family_.tile(key);
    if (known_ < kMostKernels) {
      keys_[known_] = key;
      kernels_[known_++] = kernel;
    }
    return kernel;
  }

  static constexpr int kMostKernels = 16;
  const KernelFamily& family_;
  float ones_[kPanelColumns];
  TileKey keys_[kMostKernels];
  TileFn kernels_[kMostKernels] = {};
  int known_ = 0;
};

void Fetch(const std::int8_t* from, std::int64_t bytes) {
  constexpr std::int64_t kLine = 64;
  for (std::int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(from + i);
}

class ItemRunner {
 public:
  ItemRunner(const AttentionShape& shape, const AttentionOperands& operands, Isa isa)
      : shape_(shape),
        o_(operands),
        family_(FloatFamilyOf(isa)),
        to_f32_(family_.rows(operands.type).to_f32),
        softmax_(SoftmaxOf(isa)),
        product_(family_) {}

  void Run(std::int64_t item) {
    const std::int64_t blocks = CeilDiv(shape_.Rows(), kAttentionRows);
    const std::int64_t head = item / blocks;  // of the cache, of all batch elements
    batch_ = head / shape_.cache.heads;
    head_ = head % shape_.cache.heads;
    const EvenSplit rows{shape_.Rows(), blocks};
    first_ = rows.Begin(item % blocks);
    rows_ = rows.Size(item % blocks);
    const auto& [batch, heads, length, head_dim] = shape_.cache;
    key_ = o_.cache.key + head * shape_.cache.HeadBytes();
    value_ = o_.cache.value + head * shape_.cache.HeadBytes();
    key_scale_ = o_.cache.key_scale + head * length;
    value_scale_ = o_.cache.value_scale + head * length;
    const std::int64_t seen = Seen(rows_ - 1);             // by the last row, which sees the most
    stride_ = RoundUp(seen, kPanelColumns) + kColumnUnit;  // not a power of two apart
    Workspace& workspace = ThreadWorkspace();
    queries_ = workspace.queries.Reserve<float>(std::size_t(rows_ * head_dim));
    scores_ = workspace.scores.Reserve<float>(std::size_t(rows_ * stride_));
    mixed_ = workspace.mixed.Reserve<float>(std::size_t(family_.max_rows * head_dim));
    const bool fetches = rows_ <= family_.max_rows && Cpu().wants_fetches;
    if (fetches) FetchKeys(0, seen);
    LoadQueries();
    const EvenSplit tiles{rows_, CeilDiv(rows_, family_.max_rows)};
    const PackedLayout keys = shape_.cache.Keys();
    for (std::int64_t panel = 0; panel * kPanelColumns < seen; ++panel) {
      if (fetches) {
        FetchKeys(panel + 1, seen);
        FetchValues(panel, seen);
      }
      for (std::int64_t tile = 0; tile < tiles.parts; ++tile) {
        const std::int64_t row = tiles.Begin(tile), count = tiles.Size(tile);
        if (Seen(row + count - 1) <= panel * kPanelColumns) continue;
        product_.Run(queries_ + row * head_dim, head_dim, key_ + keys.PanelOffset(panel),
                     kPanelColumns, count, head_dim / kQuad, key_scale_ + panel * kPanelColumns,
                     scores_ + row * stride_ + panel * kPanelColumns, stride_);
      }
    }
    for (std::int64_t tile = 0; tile < tiles.parts; ++tile) {
      Mix(tiles.Begin(tile), tiles.Size(tile));
    }
  }

 private:
  // Positions that a row of the block sees, but for the mask.
  std::int64_t Seen(std::int64_t row) const {
    const std::int64_t query = (first_ + row) / shape_.HeadsPerCacheHead();
    const std::int64_t queries = shape_.causal ? query + 1 : shape_.queries;
    return std::clamp<std::int64_t>(o_.positions.Of(batch_) + queries, 0, shape_.cache.length);
  }

  // Few rows (a step of decoding) read a cache once, from memory, in pages that the hardware does
  // not see beyond. Keys are fetched a panel ahead, and beside them, as many as the L1 holds, the
  // values of the same positions (Zen 3, two cores: 1.2 times as fast at 500 and 2000 positions).
  void FetchKeys(std::int64_t panel, std::int64_t seen) const {
    const std::int64_t first = panel * kPanelColumns, dim = shape_.cache.head_dim;
    Fetch(key_ + first * dim, std::min(seen - first, kPanelColumns) * dim);
  }
  void FetchValues(std::int64_t panel, std::int64_t seen) const {
    const std::int64_t first = panel * kPanelColumns;
    if (first * shape_.cache.head_dim >= std::int64_t(Cpu().l1d_bytes)) return;
    const PackedLayout values = shape_.cache.Values();
    for (std::int64_t i = 0; i < values.Panels(); ++i) {
      const std::int64_t width = values.PanelWidth(i);
      Fetch(value_ + values.PanelOffset(i) + first * width,
            std::min(seen - first, kPanelColumns) * width);
    }
  }

  // Where the row of the block begins in query and out.
  std::int64_t Offset(std::int64_t row) const {
    const std::int64_t group = shape_.HeadsPerCacheHead();
    const std::int64_t query = (first_ + row) / group;
    const std::int64_t head = head_ * group + (first_ + row) % group;
    return ((batch_ * shape_.queries + query) * shape_.heads + head) * shape_.cache.head_dim;
  }

  void LoadQueries() {
    const std::int64_t head_dim = shape_.cache.head_dim;
    const float scale = o_.scale * kLog2E;
    for (std::int64_t row = 0; row < rows_; ++row) {
      float* const to = queries_ + row * head_dim;
      to_f32_(static_cast<const std::uint8_t*>(o_.query) + Offset(row) * SizeOf(o_.type), head_dim,
              to);
      for (std::int64_t d = 0; d < head_dim; ++d) to[d] *= scale;
    }
  }

  // The weighted sums of a tile of rows.
  void Mix(std::int64_t first, std::int64_t count) {
    const std::int64_t head_dim = shape_.cache.head_dim;
    const std::int64_t quads = CeilDiv(Seen(first + count - 1), kQuad);
    float sums[kMostTileRows];
    for (std::int64_t i = 0; i < count; ++i) {
      float* const scores = scores_ + (first + i) * stride_;
      const std::int64_t seen = Seen(first + i);
      const std::uint8_t* const mask =
          o_.mask == nullptr ? nullptr : o_.mask + batch_ * shape_.cache.length;
      for (std::int64_t l = 0; mask != nullptr && l < seen; ++l) {
        if (mask[l] == 0) scores[l] = -INFINITY;
      }
      sums[i] = softmax_(scores, value_scale_, seen);
      std::fill(scores + seen, scores + std::max(seen, quads * kQuad), 0.0F);
    }
    const PackedLayout values = shape_.cache.Values();
    for (std::int64_t panel = 0; panel < values.Panels(); ++panel) {
      product_.Run(scores_ + first * stride_, stride_, value_ + values.PanelOffset(panel),
                   values.PanelWidth(panel), count, quads, nullptr, mixed_ + panel * kPanelColumns,
                   head_dim);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const float inverse = sums[i] == 0 ? 0.0F : 1 / sums[i];
      for (std::int64_t d = 0; d < head_dim; ++d) {
        StoreAs(o_.type, mixed_[i * head_dim + d] * inverse, o_.out, Offset(first + i) + d);
      }
    }
  }

  const AttentionShape& shape_;
  const AttentionOperands& o_;
  const KernelFamily& family_;
  const WidenFn to_f32_;
  const SoftmaxFn softmax_;
  Product product_;
  // Of the item at hand.
  std::int64_t batch_ = 0, head_ = 0, first_ = 0, rows_ = 0, stride_ = 0;
  const std::int8_t *key_ = nullptr, *value_ = nullptr;
  const float *key_scale_ = nullptr, *value_scale_ = nullptr;
  float *queries_ = nullptr, *scores_ = nullptr, *mixed_ = nullptr;
};

}  // namespace

CallLine DescribeAttention(const AttentionShape& shape, const AttentionOperands& operands, Isa isa,
                           int threads) {
  const auto& [batch, heads, length, head_dim] = shape.cache;
  const std::string type = Name(operands.type);
  return {"attention",
          IsaName(isa),
          "tiles_f32_s8+softmax",
          type + ":s8:" + type,
          Dims({batch, shape.queries, shape.heads, head_dim}),
          "cache:" + Dims({heads, length}) + " items:" + std::to_string(AttentionItems(shape)) +
              (shape.causal ? " causal:1" : "") + (operands.mask != nullptr ? " mask:1" : ""),
          threads};
}

void RunAttentionItems(const AttentionShape& shape, const AttentionOperands& operands, Isa isa,
                       Job::Participant& self, std::int64_t first) {
  const FloatEnvironment ieee;
  ItemRunner runner(shape, operands, isa);
  for (std::int64_t item = first; item >= 0; item = self.Next()) runner.Run(item);
}

Crew AttentionCrew(const AttentionShape& shape, const AttentionOperands& operands, int threads) {
  double seen = 0;
  for (std::int64_t b = 0; b < shape.cache.batch; ++b) {
    seen += double(
        std::clamp<std::int64_t>(operands.positions.Of(b) + shape.queries, 0, shape.cache.length));
  }
  const double macs = seen * double(shape.queries * shape.heads * shape.cache.head_dim * 2);
  return {int(std::clamp<double>(macs / kMacsToHand, 1, threads)),
          int(std::clamp<double>(macs / kMacsToWake, 1, threads))};
}

}  // namespace qgemm
