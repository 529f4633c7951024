// Checks of the parallel loop.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "pools.h"
#include "random.h"
#include "runtime/parallel.h"

namespace qgemm::test {

// Every item runs exactly once; what a body throws comes out of the loop, in any thread.
inline bool RunParallel(std::int64_t items, int threads, std::int64_t thrower) {
  std::vector<std::atomic<int>> runs(std::size_t(items) + 1);
  bool thrown = false;
  try {
    Threads pool;
    pool.most = std::size_t(Random(0, 4));
    const Crew crew{threads, int(Random(1, threads))};
    ParallelClaim(pool, items, crew, [&](Job::Participant& self, std::int64_t first) {
      for (std::int64_t item = first; item >= 0; item = self.Next()) {
        runs[std::size_t(item)]++;
        if (item == thrower) throw std::bad_alloc();
      }
    });
  } catch (const std::exception&) {
    thrown = true;
  }
  bool good = thrown == (thrower >= 0);
  for (std::int64_t i = 0; i < items; ++i) {
    const int times = runs[std::size_t(i)];
    good = good && (times == 1 || (thrown && times == 0));
  }
  if (!good) std::printf("FAILED parallel loop: items=%ld threads=%d\n", long(items), threads);
  return good;
}

// Callers at once, each with one loop after the other: helpers of one pool linger and work for all.
inline bool RunTogether() {
  constexpr int kCallers = 3, kLoops = 200;
  std::atomic<bool> good{true};
  std::atomic<int> scheduled{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; ++c) {
    callers.emplace_back([&] {
      Threads pool;
      pool.most = kLoops;
      for (std::int64_t loop = 0; loop < kLoops; ++loop) {
        std::vector<int> runs(std::size_t(loop % 23 + 2));  // plain: the loop's end orders them
        ParallelClaim(pool, std::int64_t(runs.size()), Crew::Of(2),
                      [&](Job::Participant& self, std::int64_t first) {
                        for (std::int64_t item = first; item >= 0; item = self.Next())
                          ++runs[std::size_t(item)];
                      });
        for (const int times : runs) good = good && times == 1;
      }
      scheduled += int(pool.threads.size());
    });
  }
  for (std::thread& caller : callers) caller.join();
  std::printf("%d of %d helpers lingered\n", kCallers * kLoops - scheduled, kCallers * kLoops);
  if (!good) std::printf("FAILED parallel loops of callers at once\n");
  return good;
}

}  // namespace qgemm::test
