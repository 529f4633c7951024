// The floating-point environment of the engine: round to nearest even, subnormals kept.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

namespace qgemm {

// What a thread's floating-point control register holds, as far as it is known: here, and where XLA
// runs its programs.
#if defined(__x86_64__) || defined(__i386__)
inline constexpr std::uint32_t kIeee = 0x1f80;              // all exceptions masked, nearest even
inline constexpr std::uint32_t kFlushing = kIeee | 0x8040;  // FTZ, DAZ
inline std::uint32_t FloatControl() { return _mm_getcsr(); }
inline void SetFloatControl(std::uint32_t control) { _mm_setcsr(control); }
#elif defined(__aarch64__)
inline constexpr std::uint64_t kIeee = 0;
inline constexpr std::uint64_t kFlushing = 1 << 24;  // FZ
inline std::uint64_t FloatControl() {
  std::uint64_t control;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  return control;
}
inline void SetFloatControl(std::uint64_t control) {
  __asm__ volatile("msr fpcr, %0" ::"r"(control) : "memory");
}
#else
inline constexpr std::uint32_t kIeee = 0, kFlushing = 0;
inline std::uint32_t FloatControl() { return 0; }
inline void SetFloatControl(std::uint32_t) {}
#endif

// XLA runs its programs with subnormals flushed; results here must not depend on who calls.
class FloatEnvironment {
 public:
  explicit FloatEnvironment(decltype(FloatControl()) control = kIeee) : saved_(FloatControl()) {
    SetFloatControl(control);
  }
  ~FloatEnvironment() { SetFloatControl(saved_); }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  const decltype(FloatControl()) saved_;
};

}  // namespace qgemm
