#include "gemm/quantize.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
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
  float low = range.low, width = range.high - range.low;
  if (width < kSteps * FLT_MIN) {
    low = 0;
    width = kSteps;
  }
  const float scale = width / kSteps;
  const std::int32_t zero = RoundToInt(std::min(-low / scale, kSteps));
  return {scale, StaticQuantizeArgs(scale, zero, 0, 255)};
}

}  // namespace

QuantizeArgs StaticQuantizeArgs(float scale, std::int32_t zero, std::int32_t qmin,
                                std::int32_t qmax) {
  // A zero point out of range is an error above; here it must only stay defined.
  zero = std::clamp(zero, qmin, qmax);
  return {std::min(1.0F / scale, FLT_MAX), float(qmin - zero), float(qmax - zero), zero};
}

RowParams QuantizeRow(const RowKernels& kernels, RowScheme scheme, AFormat format, const void* x,
                      std::int64_t k, void* q) {
  RowRange range;
  kernels.range(x, k, &range);
  const bool symmetric = scheme == RowScheme::kSymmetric;
  if (range.not_finite != 0 || (!symmetric && !std::isfinite(range.high - range.low))) {
    std::memset(q, 0, std::size_t(k * SizeOf(format)));
    return {std::numeric_limits<float>::quiet_NaN(), 0};
  }
  const auto [scale, args] = symmetric ? Symmetric(range) : Asymmetric(range);
  (format == AFormat::kU8 ? kernels.to_byte : kernels.to_int16)(x, k, &args, q);
  return {scale, args.zero};
}

}  // namespace qgemm
