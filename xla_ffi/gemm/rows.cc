#include "gemm/rows.h"

#include <algorithm>
#include <cstring>

#include "gemm/quantize.h"

namespace qgemm {
namespace {

// Integer rows: u = x, or x + 128 for int8, which flips the top bit.
template <class Out>
void CopyShifted(const std::uint8_t* x, std::int64_t k, std::uint8_t flip, Out* a) {
  for (std::int64_t i = 0; i < k; ++i) a[i] = Out(std::uint8_t(x[i] ^ flip));
}

template <class In>
std::int32_t Sum(const In* a, std::int64_t count) {
  std::uint32_t sum = 0;  // wraps, as the products do
  for (std::int64_t i = 0; i < count; ++i) sum += std::uint32_t(a[i]);
  return std::int32_t(sum);
}

// Of float x, a scale and a zero point for each row.
bool ChoosesScales(const Plan& plan) {
  const AFormat format = plan.family->a_format;
  return IsFloat(plan.key.spec.x) && (format == AFormat::kU8 || format == AFormat::kS16);
}

}  // namespace

void PreparedRows::Begin(const Plan& plan, const GemmOperands& operands, std::int64_t begin,
                         std::int64_t count) {
  const Epilogue& epilogue = plan.epilogue;
  const AFormat format = plan.family->a_format;
  begin_ = begin;
  count_ = count;
  at_ = 0;
  a_stride_ = plan.a_stride;
  copies_ = nullptr;
  a_ = static_cast<const std::uint8_t*>(operands.x) + begin * plan.RowBytes();
  if (!plan.in_place) {
    a_ = copies_ = a_memory_.Reserve<std::uint8_t>(std::size_t(count * a_stride_));
  }
  row_scales_ = nullptr;
  if (ChoosesScales(plan)) row_scales_ = scale_memory_.Reserve<float>(std::size_t(count));
  scales_ = epilogue.x_scale != Granularity::kRow ? nullptr
            : row_scales_ != nullptr              ? row_scales_
                                                  : operands.x_scale + begin;
  negative_zeros_ = nullptr;
  if (epilogue.x_zero == Granularity::kRow) {
    negative_zeros_ = zero_memory_.Reserve<std::int32_t>(std::size_t(count));
  }
  groups_ = nullptr;
  if (format == AFormat::kS8Groups) {
    groups_ = group_memory_.Reserve<RowGroup>(std::size_t(count * plan.layout.Groups()));
  }
  sums_ = nullptr;
  if (epilogue.w_zero && !epilogue.float_sums) {
    sums_ = sum_memory_.Reserve<std::int32_t>(std::size_t(count * plan.k_blocks));
  }
}

void PreparedRows::Fill(const Plan& plan, const GemmOperands& operands, std::int64_t first,
                        std::int64_t count) {
  const AFormat format = plan.family->a_format;
  const std::int64_t k = plan.key.shape.k, size = SizeOf(format);
  const std::int64_t row_bytes = plan.RowBytes(), end = first + count;
  const auto* const x = static_cast<const std::uint8_t*>(operands.x) + (begin_ + first) * row_bytes;
  if (row_scales_ != nullptr) {
    std::int32_t* const zeros = negative_zeros_ + first;
    QuantizeRows(plan.row_kernels, RowScheme::kAsymmetric, format,
                 {x, row_bytes, count, k, copies_ + first * a_stride_, a_stride_},
                 row_scales_ + first, zeros);
    for (std::int64_t i = 0; i < count; ++i) zeros[i] = -zeros[i];
  } else if (negative_zeros_ != nullptr) {
    for (std::int64_t row = first; row < end; ++row) {
      negative_zeros_[row] = NegativeZero(operands.x_zero[begin_ + row], plan.key.spec.x);
    }
  }
  for (std::int64_t row = first; copies_ != nullptr && row < end; ++row) {
    std::uint8_t* a = copies_ + row * a_stride_;
    if (row_scales_ == nullptr) CopyRow(plan, x + (row - first) * row_bytes, row, a);
    const std::int64_t padding = plan.layout.PaddedK() - k;
    if (format == AFormat::kF32) {
      // Products of -0: they keep a sum of -0.
      std::fill_n(reinterpret_cast<float*>(a) + k, padding, -0.0F);
    } else {
      std::memset(a + k * size, 0, std::size_t(padding * size));
    }
  }
  for (std::int64_t block = 0; sums_ != nullptr && block < plan.k_blocks; ++block) {
    const std::int64_t from = block * plan.k_block;
    const std::int64_t length = std::min(plan.k_block, k - from);
    for (std::int64_t row = first; row < end; ++row) {
      const std::uint8_t* a = a_ + row * a_stride_ + from * size;
      sums_[block * count_ + row] =
          size == 1 ? Sum(a, length) : Sum(reinterpret_cast<const std::int16_t*>(a), length);
    }
  }
}

void PreparedRows::CopyRow(const Plan& plan, const std::uint8_t* x, std::int64_t row,
                           std::uint8_t* a) {
  const AFormat format = plan.family->a_format;
  const std::int64_t k = plan.key.shape.k;
  const std::int32_t shift = ZeroShift(plan.key.spec.x);
  if (format == AFormat::kF32) {
    plan.row_kernels.to_f32(x, k, reinterpret_cast<float*>(a));
  } else if (format == AFormat::kS8Groups) {
    QuantizeGroups(plan, x, row, a);
  } else if (format == AFormat::kS16) {
    CopyShifted(x, k, std::uint8_t(shift), reinterpret_cast<std::int16_t*>(a));
  } else if (shift == 0) {
    std::memcpy(a, x, std::size_t(k * SizeOf(format)));
  } else {
    CopyShifted(x, k, std::uint8_t(shift), a);
  }
}

void PreparedRows::QuantizeGroups(const Plan& plan, const std::uint8_t* x, std::int64_t row,
                                  std::uint8_t* a) {
  const PackedLayout& layout = plan.layout;
  const std::int64_t k = layout.k, group = layout.group;
  std::int64_t first = 0;
  if (plan.row_kernels.to_groups != nullptr) {
    const GroupsArgs args{group, count_ * std::int64_t(sizeof(RowGroup)), layout.blocks.minimum,
                          -Offset(layout.w)};
    plan.row_kernels.to_groups(x, k / group, &args, a, groups_ + row);
    first = k / group * group;
  }
  for (; first < k; first += group) {
    const std::int64_t length = std::min(group, k - first);
    const float scale = QuantizeRow(plan.row_kernels, RowScheme::kSymmetric, AFormat::kU8,
                                    x + first * SizeOf(plan.key.spec.x), length, a + first)
                            .scale;
    std::int32_t sum = 0;
    for (std::int64_t i = first; i < first + length; ++i) sum += std::int8_t(a[i]);
    RowGroup& to = groups_[first / group * count_ + row];
    to.scale = scale;
    if (layout.blocks.minimum) {
      to.term = scale * float(sum);
    } else {
      const std::int32_t start = -Offset(layout.w) * sum;
      std::memcpy(&to.term, &start, sizeof start);
    }
  }
}

}  // namespace qgemm
