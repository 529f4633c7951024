// The items of a parallel loop and the threads that take them.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace qgemm {

inline void SpinPause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#endif
}

// The items of one parallel loop. Shared by its participants, so a helper that starts late, after
// the caller has returned, still finds the counters (and no item).
class Job {
 public:
  Job(std::int64_t items, const void* body, void (*run)(const void*, Job&, std::int64_t))
      : items_(items), body_(body), run_(run) {}

  // Called with an item in hand: marks it done and returns the next one, or -1 if there is none.
  // After -1 the participant must not touch anything of the caller's.
  std::int64_t Next() {
    const std::int64_t item = Claim();
    done_.fetch_add(1, std::memory_order_release);
    return item;
  }

  // Works as one participant. `body_` is looked at only with an item in hand: the caller, and so
  // the body, lives until that item is done.
  void Participate() {
    const std::int64_t first = Claim();
    if (first < 0) return;
    try {
      run_(body_, *this, first);
    } catch (...) {  // thrown with an item in hand; the others are given up
      if (!failed_.exchange(true)) error_ = std::current_exception();
      while (Next() >= 0) {
      }
    }
  }

  // Returns when all items are done; throws what a participant threw first.
  void Wait() const {
    for (int spins = 0; done_.load(std::memory_order_acquire) < items_; ++spins) {
      if (spins < 4096) {
        SpinPause();
      } else {
        std::this_thread::yield();
      }
    }
    if (error_ != nullptr) std::rethrow_exception(error_);
  }

 private:
  std::int64_t Claim() {
    const std::int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
    return item < items_ ? item : -1;
  }

  const std::int64_t items_;
  const void* const body_;
  void (*const run_)(const void*, Job&, std::int64_t);
  alignas(64) std::atomic<std::int64_t> next_{0};
  alignas(64) std::atomic<std::int64_t> done_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // written before its thrower's item counts as done
};

}  // namespace qgemm
