// Rounding to nearest even without a library call, so that loops over it vectorize on any CPU.
#pragma once

#include <cstdint>

namespace qgemm {

// |x| < 2^22. Adding 1.5 * 2^23 leaves no bits below the point: the addition itself rounds.
inline std::int32_t RoundToInt(float x) {
  constexpr float kMagic = 12582912.0F;
  return std::int32_t((x + kMagic) - kMagic);
}

}  // namespace qgemm
