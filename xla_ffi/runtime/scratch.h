// Grow-only aligned memory of one thread: nothing is allocated per call in steady state.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace qgemm {

class Scratch {
 public:
  // At least `count` elements of T, aligned to a cache line. Contents are unspecified; the pointer
  // is valid until the next call.
  template <class T>
  T* Reserve(std::size_t count) {
    const std::size_t bytes = (count * sizeof(T) + kAlign) / kAlign * kAlign;
    if (bytes > bytes_) {
      memory_.reset();
      bytes_ = 0;
      memory_.reset(std::aligned_alloc(kAlign, bytes));
      if (memory_ == nullptr) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return static_cast<T*>(memory_.get());
  }

 private:
  static constexpr std::size_t kAlign = 64;
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
  std::size_t bytes_ = 0;
};

}  // namespace qgemm
