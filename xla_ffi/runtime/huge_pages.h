// Huge pages for weights: a stream of them then walks page tables 512 times less often.
#pragma once

#include <cstddef>

namespace qgemm {

// For memory that was never written to, before it is: of the whole huge pages within it. A hint.
void AdviseHugePages(void* memory, std::size_t bytes);

// For memory that each call reads and that others wrote, as the constants of a program: at the
// first call for it what it holds is moved into huge pages, of those that lie within it. Smaller
// memory than kLeastMoved stays as it is, and so does all where the system has no huge pages or
// never wants them. One row of 4096x4096 on Zen 4: of 16 bits 1.08 to 1.3 times as fast, of 8
// bits 1.08.
inline constexpr std::size_t kLeastMoved = 4 << 20;
void MoveToHugePages(const void* memory, std::size_t bytes);

}  // namespace qgemm
