// bfloat16 <-> float32 by their bits.
#pragma once

#include <cstdint>
#include <cstring>

namespace qgemm {

inline float FloatFromBits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline std::uint32_t BitsOf(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float FloatFromBf16(std::uint16_t bits) { return FloatFromBits(std::uint32_t(bits) << 16); }

// To nearest, ties to even; a NaN stays one, quiet.
inline std::uint16_t Bf16Bits(float value) {
  const std::uint32_t bits = BitsOf(value);
  if (value != value) return std::uint16_t((bits >> 16) | 0x40);
  return std::uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace qgemm
