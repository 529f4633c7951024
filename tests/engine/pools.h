// Thread pools for the engine.
#pragma once

#include <cstddef>
#include <new>
#include <thread>
#include <utility>
#include <vector>

namespace qgemm::test {

// A pool that starts a thread per task and joins them at its end.
struct Threads {
  std::vector<std::thread> threads;
  std::size_t most = 100;  // beyond so many it has no memory for another
  template <class F>
  void Schedule(F&& f) {
    if (threads.size() == most) throw std::bad_alloc();
    threads.emplace_back(std::forward<F>(f));
  }
  ~Threads() {
    for (std::thread& t : threads) t.join();
  }
};

// A pool without a thread to spare.
struct NoThreads {
  template <class F>
  void Schedule(F&&) {}
};

}  // namespace qgemm::test
