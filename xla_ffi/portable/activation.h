// The activations: one definition for all kernels, with the same bits on each of them.
//
// With a = |x|, each is y = max(x, 0) - a * S(a), where S falls from 1/2 to 0:
//   gelu       S(a) = normal distribution's tail = 2^-z * R(a),   z = a^2 / (2 ln 2)
//   gelu_tanh  S(a) = logistic function of -v = 2^-z / (1 + 2^-z), z = v / ln 2,
//              v = 2 sqrt(2 / pi) * (a + 0.044715 a^3)
//   silu       the same with v = a
// z is a sum of two floats, for an error of z is a relative error of 2^-z. R(a), Mills' ratio up to
// a constant, is a polynomial of degree 6 on each of 16 intervals. Every step is one rounding, and
// products that feed a sum are fused, so vectors give the same bits. At most 2 ulp from the
// correctly rounded value (all floats were tried).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "gemm/spec.h"
#include "portable/bits.h"
#include "portable/round.h"

namespace qgemm {

// Of x: where S(a) * a is below half of the least subnormal.
constexpr float ActivationBound(Activation activation) {
  return activation == Activation::kSilu   ? 110.0F
         : activation == Activation::kGelu ? 14.99F
                                           : 11.0F;
}

// 2^r on [-1/2, 1/2], relative error 2^-29: 1 + sum_i kExp2[i] * r^(i + 1).
inline constexpr float kExp2[6] = {0x1.62e43p-1F,  0x1.ebfbdap-3F,  0x1.c6aed4p-5F,
                                   0x1.3b2dbcp-7F, 0x1.5f456ap-10F, 0x1.41d33ap-13F};
// Constants of z as sums of two floats: 1 / ln 2, half of it, and those of gelu_tanh.
struct FloatPair {
  float high, low;
};
inline constexpr FloatPair kLog2E = {0x1.715476p+0F, 0x1.4ae0cp-26F};
inline constexpr FloatPair kHalfLog2E = {0x1.715476p-1F, 0x1.4ae0cp-27F};
inline constexpr FloatPair kTanhLinear = {0x1.26aec2p+1F, 0x1.bce75ap-27F};
inline constexpr FloatPair kTanhCubic = {0x1.a5a7dp-4F, -0x1.151aaep-29F};

// 2^-z is scaled by 2^64 until the last product, so that it is a normal number before.
inline constexpr std::int32_t kScaleExponent = 64;
inline constexpr float kUnscale = 0x1p-64F;

// R(a): the intervals are quarters of octaves of a + 1, numbered by the last two bits of its
// exponent and the first two of its mantissa. Rows: the centre, chosen so that R there is nearly a
// float; R of it; the coefficients of (a - centre)^1 to ^6. Relative error 2^-27.
inline constexpr int kTailRows = 8, kTailIntervals = 16, kTailShift = 21;
inline constexpr float kTail[kTailRows][kTailIntervals] = {
    {0x1.3ff8bap+0F, 0x1.bffd44p+0F, 0x1.2005a2p+1F, 0x1.600268p+1F, 0x1.bffbap+1F, 0x1.1fff66p+2F,
     0x1.5ff5e2p+2F, 0x1.a004b4p+2F, 0x1.00086cp+3F, 0x1.40008cp+3F, 0x1.800436p+3F, 0x1.bff68ap+3F,
     0x1.fff5aap-4F, 0x1.80008cp-2F, 0x1.400578p-1F, 0x1.bffe78p-1F},
    {0x1.d89f4cp-3F, 0x1.7b5c6p-3F, 0x1.3aa912p-3F, 0x1.0bb7e4p-3F, 0x1.b39ab8p-4F, 0x1.5b5b78p-4F,
     0x1.202778p-4F, 0x1.eba0acp-5F, 0x1.925c98p-5F, 0x1.43a3p-5F, 0x1.0e7aep-5F, 0x1.d09164p-6F,
     0x1.d0b00ep-2F, 0x1.84b6e2p-2F, 0x1.4b1bbap-2F, 0x1.1e7ca6p-2F},
    {-0x1.c49decp-4F, -0x1.325618p-4F, -0x1.b3f994p-5F, -0x1.4327acp-5F, -0x1.b60ab8p-6F,
     -0x1.1be3d4p-6F, -0x1.8b2e32p-7F, -0x1.21a86cp-7F, -0x1.869faep-8F, -0x1.fbf122p-9F,
     -0x1.63c824p-9F, -0x1.06d8aep-9F, -0x1.5e6f7ep-2F, -0x1.06bf8ap-2F, -0x1.931eecp-3F,
     -0x1.3bb03ap-3F},
    {0x1.7b860ep-5F, 0x1.bd4ab8p-6F, 0x1.159f8ap-6F, 0x1.6c58c6p-7F, 0x1.a2a8d4p-8F, 0x1.bfbd56p-9F,
     0x1.07f84ep-9F, 0x1.4e9a94p-10F, 0x1.7602fap-11F, 0x1.8af04ep-12F, 0x1.d0ec8p-13F,
     0x1.27fa68p-13F, 0x1.a4e3p-3F, 0x1.222eeap-3F, 0x1.9a3fd2p-4F, 0x1.28c00ap-4F},
    {-0x1.1f3cd6p-6F, -0x1.296528p-7F, -0x1.49a952p-8F, -0x1.8383e2p-9F, -0x1.7e8362p-10F,
     -0x1.55b98ap-11F, -0x1.581f6ap-12F, -0x1.7b4e62p-13F, -0x1.614fd6p-14F, -0x1.304e04p-15F,
     -0x1.2dd00ap-16F, -0x1.4baceep-17F, -0x1.b02c82p-4F, -0x1.15c892p-4F, -0x1.6e8b6p-5F,
     -0x1.efa16p-6F},
    {0x1.90043ep-8F, 0x1.7223b6p-9F, 0x1.70aed8p-10F, 0x1.87ad82p-11F, 0x1.4fbb2ep-12F,
     0x1.fa3a8p-14F, 0x1.b6779ap-15F, 0x1.a65cfep-16F, 0x1.498d64p-17F, 0x1.d0e1f4p-19F,
     0x1.8565d6p-20F, 0x1.71ec7p-21F, 0x1.89e0c4p-5F, 0x1.dc3254p-6F, 0x1.27b228p-6F,
     0x1.78aa02p-7F},
    {-0x1.061fe6p-9F, -0x1.b4ff5ap-11F, -0x1.89e334p-12F, -0x1.7c7ep-13F, -0x1.213212p-14F,
     -0x1.71837cp-16F, -0x1.14214ep-17F, -0x1.d1fdc8p-19F, -0x1.368e2cp-20F, -0x1.6589e2p-22F,
     -0x1.f8dcdp-24F, -0x1.9e1656p-25F, -0x1.47436ep-6F, -0x1.76494cp-7F, -0x1.b7f5fcp-8F,
     -0x1.096994p-8F},
    {0x1.3f29a8p-11F, 0x1.e43782p-13F, 0x1.8e7d92p-14F, 0x1.60851p-15F, 0x1.d8057ep-17F,
     0x1.02fce4p-18F, 0x1.50dddap-20F, 0x1.f5bf16p-22F, 0x1.1a9e5ap-23F, 0x1.0c6642p-25F,
     0x1.41b53p-27F, 0x1.c93a6ap-29F, 0x1.f3093ep-8F, 0x1.0f63d8p-8F, 0x1.2f8008p-9F,
     0x1.5c7836p-10F}};

// 2^-(high + low): 2^-n * (1 + p * r), with scale = 2^(64 - n).
struct Exp2Parts {
  float p, r, scale;
};

inline Exp2Parts Exp2Negative(float high, float low) {
  const std::int32_t n = RoundToInt(high);
  const float r = (float(n) - high) - low;
  float p = kExp2[5];
  for (int i = 4; i >= 0; --i) p = std::fma(p, r, kExp2[i]);
  return {p, r, FloatFromBits(std::uint32_t(127 + kScaleExponent - n) << 23)};
}

// For x that is a number or infinite; a NaN stays one.
inline float Smooth(Activation activation, float x) {
  if (x != x) return x;
  const float a = std::min(std::fabs(x), ActivationBound(activation));
  float high, low;
  if (activation == Activation::kSilu) {
    high = a * kLog2E.high;
    low = std::fma(a, kLog2E.low, std::fma(a, kLog2E.high, -high));
  } else {
    const float square = a * a;
    const float square_low = std::fma(a, a, -square);
    const FloatPair c = activation == Activation::kGelu ? kHalfLog2E : kTanhCubic;
    const float term = square * c.high;
    float term_low = std::fma(square, c.high, -term);
    term_low = std::fma(square, c.low, term_low);
    term_low = std::fma(square_low, c.high, term_low);
    high = term;
    low = term_low;
    if (activation == Activation::kGeluTanh) {
      // The exact error of a sum, whichever term is the larger.
      const float sum = term + kTanhLinear.high;
      const float added = sum - term;
      const float error = (term - (sum - added)) + (kTanhLinear.high - added);
      const float sum_low = (term_low + kTanhLinear.low) + error;
      high = a * sum;
      low = std::fma(a, sum_low, std::fma(a, sum, -high));
    }
  }
  const auto [p, r, scale] = Exp2Negative(high, low);
  const float fraction = p * r;
  float tail;
  if (activation == Activation::kGelu) {
    const std::uint32_t interval = BitsOf(a + 1.0F) >> kTailShift & (kTailIntervals - 1);
    const float t = a - kTail[0][interval];
    float ratio = kTail[kTailRows - 1][interval];
    for (int i = kTailRows - 2; i >= 1; --i) ratio = std::fma(ratio, t, kTail[i][interval]);
    // With the product's own error, which is exact.
    tail = a * ratio;
    const float error = std::fma(a, ratio, -tail);
    tail += std::fma(tail, fraction, std::fma(error, fraction, error));
  } else {
    const float power = std::fma(fraction, scale, scale) * kUnscale;
    // The error of the divisor is taken from what it divides: about the same, relative to both.
    const float sum = power + 1.0F;
    const float error = power - (sum - 1.0F);
    tail = std::fma(std::fma(p, r, -error), a, a) / sum;
  }
  tail = tail * scale * kUnscale;
  return (x > 0 ? x : x < 0 ? 0.0F : x) - tail;
}

inline float Activate(Activation activation, float y) {
  switch (activation) {
    case Activation::kNone:
      return y;
    case Activation::kRelu:
      return y < 0 ? 0.0F : y;
    default:
      return Smooth(activation, y);
  }
}

}  // namespace qgemm
