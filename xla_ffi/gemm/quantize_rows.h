// Quantizes the rows of a float matrix: the operation by itself, for x that is used more than once.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gemm/describe.h"
#include "gemm/layout.h"
#include "gemm/quantize.h"
#include "runtime/cpu.h"
#include "runtime/parallel.h"

namespace qgemm {

// x[rows, k] of a float type into q[rows, k] of one byte each.
struct QuantizeRowsOperands {
  XType x_type;
  const void* x;
  std::int64_t rows, k;
  void* q;
  float* row_scales;         // [rows]: parameters chosen per row; null: static
  std::int32_t* row_zeros;   // [rows] for asymmetric uint8; null for symmetric int8
  QuantizeArgs static_args;  // for static quantization
};

void QuantizeRows(const QuantizeRowsOperands& operands, const RowKernels& kernels,
                  std::int64_t begin, std::int64_t end);

// Pool: see ParallelClaim.
template <class Pool>
void QuantizeRows(const QuantizeRowsOperands& operands, Isa isa, Pool& pool, int threads) {
  // Fewer elements are done sooner than a thread is woken.
  constexpr std::int64_t kElementsPerItem = 128 << 10;
  const RowKernels kernels = FamilyOf(isa).rows(operands.x_type);
  const std::int64_t rows_per_item =
      std::max<std::int64_t>(1, kElementsPerItem / std::max<std::int64_t>(1, operands.k));
  const std::int64_t items = CeilDiv(operands.rows, rows_per_item);
  const auto run = [&] {
    ParallelClaim(pool, items, Crew::Of(threads), [&](Job::Participant& self, std::int64_t first) {
      for (std::int64_t item = first; item >= 0; item = self.Next()) {
        const std::int64_t begin = item * rows_per_item;
        QuantizeRows(operands, kernels, begin, std::min(operands.rows, begin + rows_per_item));
      }
    });
  };
  Traced(run, [&] { return DescribeQuantize(operands, isa, items, rows_per_item, threads); });
}

}  // namespace qgemm
