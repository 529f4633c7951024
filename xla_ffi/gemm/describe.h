// What verbose mode (runtime/verbose.h) says of each operation.
#pragma once

#include <cstdint>

#include "gemm/layout.h"
#include "runtime/cpu.h"
#include "runtime/verbose.h"

namespace qgemm {

struct Plan;
struct QuantizeRowsOperands;

CallLine DescribeGemm(const Plan& plan);
// `threads`: at most.
CallLine DescribeQuantize(const QuantizeRowsOperands& operands, Isa isa, std::int64_t items,
                          std::int64_t rows_per_item, int threads);
CallLine DescribePack(const PackedLayout& layout, int threads);

}  // namespace qgemm
