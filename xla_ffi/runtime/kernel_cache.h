// Generated kernels of one kind, by key. Bounded in number, they live as long as the process.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "runtime/kernel_log.h"

namespace qgemm {

// Key: has a Name(key). Generator: an Xbyak::CodeGenerator, constructed from a Key, with a
// function().
template <class Key, class Hash, class Generator>
class KernelCache {
 public:
  explicit KernelCache(std::string family) : family_(std::move(family)) {}

  auto Get(const Key& key) {
    const std::lock_guard lock(mutex_);
    std::unique_ptr<Generator>& kernel = kernels_[key];
    if (kernel == nullptr) kernel = GenerateKernel<Generator>(family_, Name(key), key);
    return kernel->function();
  }

 private:
  const std::string family_;  // in names
  std::mutex mutex_;
  std::unordered_map<Key, std::unique_ptr<Generator>, Hash> kernels_;
};

}  // namespace qgemm
