#include "gemm/quantize_rows.h"

#include "runtime/float_env.h"

namespace qgemm {

void QuantizeRows(const QuantizeRowsOperands& operands, const RowKernels& kernels,
                  std::int64_t begin, std::int64_t end) {
  const FloatEnvironment ieee;
  const RowScheme scheme =
      operands.row_zeros == nullptr ? RowScheme::kSymmetric : RowScheme::kAsymmetric;
  const std::int64_t x_size = SizeOf(operands.x_type);
  const auto* x = static_cast<const std::uint8_t*>(operands.x);
  auto* q = static_cast<std::uint8_t*>(operands.q);
  x += begin * operands.k * x_size;
  q += begin * operands.k;
  if (operands.row_scales != nullptr) {
    const RowBlock block{x, operands.k * x_size, end - begin, operands.k, q, operands.k};
    QuantizeRows(kernels, scheme, AFormat::kU8, block, operands.row_scales + begin,
                 operands.row_zeros == nullptr ? nullptr : operands.row_zeros + begin);
    return;
  }
  for (std::int64_t row = begin; row < end; ++row, x += operands.k * x_size, q += operands.k) {
    kernels.to_byte(x, operands.k, &operands.static_args, q);
  }
}

}  // namespace qgemm
