#include "gemm/quantize.h"

#include <algorithm>
#include <cfloat>
#include <cstring>
#include <limits>

namespace qgemm {
namespace {

constexpr float kInt8Max = 127;
constexpr std::uint32_t kInfinityBits = 0x7f800000;

void Fill(AFormat format, std::int32_t value, std::int64_t count, void* q) {
  if (format == AFormat::kU8) {
    std::memset(q, value, std::size_t(count));
  } else {
    std::fill_n(static_cast<std::int16_t*>(q), count, std::int16_t(value));
  }
}

}  // namespace

float Reciprocal(float scale) { return std::min(1.0F / scale, FLT_MAX); }

SymmetricParams ChooseSymmetric(std::uint32_t amax_bits) {
  if (amax_bits >= kInfinityBits) return {std::numeric_limits<float>::quiet_NaN(), 0, false};
  float amax;
  std::memcpy(&amax, &amax_bits, sizeof amax);
  const float scale = amax / kInt8Max;
  return {scale > 0 ? scale : 1.0F, std::min(kInt8Max / amax, FLT_MAX), true};
}

QuantizeArgs StaticQuantizeArgs(float scale, std::int32_t zero, std::int32_t qmin,
                                std::int32_t qmax) {
  // A zero point out of range is an error above; here it must only stay defined.
  zero = std::clamp(zero, qmin, qmax);
  return {Reciprocal(scale), float(qmin - zero), float(qmax - zero), zero};
}

float QuantizeRowSymmetric(const RowKernels& kernels, AFormat format, const void* x, std::int64_t k,
                           std::int32_t zero, void* q) {
  const SymmetricParams params = ChooseSymmetric(kernels.abs_max(x, k));
  if (!params.finite) {
    Fill(format, zero, k, q);
    return params.scale;
  }
  const QuantizeArgs args{params.inverse, -128, 127, zero};
  (format == AFormat::kU8 ? kernels.to_byte : kernels.to_int16)(x, k, &args, q);
  return params.scale;
}

}  // namespace qgemm
