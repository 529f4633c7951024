#include "gemm/quantize.h"

#include <algorithm>
#include <cfloat>
#include <cstring>
#include <limits>

#include "portable/round.h"

namespace qgemm {
namespace {

struct Chosen {
  float scale;
  QuantizeArgs args;
};

Chosen Symmetric(const RowRange& range) {
  constexpr float kMax = 127;
  float amax = std::max(-range.low, range.high);
  if (amax < kMax * FLT_MIN) amax = kMax;
  return {amax / kMax, {kMax / amax, -128, 127, 0}};
}

Chosen Asymmetric(const RowRange& range) {
  constexpr float kSteps = 255;
  float low = range.low;
  const float width = range.high - range.low;
  float scale = width / kSteps;
  if (width < kSteps * FLT_MIN) {
    low = 0;
    scale = 1;
  } else if (width > FLT_MAX) {  // the range of a row of finite values may be beyond f32
    scale = range.high / kSteps - range.low / kSteps;
  }
  const std::int32_t zero = RoundToInt(std::min(-low / scale, kSteps));
  return {scale, StaticQuantizeArgs(scale, zero, 0, 255)};
}

}  // namespace

float InverseScale(float scale) { return std::min(1.0F / scale, FLT_MAX); }

QuantizeArgs StaticQuantizeArgs(float scale, std::int32_t zero, std::int32_t qmin,
                                std::int32_t qmax) {
  // A zero point out of range is an error above; here it must only stay defined.
  zero = std::clamp(zero, qmin, qmax);
  return {InverseScale(scale), float(qmin - zero), float(qmax - zero), zero};
}

RowParams QuantizeRow(const RowKernels& kernels, RowScheme scheme, AFormat format, const void* x,
                      std::int64_t k, void* q) {
  RowRange range;
  kernels.range(x, k, &range);
  if (range.not_finite != 0) {
    std::memset(q, 0, std::size_t(k * SizeOf(format)));
    return {std::numeric_limits<float>::quiet_NaN(), 0};
  }
  const auto [scale, args] = scheme == RowScheme::kSymmetric ? Symmetric(range) : Asymmetric(range);
  const QuantizeFn to_byte =
      scheme == RowScheme::kSymmetric ? kernels.to_byte : kernels.in_range_to_byte;
  (format == AFormat::kU8 ? to_byte : kernels.to_int16)(x, k, &args, q);
  return {scale, args.zero};
}

}  // namespace qgemm
