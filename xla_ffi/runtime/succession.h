// Whether small parallel loops follow each other closely.
//
// To wake a thread takes as long as a small product. Alone it is better done without; in a network
// of small layers one call wakes a helper, which then lingers for all that follow.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace qgemm {

class Succession {
 public:
  // Counts a loop that begins now. True if several have come lately, each soon after the last.
  bool Follow() {
    constexpr std::int64_t kPause = 200'000;  // ns from one beginning to the next
    constexpr int kSeveral = 4;
    using std::chrono::nanoseconds;
    const auto since_epoch = std::chrono::steady_clock::now().time_since_epoch();
    const std::int64_t now = std::chrono::duration_cast<nanoseconds>(since_epoch).count();
    // Callers at once may miscount: then a helper comes a little earlier or later.
    const std::int64_t last = last_.exchange(now, std::memory_order_relaxed);
    if (now - last > kPause) {
      loops_.store(1, std::memory_order_relaxed);
      return false;
    }
    return loops_.fetch_add(1, std::memory_order_relaxed) + 1 >= kSeveral;
  }

 private:
  alignas(64) std::atomic<std::int64_t> last_{0};
  std::atomic<int> loops_{0};
};

inline Succession& SmallLoops() {
  static Succession succession;
  return succession;
}

}  // namespace qgemm
