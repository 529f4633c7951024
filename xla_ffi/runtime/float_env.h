// The floating-point environment of the engine: round to nearest even, subnormals kept.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

namespace qgemm {

// XLA runs its programs with subnormals flushed; results here must not depend on who calls.
class FloatEnvironment {
 public:
#if defined(__x86_64__) || defined(__i386__)
  FloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(kIeee); }
  ~FloatEnvironment() { _mm_setcsr(saved_); }

 private:
  static constexpr unsigned kIeee = 0x1f80;  // all exceptions masked, nearest even, no FTZ, no DAZ
  const unsigned saved_;

 public:
#elif defined(__aarch64__)
  FloatEnvironment() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, xzr" ::: "memory");  // the default: nearest even, nothing flushed
  }
  ~FloatEnvironment() { __asm__ volatile("msr fpcr, %0" ::"r"(saved_) : "memory"); }

 private:
  std::uint64_t saved_;

 public:
#else
  FloatEnvironment() {}
  ~FloatEnvironment() {}
#endif
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;
};

}  // namespace qgemm
