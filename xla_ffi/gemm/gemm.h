// Runs a planned GEMM.
#pragma once

#include <cstdint>
#include <thread>

#include "gemm/describe.h"
#include "gemm/plan.h"
#include "runtime/parallel.h"

namespace qgemm {

// Works through the items a participant claims through `self`, the first of them in hand.
void RunItems(const Plan& plan, const std::vector<WorkItem>& items, const GemmOperands& operands,
              Job::Participant& self, std::int64_t first);

// The items of a ragged product, in memory of the calling thread, which is kept between calls.
// Clears the rows of no group.
const std::vector<WorkItem>& RaggedItems(const Plan& plan, const GemmOperands& operands);

// For a plan with parts: memory for the sums of all of them, of the calling thread, which is kept
// between calls; and what comes after the parts. `has_rows` if the thread ran one of the parts, and
// so has the rows of x.
std::int32_t* PartSums(const Plan& plan);
void FinishParts(const Plan& plan, const GemmOperands& operands, const std::int32_t* parts,
                 bool has_rows);

// Pool: see ParallelClaim.
template <class Pool>
void RunGemm(const Plan& plan, const GemmOperands& operands, Pool& pool) {
  const auto run = [&] {
    const std::vector<WorkItem>& items = plan.parts              ? plan.parts->items
                                         : plan.key.shape.ragged ? RaggedItems(plan, operands)
                                                                 : plan.items;
    GemmOperands of_items = operands;
    if (plan.parts) of_items.out = PartSums(plan);
    bool has_rows = false;
    const std::thread::id caller = std::this_thread::get_id();
    ParallelClaim(pool, std::int64_t(items.size()) * plan.products, Crew{plan.threads, plan.woken},
                  [&](Job::Participant& self, std::int64_t first) {
                    // Not later: after the last item the caller's frame may be gone.
                    if (std::this_thread::get_id() == caller) has_rows = true;
                    RunItems(plan, items, of_items, self, first);
                  });
    if (plan.parts) {
      FinishParts(plan, operands, static_cast<const std::int32_t*>(of_items.out), has_rows);
    }
  };
  Traced(run, [&] { return DescribeGemm(plan); });
}

}  // namespace qgemm
