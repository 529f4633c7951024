#include "gemm/quantize.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

#include "portable/round.h"

namespace qgemm {
namespace {

// A row with NaN or Inf has scale NaN.
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

Chosen Choose(RowScheme scheme, const RowRange& range) {
  if (!std::isfinite(range.low) || !std::isfinite(range.high)) {
    return {std::numeric_limits<float>::quiet_NaN(), {}};
  }
  return scheme == RowScheme::kSymmetric ? Symmetric(range) : Asymmetric(range);
}

void Quantize(const RowKernels& kernels, RowScheme scheme, AFormat format, const Chosen& chosen,
              const void* x, std::int64_t k, void* q) {
  if (std::isnan(chosen.scale)) {
    std::memset(q, 0, std::size_t(k * SizeOf(format)));
    return;
  }
  const QuantizeFn to_byte =
      scheme == RowScheme::kSymmetric ? kernels.to_byte : kernels.in_range_to_byte;
  (format == AFormat::kU8 ? to_byte : kernels.to_int16)(x, k, &chosen.args, q);
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
  RowParams params;
  QuantizeRows(kernels, scheme, format, {x, 0, 1, k, q, 0}, &params.scale, &params.zero);
  return params;
}

void QuantizeRows(const RowKernels& kernels, RowScheme scheme, AFormat format,
                  const RowBlock& block, float* scales, std::int32_t* zeros) {
  constexpr std::int64_t kMost = 16, kBytes = 16 << 10;
  const auto* const x = static_cast<const std::uint8_t*>(block.x);
  auto* const q = static_cast<std::uint8_t*>(block.q);
  const std::int64_t at_once =
      std::clamp<std::int64_t>(kBytes / std::max<std::int64_t>(1, block.x_stride), 1, kMost);
  RowRange ranges[kMost];
  Chosen chosen[kMost];
  for (std::int64_t first = 0; first < block.rows; first += at_once) {
    const std::int64_t count = std::min(at_once, block.rows - first);
    const auto* const from = x + first * block.x_stride;
    for (std::int64_t i = 0; i < count; ++i) {
      kernels.range(from + i * block.x_stride, block.k, &ranges[i]);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      chosen[i] = Choose(scheme, ranges[i]);
      scales[first + i] = chosen[i].scale;
      if (zeros != nullptr) zeros[first + i] = chosen[i].args.zero;
    }
    for (std::int64_t i = 0; i < count; ++i) {
      Quantize(kernels, scheme, format, chosen[i], from + i * block.x_stride, block.k,
               q + (first + i) * block.q_stride);
    }
  }
}

}  // namespace qgemm
