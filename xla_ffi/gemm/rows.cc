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

}  // namespace

void PreparedRows::Prepare(const Plan& plan, const GemmOperands& operands, std::int64_t begin,
                           std::int64_t count) {
  const XType x_type = plan.key.spec.x;
  const Epilogue& epilogue = plan.epilogue;
  const AFormat format = plan.family->a_format;
  const std::int64_t k = plan.key.shape.k;
  const std::int64_t size = SizeOf(format);
  const std::int64_t x_size = SizeOf(x_type);
  const bool widened = format == AFormat::kF32;
  const bool grouped = format == AFormat::kS8Groups;
  const bool dynamic = IsFloat(x_type) && !widened && !grouped && !IsAsItIs(format);

  count_ = count;
  a_stride_ = plan.a_stride;
  const auto* const rows = static_cast<const std::uint8_t*>(operands.x) + begin * k * x_size;
  std::uint8_t* copies = nullptr;
  if (!plan.in_place) copies = a_memory_.Reserve<std::uint8_t>(std::size_t(count * a_stride_));
  a_ = plan.in_place ? rows : copies;
  float* row_scales = dynamic ? scale_memory_.Reserve<float>(std::size_t(count)) : nullptr;
  auto* negative_zeros = epilogue.x_zero == Granularity::kRow
                             ? zero_memory_.Reserve<std::int32_t>(std::size_t(count))
                             : nullptr;

  groups_ = nullptr;
  if (grouped) {
    groups_ = group_memory_.Reserve<RowGroup>(std::size_t(count * plan.layout.Groups()));
  }

  if (dynamic) {
    const RowBlock block{rows, k * x_size, count, k, copies, a_stride_};
    QuantizeRows(plan.row_kernels, RowScheme::kAsymmetric, format, block, row_scales,
                 negative_zeros);
    for (std::int64_t row = 0; row < count; ++row) negative_zeros[row] = -negative_zeros[row];
  }
  for (std::int64_t row = 0; !plan.in_place && row < count; ++row) {
    std::uint8_t* a = copies + row * a_stride_;
    if (!dynamic) CopyRow(plan, rows + row * k * x_size, row, a);
    const std::int64_t padding = plan.layout.PaddedK() - k;
    if (widened) {
      // Products of -0: they keep a sum of -0.
      std::fill_n(reinterpret_cast<float*>(a) + k, padding, -0.0F);
    } else {
      std::memset(a + k * size, 0, std::size_t(padding * size));
    }
  }

  scales_ = dynamic                                 ? row_scales
            : epilogue.x_scale == Granularity::kRow ? operands.x_scale + begin
                                                    : nullptr;
  if (negative_zeros != nullptr && !dynamic) {
    for (std::int64_t row = 0; row < count; ++row) {
      negative_zeros[row] = NegativeZero(operands.x_zero[begin + row], x_type);
    }
  }
  negative_zeros_ = negative_zeros;
  sums_ = nullptr;
  if (epilogue.w_zero && !epilogue.float_sums) {
    auto* sums = sum_memory_.Reserve<std::int32_t>(std::size_t(count * plan.k_blocks));
    for (std::int64_t block = 0; block < plan.k_blocks; ++block) {
      const std::int64_t first = block * plan.k_block;
      const std::int64_t length = std::min(plan.k_block, k - first);
      for (std::int64_t row = 0; row < count; ++row) {
        const std::uint8_t* a = a_ + row * a_stride_ + first * size;
        sums[block * count + row] =
            size == 1 ? Sum(a, length) : Sum(reinterpret_cast<const std::int16_t*>(a), length);
      }
    }
    sums_ = sums;
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
