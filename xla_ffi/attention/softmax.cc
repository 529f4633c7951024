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

template <class T, int kWidth>
struct Vector {
  using Type __attribute__((vector_size(4 * kWidth))) = T;
};

// In vectors as wide as the caller's target has them: of wider ones GCC makes choices lane by lane.
template <int kWidth>
inline __attribute__((always_inline)) float Softmax(float* scores, const float* scales,
                                                    std::int64_t count) {
  using Floats = typename Vector<float, kWidth>::Type;
  using Ints = typename Vector<std::int32_t, kWidth>::Type;
  constexpr int kParts = kLanes / kWidth;
  constexpr float kLeast = -126;             // of exponents
  constexpr float kToInteger = 12582912.0F;  // 1.5 * 2^23: added, it rounds to an integer
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  for (std::int64_t i = count; i % kLanes != 0; ++i) scores[i] = kNone;
  Floats most[kParts];
  for (Floats& part : most) part = kNone - Floats{};
  for (std::int64_t i = 0; i < count; i += kLanes) {
    for (int part = 0; part < kParts; ++part) {
      Floats s;
      std::memcpy(&s, scores + i + part * kWidth, sizeof s);
      most[part] = s > most[part] ? s : most[part];
    }
  }
  float max = kNone;
  for (int lane = 0; lane < kLanes; ++lane) {
    const float of_lane = most[lane / kWidth][lane % kWidth];
    max = of_lane > max ? of_lane : max;
  }
  // Of nothing: 2^(-Inf - 0).
  if (max == kNone) max = 0;
  Floats sum[kParts] = {};
  for (std::int64_t i = 0; i < count; i += kLanes) {
    for (int part = 0; part < kParts; ++part) {
      Floats s, scale;
      std::memcpy(&s, scores + i + part * kWidth, sizeof s);
      std::memcpy(&scale, scales + i + part * kWidth, sizeof scale);
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
      sum[part] += p;
      p = is_zero ? Floats{} : p * scale;
      std::memcpy(scores + i + part * kWidth, &p, sizeof p);
    }
  }
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane / kWidth][lane % kWidth];
  return total;
}

float Portable(float* scores, const float* scales, std::int64_t count) {
  return Softmax<4>(scores, scales, count);
}

#ifdef QGEMM_TARGET
QGEMM_TARGET("avx2") float Avx2(float* scores, const float* scales, std::int64_t count) {
  return Softmax<8>(scores, scales, count);
}
QGEMM_TARGET("avx512f,avx512bw,avx512vl")
float Avx512(float* scores, const float* scales, std::int64_t count) {
  return Softmax<16>(scores, scales, count);
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
