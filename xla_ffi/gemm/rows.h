// Prepares a block of rows of x for the kernels: quantized if float, in the family's format and
// padded; where x is all that already, it is read in place.
#pragma once

#include <cstdint>

#include "gemm/plan.h"
#include "runtime/scratch.h"

namespace qgemm {

class PreparedRows {
 public:
  // For rows [begin, begin + count) of x: memory, and what does not depend on their elements.
  void Begin(const Plan& plan, const GemmOperands& operands, std::int64_t begin,
             std::int64_t count);
  // Then so many of them, from the block's row `first` on; all, where those are left out.
  void Fill(const Plan& plan, const GemmOperands& operands, std::int64_t first, std::int64_t count);
  void Fill(const Plan& plan, const GemmOperands& operands) { Fill(plan, operands, 0, count_); }

  // Whether rows [begin, begin + count) of x are among these. From there on rows count then.
  bool Seek(std::int64_t begin, std::int64_t count) {
    if (begin < begin_ || begin + count > begin_ + count_) return false;
    at_ = begin - begin_;
    return true;
  }

  // All relative to the row of the last Begin or Seek; null where the epilogue does not need them.
  const std::uint8_t* a(std::int64_t row) const { return a_ + (at_ + row) * a_stride_; }
  const float* scales(std::int64_t row) const { return scales_ ? scales_ + at_ + row : nullptr; }
  const std::int32_t* negative_zeros(std::int64_t row) const {
    return negative_zeros_ ? negative_zeros_ + at_ + row : nullptr;
  }
  const std::int32_t* sums(std::int64_t k_block, std::int64_t row) const {
    return sums_ ? sums_ + k_block * count_ + at_ + row : nullptr;
  }
  // Of the first group of K; AFormat::kS8Groups.
  const RowGroup* groups(std::int64_t row) const { return groups_ ? groups_ + at_ + row : nullptr; }
  std::int64_t groups_stride() const { return count_ * std::int64_t(sizeof(RowGroup)); }

 private:
  // Row `row` of the block, in the family's format where that chooses no parameters for all of it;
  // quantized by groups.
  void CopyRow(const Plan& plan, const std::uint8_t* x, std::int64_t row, std::uint8_t* a);
  void QuantizeGroups(const Plan& plan, const std::uint8_t* x, std::int64_t row, std::uint8_t* a);

  const std::uint8_t* a_ = nullptr;
  std::uint8_t* copies_ = nullptr;  // null: in place
  std::int64_t a_stride_ = 0;
  std::int64_t begin_ = 0, count_ = 0, at_ = 0;
  float* row_scales_ = nullptr;  // chosen here
  const float* scales_ = nullptr;
  std::int32_t* negative_zeros_ = nullptr;
  std::int32_t* sums_ = nullptr;
  RowGroup* groups_ = nullptr;
  Scratch a_memory_, scale_memory_, zero_memory_, sum_memory_, group_memory_;
};

}  // namespace qgemm
