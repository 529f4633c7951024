// Prepares a block of rows of x for the kernels: quantized if float, in the family's format and
// padded; where x is all that already, it is read in place.
#pragma once

#include <cstdint>

#include "gemm/plan.h"
#include "runtime/scratch.h"

namespace qgemm {

class PreparedRows {
 public:
  // Rows [begin, begin + count) of x.
  void Prepare(const Plan& plan, const GemmOperands& operands, std::int64_t begin,
               std::int64_t count);

  // All relative to the block's first row; null where the epilogue does not need them.
  const std::uint8_t* a(std::int64_t row) const { return a_ + row * a_stride_; }
  const float* scales(std::int64_t row) const { return scales_ ? scales_ + row : nullptr; }
  const std::int32_t* negative_zeros(std::int64_t row) const {
    return negative_zeros_ ? negative_zeros_ + row : nullptr;
  }
  const std::int32_t* sums(std::int64_t k_block, std::int64_t row) const {
    return sums_ ? sums_ + k_block * count_ + row : nullptr;
  }
  // Of the first group of K; AFormat::kS8Groups.
  const RowGroup* groups(std::int64_t row) const { return groups_ ? groups_ + row : nullptr; }
  std::int64_t groups_stride() const { return count_ * std::int64_t(sizeof(RowGroup)); }

 private:
  // Row `row` of the block, in the family's format where that chooses no parameters for all of it;
  // quantized by groups.
  void CopyRow(const Plan& plan, const std::uint8_t* x, std::int64_t row, std::uint8_t* a);
  void QuantizeGroups(const Plan& plan, const std::uint8_t* x, std::int64_t row, std::uint8_t* a);

  const std::uint8_t* a_ = nullptr;
  std::int64_t a_stride_ = 0;
  std::int64_t count_ = 0;
  const float* scales_ = nullptr;
  const std::int32_t* negative_zeros_ = nullptr;
  const std::int32_t* sums_ = nullptr;
  RowGroup* groups_ = nullptr;
  Scratch a_memory_, scale_memory_, zero_memory_, sum_memory_, group_memory_;
};

}  // namespace qgemm
