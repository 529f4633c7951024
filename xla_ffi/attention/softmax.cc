#include "attention/softmax.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "portable/activation.h"

#if defined(__x86_64__)
#define QGEMM_TARGET(isa) __attribute__((target(isa)))
#endif

namespace qgemm {
namespace {

constexpr int kLanes = 16;
using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = std::int32_t __attribute__((vector_size(4 * kLanes)));

// Vectors of any length in terms of those that the caller's target has.
inline __attribute__((always_inline)) float Softmax(float* scores, const float* scales,
                                                    std::int64_t count) {
  constexpr float kLeast = -126;             // of exponents
  constexpr float kToInteger = 12582912.0F;  // 1.5 * 2^23: added, it rounds to an integer
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  for (std::int64_t i = count; i % kLanes != 0; ++i) scores[i] = kNone;
  Floats most = kNone - Floats{};
  for (std::int64_t i = 0; i < count; i += kLanes) {
    Floats s;
    std::memcpy(&s, scores + i, sizeof s);
    most = s > most ? s : most;
  }
  float max = most[0];
  for (int lane = 1; lane < kLanes; ++lane) max = most[lane] > max ? most[lane] : max;
  // Of nothing: 2^(-Inf - 0).
  if (max == kNone) max = 0;
  Floats sum{};
  for (std::int64_t i = 0; i < count; i += kLanes) {
    Floats s, scale;
    std::memcpy(&s, scores + i, sizeof s);
    std::memcpy(&scale, scales + i, sizeof scale);
    Floats t = s - max;
    const auto is_zero = t < kLeast;
    t = is_zero ? Floats{} : t;
    const Floats rounded = (t + kToInteger) - kToInteger;
    const Floats r = t - rounded;
    Floats p = kExp2[5] - Floats{};
    for (int c = 4; c >= 0; --c) p = p * r + kExp2[c];
    p = p * r + 1.0F;
    const Ints exponent = (__builtin_convertvector(rounded, Ints) + 127) << 23;
    Floats power;
    std::memcpy(&power, &exponent, sizeof power);
    p = p * power;
    p = is_zero ? Floats{} : p;
    sum += p;
    p = is_zero ? Floats{} : p * scale;
    std::memcpy(scores + i, &p, sizeof p);
  }
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  return total;
}

float Portable(float* scores, const float* scales, std::int64_t count) {
  return Softmax(scores, scales, count);
}

#ifdef QGEMM_TARGET
QGEMM_TARGET("avx2") float Avx2(float* scores, const float* scales, std::int64_t count) {
  return Softmax(scores, scales, count);
}
QGEMM_TARGET("avx512f,avx512bw,avx512vl")
float Avx512(float* scores, const float* scales, std::int64_t count) {
  return Softmax(scores, scales, count);
}
#endif

}  // namespace

SoftmaxFn SoftmaxOf(Isa isa) {
#ifdef QGEMM_TARGET
  switch (isa) {
    case Isa::kPortable:
      break;
    case Isa::kAvx2:
    case Isa::kAvxVnni:
      return Avx2;
    case Isa::kAvx512Bw:
    case Isa::kAvx512Vnni:
    case Isa::kAmxInt8:
      return Avx512;
  }
#else
  static_cast<void>(isa);
#endif
  return Portable;
}

}  // namespace qgemm
