// Generated kernels of one kind, by key. Bounded in number, they live as long as the process.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>

namespace qgemm {

// Totals over all caches.
struct KernelCacheInfo {
  std::atomic<std::int64_t> kernels{0};
  std::atomic<std::int64_t> bytes{0};  // of machine code
};

inline KernelCacheInfo& KernelTotals() {
  static KernelCacheInfo totals;
  return totals;
}

// Generator: constructed from a Key, has function() and getSize().
template <class Key, class Hash, class Generator>
class KernelCache {
 public:
  auto Get(const Key& key) {
    const std::lock_guard lock(mutex_);
    std::unique_ptr<Generator>& kernel = kernels_[key];
    if (kernel == nullptr) {
      kernel = std::make_unique<Generator>(key);
      KernelTotals().kernels += 1;
      KernelTotals().bytes += std::int64_t(kernel->getSize());
    }
    return kernel->function();
  }

 private:
  std::mutex mutex_;
  std::unordered_map<Key, std::unique_ptr<Generator>, Hash> kernels_;
};

}  // namespace qgemm
