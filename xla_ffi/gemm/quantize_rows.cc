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
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t at = row * operands.k;
    if (operands.row_scales != nullptr) {
      const RowParams params =
          QuantizeRow(kernels, scheme, AFormat::kU8, x + at * x_size, operands.k, q + at);
      operands.row_scales[row] = params.scale;
      if (operands.row_zeros != nullptr) operands.row_zeros[row] = params.zero;
    } else {
      kernels.to_byte(x + at * x_size, operands.k, &operands.static_args, q + at);
    }
  }
}

}  // namespace qgemm
