// Row-wise quantization in plain C++.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "portable/half.h"
#include "portable/portable.h"
#include "portable/round.h"

namespace qgemm {
namespace {

template <class T>
float Load(const void* x, std::int64_t i) {
  T value;
  std::memcpy(&value, static_cast<const std::uint8_t*>(x) + i * std::int64_t(sizeof(T)),
              sizeof value);
  return ToFloat(value);
}

template <class T>
void Range(const void* x, std::int64_t count, RowRange* range) {
  float low = 0, high = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = Load<T>(x, i);
    low = value < low ? value : low;
    high = value > high || value != value ? value : high;  // NaN stays
  }
  *range = {low, high};
}

template <class T, class Q>
void Quantize(const void* x, std::int64_t count, const QuantizeArgs* args, void* q) {
  auto* out = static_cast<std::uint8_t*>(q);
  for (std::int64_t i = 0; i < count; ++i) {
    float t = Load<T>(x, i) * args->inverse;
    t = std::min(std::max(t == t ? t : 0.0F, args->low), args->high);
    const Q value = Q(RoundToInt(t) + args->zero);
    std::memcpy(out + i * std::int64_t(sizeof(Q)), &value, sizeof value);
  }
}

template <class T>
void Widen(const void* x, std::int64_t count, float* y) {
  for (std::int64_t i = 0; i < count; ++i) y[i] = Load<T>(x, i);
}

template <class T>
RowKernels RowsOf() {
  return {Range<T>, Quantize<T, std::uint8_t>, Quantize<T, std::int16_t>, Quantize<T, std::uint8_t>,
          Widen<T>};
}

}  // namespace

RowKernels PortableRows(XType x) {
  return x == XType::kBf16 ? RowsOf<Bf16>() : x == XType::kF16 ? RowsOf<F16>() : RowsOf<float>();
}

}  // namespace qgemm
