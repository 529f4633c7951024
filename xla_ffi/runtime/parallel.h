// A parallel loop by claiming work, which cannot deadlock on a shared thread pool.
//
// The caller and some helpers each take items from a range of their own, then from those of others
// (job.h). The caller never waits for a helper to *start*: it works through the items itself and at
// the end waits only for items that a helper has already claimed, that is, for threads that are
// running. So any number of programs may call this at once on a pool of any size. Helpers linger
// for the next loop. A loop too small to wake a helper takes those that linger; where such loops
// follow each other, one does wake helpers, for the rest of them.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <utility>

#include "runtime/job.h"
#include "runtime/lounge.h"
#include "runtime/recycling_allocator.h"
#include "runtime/succession.h"

namespace qgemm {

// Works on `job`, then on what comes while it lingers: 300 µs bridge the operations between two
// products and most of the host's time between two calls (20 gained nothing); after 20 ms its pool
// has it back, whatever comes.
inline void Help(std::shared_ptr<Job> job) {
  constexpr std::chrono::microseconds kLinger{300}, kStay{20000};
  const auto leave = Lounge::Clock::now() + kStay;
  while (job != nullptr) {
    job->Participate();
    job.reset();
    const auto now = Lounge::Clock::now();
    if (now < leave) job = HelperLounge().Linger(now + kLinger);
  }
}

// How many threads a loop takes: of those that linger, and of those that it would have to wake.
struct Crew {
  int at_hand, woken;

  static Crew Of(int threads) { return {threads, threads}; }
};

// Calls body(self, first_item) once in every participant, a Job::Participant; the body works in
//   for (item = first_item; item >= 0; item = self.Next()) { … }
// Pool: num_threads() and Schedule(task), as ffi::ThreadPool. Throws if a participant did.
template <class Pool, class Body>
void ParallelClaim(Pool& pool, std::int64_t items, Crew crew, const Body& body) {
  if (items <= 0) return;
  const auto run = [](const void* b, Job::Participant& self, std::int64_t first) {
    (*static_cast<const Body*>(b))(self, first);
  };
  const std::int64_t helpers = std::min<std::int64_t>(crew.at_hand, items) - 1;
  if (helpers <= 0) {
    Job job(items, 1, &body, run);
    job.Participate();
    job.Wait();
    return;
  }
  const auto job =
      std::allocate_shared<Job>(RecyclingAllocator<Job>(), items, int(helpers) + 1, &body, run);
  try {
    std::int64_t handed = 0;
    while (handed < helpers && HelperLounge().Hand(job)) ++handed;
    if (handed + 1 < crew.at_hand && crew.woken < crew.at_hand && SmallLoops().Follow()) {
      crew.woken = crew.at_hand;
    }
    for (; handed < helpers && handed + 1 < crew.woken; ++handed) {
      pool.Schedule([job] { Help(job); });
    }
  } catch (...) {  // no memory for another helper: those there are, and the caller, do the work
  }
  job->Participate();
  job->Wait();
}

}  // namespace qgemm
