// Panels of the transpose in plain C++.
#include <cmath>
#include <cstring>

#include "gemm/transpose.h"
#include "portable/half.h"
#include "portable/portable.h"

namespace qgemm {
namespace {

template <class T>
float Load(const std::uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return ToFloat(value);
}

float LoadScale(ScaleType type, const std::uint8_t* from) {
  return type == ScaleType::kF32    ? Load<float>(from)
         : type == ScaleType::kBf16 ? Load<Bf16>(from)
                                    : Load<F16>(from);
}

// Element k of column j, as it is stored; 0 beyond K.
template <WType kType>
float Stored(const TransposeUnit& unit, std::int64_t k, std::int64_t j) {
  constexpr std::int64_t s = ElementsOfStep(kType);
  if (k / s >= unit.valid_steps) return 0;
  const std::uint8_t* step = unit.steps + k / s * unit.step_bytes;
  if (kType == WType::kF16) return Load<F16>(step + (k % s * kColumnUnit + j) * 2);
  step += j * kStepBytes;
  if (kType == WType::kBf16) return Load<Bf16>(step + k % s * 2);
  if (kType == WType::kS8) return Load<std::int8_t>(step + k % s);
  const int byte = step[k % s % kStepBytes];
  if (kType == WType::kU8) return float(byte);
  return float(k % s < kStepBytes ? byte & 0xf : byte >> 4);
}

template <WType kType>
void Transpose(const TransposeUnit& unit) {
  for (std::int64_t j = 0; j < unit.columns; ++j) {
    float scale = 1, minimum = 0;
    if (IsBlocks(kType)) {
      const std::uint8_t* from = unit.block_scales + j * unit.form.ScaleBytes();
      scale = LoadScale(unit.form.scale, from);
      minimum = unit.form.minimum ? LoadScale(unit.form.scale, from + unit.minimum_offset)
                                  : scale * float(-Offset(kType));
    }
    for (std::int64_t k = 0; k < kUnitRows; ++k) {
      float value = Stored<kType>(unit, k, j);
      if (IsBlocks(kType)) value = std::fma(value, scale, minimum);
      if (kType == WType::kS8) {
        if (unit.zero != nullptr) value -= float(unit.zero[j]);  // exact
        value *= unit.scale[j];
      }
      unit.to[j * unit.to_stride + k] = value;
    }
  }
}

}  // namespace

void PortableTranspose(const TransposeSource& source, std::int64_t panel, float* to) {
  switch (source.layout.w) {
    case WType::kS8:
      return ForUnits(source, panel, to, Transpose<WType::kS8>);
    case WType::kF16:
      return ForUnits(source, panel, to, Transpose<WType::kF16>);
    case WType::kBf16:
      return ForUnits(source, panel, to, Transpose<WType::kBf16>);
    case WType::kU4:
      return ForUnits(source, panel, to, Transpose<WType::kU4>);
    case WType::kU8:
      return ForUnits(source, panel, to, Transpose<WType::kU8>);
    case WType::kF32:
      break;  // never packed
  }
}

}  // namespace qgemm
