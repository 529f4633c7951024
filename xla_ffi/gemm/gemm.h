// Runs a planned GEMM.
#pragma once

#include <cstdint>

#include "gemm/describe.h"
#include "gemm/plan.h"
#include "runtime/parallel.h"

namespace qgemm {

// Works through the items a participant claims through `self`, the first of them in hand.
void RunItems(const Plan& plan, const WorkItem* items, const GemmOperands& operands,
              Job::Participant& self, std::int64_t first);

// The items of a ragged product, in memory of the calling thread, which is kept between calls.
// Clears the rows of no group.
const std::vector<WorkItem>& RaggedItems(const Plan& plan, const GemmOperands& operands);

// Pool: see ParallelClaim.
template <class Pool>
void RunGemm(const Plan& plan, const GemmOperands& operands, Pool& pool) {
  const auto run = [&] {
    const std::vector<WorkItem>& items =
        plan.key.shape.ragged ? RaggedItems(plan, operands) : plan.items;
    ParallelClaim(pool, std::int64_t(items.size()), Crew{plan.threads, plan.woken},
                  [&](Job::Participant& self, std::int64_t first) {
                    RunItems(plan, items.data(), operands, self, first);
                  });
  };
  Traced(run, [&] { return DescribeGemm(plan); });
}

}  // namespace qgemm
