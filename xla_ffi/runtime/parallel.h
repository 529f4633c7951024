// A parallel loop by claiming work, which cannot deadlock on a shared thread pool.
//
// The caller and at most `threads - 1` helpers take items from an atomic counter. The caller never
// waits for a helper to *start*: it works through the items itself and at the end waits only for
// items that a helper has already claimed, that is, for threads that are running. So any number of
// programs may call this at once on a pool of any size.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
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

// Calls body(job, first_item) once in every participant; the body works in
//   for (item = first_item; item >= 0; item = job.Next()) { … }
// Pool: num_threads() and Schedule(task), as ffi::ThreadPool. Throws if a participant did.
template <class Pool, class Body>
void ParallelClaim(Pool& pool, std::int64_t items, int threads, const Body& body) {
  if (items <= 0) return;
  const auto run = [](const void* b, Job& job, std::int64_t first) {
    (*static_cast<const Body*>(b))(job, first);
  };
  const std::int64_t helpers = std::min<std::int64_t>(threads, items) - 1;
  if (helpers <= 0) {
    Job job(items, &body, run);
    job.Participate();
    job.Wait();
    return;
  }
  const auto job = std::make_shared<Job>(items, &body, run);
  try {
    for (std::int64_t i = 0; i < helpers; ++i) pool.Schedule([job] { job->Participate(); });
  } catch (...) {  // no memory for another helper: those there are, and the caller, do the work
  }
  job->Participate();
  job->Wait();
}

}  // namespace qgemm
