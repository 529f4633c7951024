// The items of a parallel loop and the threads that take them.
#pragma once

#include <algorithm>
#include <array>
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

// The items of one parallel loop. Every participant has a range of its own and takes it from the
// front; who is done takes from the back of another's. So it meets items in order, which share rows
// of x or follow each other in memory, and meets the same ones when the loop comes again.
//
// Shared by its participants, so a helper that starts late, after the caller has returned, still
// finds the counters (and no item).
class Job {
 public:
  // One thread at work. Bodies go on with Next() as long as it is not negative.
  class Participant {
   public:
    // Called with an item in hand: marks it done and returns the next one, or -1 if there is none.
    // After -1 nothing of the caller's may be touched.
    std::int64_t Next() {
      const std::int64_t item = job_.Claim(own_, range_);
      job_.done_.fetch_add(1, std::memory_order_release);
      return item;
    }

   private:
    friend class Job;
    Participant(Job& job, int own) : job_(job), own_(own), range_(own) {}

    Job& job_;
    const int own_;
    int range_;  // where it takes items from
  };

  using Run = void (*)(const void* body, Participant& self, std::int64_t first);

  Job(std::int64_t items, int participants, const void* body, Run run)
      : items_(items),
        ranges_in_use_(std::clamp(participants, 1, kMaxRanges)),
        body_(body),
        run_(run) {
    for (int i = 0; i < ranges_in_use_; ++i) {
      ranges_[i].bounds.store({std::uint32_t(items * i / ranges_in_use_),
                               std::uint32_t(items * (i + 1) / ranges_in_use_)},
                              std::memory_order_relaxed);
    }
  }

  // Works as one participant. `body_` is looked at only with an item in hand: the caller, and so
  // the body, lives until that item is done.
  void Participate() {
    Participant self(*this, participants_.fetch_add(1, std::memory_order_relaxed) % ranges_in_use_);
    const std::int64_t first = Claim(self.own_, self.range_);
    if (first < 0) return;
    try {
      run_(body_, self, first);
    } catch (...) {  // thrown with an item in hand; the others are given up
      if (!failed_.exchange(true)) error_ = std::current_exception();
      while (self.Next() >= 0) {
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
  static constexpr int kMaxRanges = 16;  // more participants share them

  struct Bounds {
    std::uint32_t begin, end;
  };
  struct alignas(64) Range {
    std::atomic<Bounds> bounds{};
  };

  // The next item for a participant whose own range is `own` and that last took from `range`.
  std::int64_t Claim(int own, int& range) {
    for (int looked = 0; looked < ranges_in_use_; ++looked) {
      std::atomic<Bounds>& bounds = ranges_[range].bounds;
      Bounds b = bounds.load(std::memory_order_relaxed);
      while (b.begin < b.end) {
        const bool front = range == own;
        const Bounds rest = front ? Bounds{b.begin + 1, b.end} : Bounds{b.begin, b.end - 1};
        if (bounds.compare_exchange_weak(b, rest, std::memory_order_relaxed)) {
          return front ? b.begin : rest.end;
        }
      }
      range = (range + 1) % ranges_in_use_;
    }
    return -1;
  }

  const std::int64_t items_;
  const int ranges_in_use_;
  const void* const body_;
  const Run run_;
  std::array<Range, kMaxRanges> ranges_;
  alignas(64) std::atomic<int> participants_{0};
  alignas(64) std::atomic<std::int64_t> done_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // written before its thrower's item counts as done
};

}  // namespace qgemm
