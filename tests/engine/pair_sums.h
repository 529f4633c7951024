// Sums of products of 16-bit floats as the instructions for them have it: not in order of K, and
// with subnormals as zeros.
#pragma once

#include <cmath>
#include <cstdint>

namespace qgemm::test {

inline float Flushed(float v) {
  return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.0F, v) : v;
}

inline float FlushedFma(float x, float w, float sum) {
  return Flushed(std::fma(Flushed(x), Flushed(w), sum));
}

// `at(i)`, and zeros from `count` on.
template <class Element>
auto Padded(std::int64_t count, const Element& at) {
  return [count, &at](std::int64_t i) { return i < count ? at(i) : 0.0F; };
}

// vdpbf16ps: of each pair the odd element first.
template <class X, class W>
float PairedSum(std::int64_t k, const X& x, const W& w) {
  float sum = 0;
  for (std::int64_t i = 0; i < k; i += 2) {
    sum = FlushedFma(x(i + 1), w(i + 1), sum);
    sum = FlushedFma(x(i), w(i), sum);
  }
  return sum;
}

// tdpbf16ps, tdpfp16ps: the even and the odd elements of a tile have sums of their own.
template <class X, class W>
float TileSum(float sum, int pairs, const X& x, const W& w) {
  float even = 0, odd = 0;
  for (int i = 0; i < 2 * pairs; i += 2) {
    even = FlushedFma(x(i), w(i), even);
    odd = FlushedFma(x(i + 1), w(i + 1), odd);
  }
  return Flushed(sum + Flushed(even + odd));
}

// All of K in tiles of 16 pairs.
template <class X, class W>
float TiledSum(std::int64_t k, const X& x, const W& w) {
  float sum = 0;
  for (std::int64_t first = 0; first < k; first += 32) {
    sum =
        TileSum(sum, 16, [&](int i) { return x(first + i); }, [&](int i) { return w(first + i); });
  }
  return sum;
}

}  // namespace qgemm::test
