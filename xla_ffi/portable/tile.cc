// The micro-kernel of int8 weights in plain C++: any tile, any epilogue.
#include <cstdint>
#include <cstring>

#include "gemm/layout.h"
#include "portable/epilogue.h"
#include "portable/portable.h"

namespace qgemm {
namespace {

// Sums wrap, as the instructions do; unsigned arithmetic says so.
std::uint32_t Dot(const std::uint8_t* a, const std::int8_t* b) {
  return std::uint32_t(a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]);
}

// One row of integer sums: the epilogue of numerics.
void FinishRow(const TileArgs& args, int row, const std::uint32_t* acc) {
  const TileKey& key = *args.key;
  const Epilogue& e = key.epilogue;
  void* out = static_cast<std::uint8_t*>(args.out) + row * args.out_stride;
  float* partial = args.partial + row * kPanelColumns;
  for (int j = 0; j < key.columns; ++j) {
    std::uint32_t sum = acc[j];
    if (e.x_zero != Granularity::kNone) {
      const std::int32_t negative_zero =
          e.x_zero == Granularity::kRow ? args.row_negative_zeros[row] : args.x_negative_zero;
      sum += std::uint32_t(negative_zero) * std::uint32_t(args.column_sums[j]);
    }
    if (e.w_zero) sum -= std::uint32_t(args.column_zeros[j]) * std::uint32_t(args.row_sums[row]);
    if (e.out == OutType::kS32) {
      Store(sum, out, j);
      continue;
    }
    float f = float(std::int32_t(sum));
    if (e.w_groups) f = f * args.column_scales[j];
    if (key.part == KPart::kMiddle || key.part == KPart::kLast) f = partial[j] + f;
    if (key.part == KPart::kFirst || key.part == KPart::kMiddle) {
      partial[j] = f;
      continue;
    }
    const float x_scale = e.x_scale == Granularity::kRow ? args.row_scales[row] : args.x_scale;
    Finish(args, row, j,
           e.w_groups                       ? f * x_scale
           : e.x_scale == Granularity::kRow ? (f * args.column_scales[j]) * x_scale
                                            : f * (x_scale * args.column_scales[j]));
  }
}

void RunTile(TileArgs* args) {
  const TileKey& key = *args->key;
  for (int row = 0; row < key.rows; ++row) {
    std::uint32_t acc[kPanelColumns] = {};
    if (key.from_sums) std::memcpy(acc, args->sums + row * kPanelColumns, sizeof acc);
    const auto* a = static_cast<const std::uint8_t*>(args->a) + row * args->a_stride;
    const std::int8_t* b = args->b;
    for (std::int64_t quad = 0; quad < args->quads; ++quad) {
      for (int j = 0; j < key.columns; ++j) acc[j] += Dot(a, b + j * kQuad);
      a += kQuad;
      b += key.panel_columns * kQuad;
    }
    FinishRow(*args, row, acc);
  }
}

}  // namespace

int PortableMaxColumns(int) { return kPanelColumns; }

TileFn PortableTile(const TileKey&) { return RunTile; }

}  // namespace qgemm
