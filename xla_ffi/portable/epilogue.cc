#include "portable/epilogue.h"

#include <algorithm>

#include "portable/activation.h"
#include "portable/half.h"
#include "portable/round.h"

namespace qgemm {
namespace {

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

}  // namespace

void Finish(const TileArgs& args, int row, int column, float y) {
  const Epilogue& e = args.key->epilogue;
  if (e.bias) y = y + args.bias[column];
  if (e.residual != ResidualType::kNone) y = y + Residual(args, row, column);
  StoreOutput(args, Activate(e.activation, y),
              static_cast<std::uint8_t*>(args.out) + row * args.out_stride, column);
}

}  // namespace qgemm
