// Memory of objects that come and go with calls: a few blocks are kept, so that nothing is
// allocated per call in steady state. Any thread may free what another allocated.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <new>

namespace qgemm {

template <class T>
struct RecyclingAllocator {
  using value_type = T;

  RecyclingAllocator() = default;
  template <class U>
  RecyclingAllocator(const RecyclingAllocator<U>&) {}

  T* allocate(std::size_t count) {
    for (std::atomic<void*>& block : Kept()) {
      if (count != 1) break;
      if (void* const found = block.exchange(nullptr, std::memory_order_acq_rel)) {
        return static_cast<T*>(found);
      }
    }
    return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(alignof(T))));
  }

  void deallocate(T* p, std::size_t count) {
    void* freed = p;
    for (std::atomic<void*>& block : Kept()) {
      if (count != 1 || freed == nullptr) break;
      freed = block.exchange(freed, std::memory_order_acq_rel);
    }
    if (freed != nullptr) ::operator delete(freed, std::align_val_t(alignof(T)));
  }

  friend bool operator==(const RecyclingAllocator&, const RecyclingAllocator&) { return true; }
  friend bool operator!=(const RecyclingAllocator&, const RecyclingAllocator&) { return false; }

 private:
  // As many as there are loops at a time in most programs. Never destroyed: helpers may outlive
  // static objects.
  using Blocks = std::array<std::atomic<void*>, 4>;
  static Blocks& Kept() {
    static Blocks& blocks = *new Blocks{};
    return blocks;
  }
};

}  // namespace qgemm
