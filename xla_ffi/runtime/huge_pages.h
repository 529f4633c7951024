// Huge pages for weights: a stream of them then walks page tables 512 times less often.
#pragma once

#include <atomic>
#include <cstddef>

namespace qgemm {

// For memory that was never written to, before it is: of the whole huge pages within it. A hint.
void AdviseHugePages(void* memory, std::size_t bytes);

// For memory that calls read, each in whole, and that others wrote, as the constants of a program:
// moves what it holds into huge pages, of those that lie within it. Not at the first calls for its
// address, lest it be a temporary, and then now and again, for it may be other memory by then.
// Smaller memory than kLeastMoved stays as it is, and all does where Linux is older than 6.1 or
// gives no huge pages (transparent_hugepage/enabled). One row of 4096x4096 on Zen 4: of 16 bits
// 1.03 to 1.3 times as fast, of 8 bits 1.0 to 1.09.
inline constexpr std::size_t kLeastMoved = 4 << 20;
void MoveToHugePages(const void* memory, std::size_t bytes);

// Whether it does anything.
inline std::atomic<bool> moves_to_huge_pages{true};

}  // namespace qgemm
