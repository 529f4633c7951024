// bfloat16 and float16 <-> float32 by their bits. To them: to nearest, ties to even; a NaN stays
// one, quiet.
#pragma once

#include <cstdint>

#include "portable/bits.h"

namespace qgemm {

struct Bf16 {
  std::uint16_t bits;
};
struct F16 {
  std::uint16_t bits;
};

inline float ToFloat(float value) { return value; }
inline float ToFloat(std::int8_t value) { return float(value); }
inline float ToFloat(Bf16 value) { return FloatFromBits(std::uint32_t(value.bits) << 16); }

// The exponent is put right by a product: exact, and it makes subnormals normal.
inline float ToFloat(F16 value) {
  const std::uint32_t sign = std::uint32_t(value.bits & 0x8000) << 16;
  const std::uint32_t rest = value.bits & 0x7fff;
  if (rest >= 0x7c00) {  // Inf; a NaN becomes quiet
    return FloatFromBits(sign | 0x7f800000 | (rest & 0x3ff) << 13 | (rest > 0x7c00 ? 0x400000 : 0));
  }
  return FloatFromBits(sign | BitsOf(FloatFromBits(rest << 13) * 0x1p112F));
}

inline Bf16 ToBf16(float value) {
  const std::uint32_t bits = BitsOf(value);
  if (value != value) return {std::uint16_t((bits >> 16) | 0x40)};
  return {std::uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline F16 ToF16(float value) {
  const std::uint32_t bits = BitsOf(value);
  const std::uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  std::uint32_t half;
  if (rest > 0x7f800000) {
    half = 0x7e00 | (rest >> 13 & 0x3ff);
  } else if (rest >= 0x47800000) {  // 2^16 and more
    half = 0x7c00;
  } else if (rest >= 0x38800000) {  // normal: the carry of the rounding may reach Inf
    half = (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13;
  } else {
    // Subnormal: one half has the last bit of 2^-24, so the sum itself rounds.
    half = BitsOf(FloatFromBits(rest) + 0.5F) - BitsOf(0.5F);
  }
  return {std::uint16_t(sign | half)};
}

}  // namespace qgemm
