// Runs a planned GEMM.
#pragma once

#include <cstdint>

#include "gemm/describe.h"
#include "gemm/plan.h"
#include "runtime/parallel.h"

namespace qgemm {

// Works through the items a participant claims from `job`, the first of them in hand.
void RunItems(const Plan& plan, const GemmOperands& operands, Job& job, std::int64_t first);

// Pool: see ParallelClaim.
template <class Pool>
void RunGemm(const Plan& plan, const GemmOperands& operands, Pool& pool) {
  const auto run = [&] {
    ParallelClaim(pool, std::int64_t(plan.items.size()), plan.threads,
                  [&](Job& job, std::int64_t first) { RunItems(plan, operands, job, first); });
  };
  Traced(run, [&] { return DescribeGemm(plan); });
}

}  // namespace qgemm
