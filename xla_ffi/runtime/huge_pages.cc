#include "runtime/huge_pages.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <unordered_map>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace qgemm {
namespace {

#if defined(__linux__) && defined(MADV_HUGEPAGE)

constexpr int kCollapse = 25;                         // MADV_COLLAPSE, which older headers lack
constexpr unsigned kMovedAt = 4, kMovedEvery = 1024;  // visits

// Of the whole huge pages within memory.
void Advise(const void* memory, std::size_t bytes, int advice) {
  constexpr std::uintptr_t kHuge = 2 << 20;
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t begin = (address + kHuge - 1) / kHuge * kHuge;
  const std::uintptr_t end = (address + bytes) / kHuge * kHuge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

// Pages are collapsed on demand also where the administrator wants none.
bool SystemCollapses() {
  if (madvise(nullptr, 0, kCollapse) != 0) return false;
  char text[64] = "";
  if (std::FILE* const file = std::fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r")) {
    if (std::fgets(text, sizeof text, file) == nullptr) text[0] = '\0';
    std::fclose(file);
  }
  return text[0] != '\0' && std::strstr(text, "[never]") == nullptr;
}

// How often addresses have come.
class Visits {
 public:
  unsigned Count(const void* memory) {
    const std::lock_guard lock(mutex_);
    if (counts_.size() >= kMost) counts_.clear();
    return ++counts_[memory];
  }

 private:
  static constexpr std::size_t kMost = 1 << 16;
  std::mutex mutex_;
  std::unordered_map<const void*, unsigned> counts_;
};

#endif

}  // namespace

void AdviseHugePages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  Advise(memory, bytes, MADV_HUGEPAGE);
#endif
}

void MoveToHugePages([[maybe_unused]] const void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < kLeastMoved || !moves_to_huge_pages.load(std::memory_order_relaxed)) return;
  static const bool collapses = SystemCollapses();
  // Never destroyed: a program may still run on another thread while the process exits.
  static Visits& visits = *new Visits;
  if (collapses && visits.Count(memory) % kMovedEvery == kMovedAt) Advise(memory, bytes, kCollapse);
#endif
}

}  // namespace qgemm
