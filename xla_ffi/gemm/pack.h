// Packs a weight matrix into the layout of layout.h.
#pragma once

#include <cstdint>

#include "gemm/describe.h"
#include "gemm/layout.h"
#include "runtime/huge_pages.h"
#include "runtime/parallel.h"

namespace qgemm {

// w[k, n] row-major, w_zero null, [n] or, with groups, [KBlocks, n]; packed[layout.Bytes()],
// column_sums[KBlocks, n] of w - w_zero.
struct PackOperands {
  const std::int8_t* w;
  const std::int32_t* w_zero;
  std::int8_t* packed;
  std::int32_t* column_sums;
  std::int64_t group = 0;  // see GemmSpec
};

void PackPanel(const PackedLayout& layout, const PackOperands& operands, std::int64_t panel);

// The same of float16 or bfloat16, by their bits: w[k, n] row-major, packed[layout.Elements()].
struct PackFloatOperands {
  const std::uint16_t* w;
  std::uint16_t* packed;
};

void PackPanel(const PackedLayout& layout, const PackFloatOperands& operands, std::int64_t panel);

// Operands: of either kind. Pool: see ParallelClaim.
template <class Operands, class Pool>
void Pack(const PackedLayout& layout, const Operands& operands, Pool& pool, int threads) {
  // A panel smaller than this is packed sooner than a thread is woken.
  constexpr std::int64_t kBytesPerThread = 256 << 10;
  const std::int64_t worth = std::max<std::int64_t>(1, layout.Bytes() / kBytesPerThread);
  const int participants = int(std::min<std::int64_t>(threads, worth));
  const auto run = [&] {
    AdviseHugePages(operands.packed, std::size_t(layout.Bytes()));
    ParallelClaim(pool, layout.Panels(), Crew::Of(participants),
                  [&](Job::Participant& self, std::int64_t first) {
                    for (std::int64_t panel = first; panel >= 0; panel = self.Next()) {
                      PackPanel(layout, operands, panel);
                    }
                  });
  };
  Traced(run, [&] { return DescribePack(layout, participants); });
}

}  // namespace qgemm
