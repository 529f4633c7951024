// XLA's thread pool in the shape that ParallelClaim wants: the only place where the two meet.
#pragma once

#include <algorithm>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace qgemm {

class XlaPool {
 public:
  explicit XlaPool(xla::ffi::ThreadPool& pool) : pool_(pool) {}

  // At least the caller, also where a program runs without a pool.
  int num_threads() const { return std::max(1, int(pool_.num_threads())); }

  template <class Task>
  void Schedule(Task task) {
    pool_.Schedule(std::move(task));
  }

 private:
  xla::ffi::ThreadPool& pool_;
};

}  // namespace qgemm
