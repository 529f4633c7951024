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

// MADV_COLLAPSE, of Linux 6.1, which older headers lack.
constexpr int kCollapse = 25;

// Of the whole huge pages within memory; whether the system took it, where there are any.
bool Advise(const void* memory, std::size_t bytes, int advice) {
  constexpr std::uintptr_t kHuge = 2 << 20;
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t begin = (address + kHuge - 1) / kHuge * kHuge;
  const std::uintptr_t end = (address + bytes) / kHuge * kHuge;
  return begin >= end || madvise(reinterpret_cast<void*>(begin), end - begin, advice) == 0;
}

// To collapse pages is done also where the administrator wants none.
bool SystemWantsHugePages() {
  char text[64] = "";
  if (std::FILE* const file = std::fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r")) {
    if (std::fgets(text, sizeof text, file) == nullptr) text[0] = '\0';
    std::fclose(file);
  }
  return text[0] != '\0' && std::strstr(text, "[never]") == nullptr;
}

// Addresses with the bytes that are known of each.
class Known {
 public:
  // Whether it was not known.
  bool Add(const void* memory, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    if (sizes_.size() >= kMost) sizes_.clear();
    std::size_t& known = sizes_[memory];
    if (known >= bytes) return false;
    known = bytes;
    return true;
  }

 private:
  static constexpr std::size_t kMost = 1 << 16;
  std::mutex mutex_;
  std::unordered_map<const void*, std::size_t> sizes_;
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
  if (bytes < kLeastMoved) return;
  // Never destroyed: a program may still run on another thread while the process exits.
  static Known& known = *new Known;
  static const bool wanted = SystemWantsHugePages();
  if (!wanted || !known.Add(memory, bytes)) return;
  // An older system does it by and by.
  if (!Advise(memory, bytes, kCollapse)) Advise(memory, bytes, MADV_HUGEPAGE);
#endif
}

}  // namespace qgemm
