// The micro-kernel in plain C++: any tile, any epilogue.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "gemm/layout.h"
#include "portable/activation.h"
#include "portable/half.h"
#include "portable/portable.h"
#include "portable/round.h"

namespace qgemm {
namespace {

// Sums wrap, as the instructions do; unsigned arithmetic says so.
std::uint32_t Dot(const std::uint8_t* a, const std::int8_t* b) {
  return std::uint32_t(a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]);
}

template <class T>
float LoadFloat(const void* from, std::int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const std::uint8_t*>(from) + index * std::int64_t(sizeof(T)),
              sizeof(T));
  return ToFloat(value);
}

float Residual(const TileArgs& args, int row, int column) {
  const void* from = static_cast<const std::uint8_t*>(args.residual) + row * args.residual_stride;
  switch (args.key->epilogue.residual) {
    case ResidualType::kF32:
      return LoadFloat<float>(from, column);
    case ResidualType::kBf16:
      return LoadFloat<Bf16>(from, column);
    case ResidualType::kF16:
      return LoadFloat<F16>(from, column);
    case ResidualType::kNone:
      break;
  }
  return 0;
}

template <class T>
void Store(T value, void* out, std::int64_t index) {
  std::memcpy(static_cast<std::uint8_t*>(out) + index * std::int64_t(sizeof(T)), &value, sizeof(T));
}

void StoreOutput(const TileArgs& args, float y, void* out, int column) {
  switch (args.key->epilogue.out) {
    case OutType::kF32:
      Store(y, out, column);
      break;
    case OutType::kBf16:
      Store(ToBf16(y), out, column);
      break;
    case OutType::kF16:
      Store(ToF16(y), out, column);
      break;
    default: {
      const float t = y * (args.key->epilogue.out_scale_per_column ? args.out_inverses[column]
                                                                   : args.out_inverse);
      const float clamped = std::min(std::max(t == t ? t : 0.0F, args.out_low), args.out_high);
      Store(std::uint8_t(RoundToInt(clamped) + args.out_zero), out, column);
    }
  }
}

// One row: the epilogue of numerics, in its order.
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
    float y = e.w_groups                       ? f * x_scale
              : e.x_scale == Granularity::kRow ? (f * args.column_scales[j]) * x_scale
                                               : f * (x_scale * args.column_scales[j]);
    if (e.bias) y = y + args.bias[j];
    if (e.residual != ResidualType::kNone) y = y + Residual(args, row, j);
    StoreOutput(args, Activate(e.activation, y), out, j);
  }
}

void RunTile(const TileArgs* args) {
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
