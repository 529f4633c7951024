// Checks of the portable activations and of float16.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>

#include "portable/activation.h"
#include "portable/half.h"
#include "random.h"
#include "runtime/float_env.h"

namespace qgemm::test {

// At most 2 ulp from the correctly rounded value, at every exponent and sign, most of all where
// neither tail rules; from arguments where one more rounding gave 3 on.
inline bool RunActivations() {
  const FloatEnvironment ieee;
  constexpr int kHardest = 3;
  constexpr float kHard[kHardest] = {-3.20636821F, -1.8611691F, -1.31965327F};
  bool good = true;
  for (const Activation activation :
       {Activation::kGelu, Activation::kGeluTanh, Activation::kSilu}) {
    double worst = 0;
    for (std::uint32_t top = 0; top < 512; ++top) {
      const int exponent = int(top & 255) - 127;
      for (int i = 0; i < (exponent > -4 && exponent < 4 ? 20000 : 400); ++i) {
        const auto bits = std::uint32_t(Random(0, (1 << 23) - 1)) | top << 23;
        const float x = i == 0                      ? FloatFromBits(top << 23)
                        : top == 0 && i <= kHardest ? kHard[i - 1]
                                                    : FloatFromBits(bits);
        const float y = Smooth(activation, x);
        if (!std::isfinite(x)) {
          good = good && (x != x ? y != y : y == (x > 0 ? x : 0.0F));
          continue;
        }
        const long double wide = x;
        const long double v =
            2 * std::sqrt(2 / std::acos(-1.0L)) * (wide + 0.044715L * wide * wide * wide);
        const long double exact = activation == Activation::kGelu
                                      ? wide * std::erfc(-wide * std::sqrt(0.5L)) / 2
                                  : activation == Activation::kSilu ? wide / (1 + std::exp(-wide))
                                                                    : wide / (1 + std::exp(-v));
        const auto rounded = float(exact);
        const double ulp = std::ldexp(1.0, std::max(std::ilogb(rounded), -126) - 23);
        if (rounded == 0 ? std::fabs(y) > 0x1p-148F : !(std::fabs(y - rounded) <= 2 * ulp)) {
          std::printf("FAILED activation %d of %a: %a, expected %a\n", int(activation), x, y,
                      rounded);
          good = false;
        } else if (rounded != 0) {
          worst = std::max(worst, std::fabs(y - rounded) / ulp);
        }
      }
    }
    std::printf("activation %d: at most %.0f ulp\n", int(activation), worst);
  }
  return good;
}

// Every float16 there and back, and rounding between neighbours.
inline bool RunHalf() {
  const FloatEnvironment ieee;
  const auto value = [](std::uint32_t bits) {
    const int exponent = int(bits >> 10);
    const double mantissa = bits & 0x3ff;
    return exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  };
  bool good = true;
  for (std::uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const double low = value(bits), high = value(bits + 1);  // the last one: 2^16, Inf
    const auto middle = float((low + high) / 2);
    const auto half = [](float f) { return std::uint32_t(ToF16(f).bits); };
    good = good && double(ToFloat(F16{std::uint16_t(bits)})) == low && half(float(low)) == bits &&
           half(-float(low)) == (bits | 0x8000) && half(middle) == bits + (bits & 1) &&
           half(std::nextafter(middle, 0.0F)) == bits &&
           half(std::nextafter(middle, 1e9F)) == bits + 1;
  }
  good = good && ToF16(1e9F).bits == 0x7c00 && ToF16(INFINITY).bits == 0x7c00;
  for (const float nan : {NAN, FloatFromBits(0x7f800001)}) {
    const std::uint16_t bits = ToF16(nan).bits;
    good = good && (bits & 0x7e00) == 0x7e00 && ToFloat(F16{bits}) != ToFloat(F16{bits});
  }
  if (!good) std::printf("FAILED float16\n");
  return good;
}

}  // namespace qgemm::test
