// Affine quantization of rows: the parameters, in one place, and the row-wise operation.
#pragma once

#include <cstdint>

#include "gemm/kernel.h"
#include "gemm/spec.h"

namespace qgemm {

// min(1 / scale, FLT_MAX): finite for every positive scale, subnormal ones included.
float InverseScale(float scale);

// The clamps with which rne(clamp(y * inverse)) + zero saturates to [qmin, qmax] at any magnitude.
QuantizeArgs StaticQuantizeArgs(float scale, std::int32_t zero, std::int32_t qmin,
                                std::int32_t qmax);

// How a row chooses its parameters. A range so small that the scale would be subnormal counts as
// zeros: scale 1. A row with NaN or Inf has scale NaN.
enum class RowScheme : std::uint8_t {
  kSymmetric,   // int8: scale = max|x| / 127
  kAsymmetric,  // uint8: scale = (max - min) / 255 over a range that includes 0, which is exact
};

struct RowParams {
  float scale;
  std::int32_t zero;
};

// Quantizes one row as `scheme` says and returns what it chose; without a scale, q is all zero.
RowParams QuantizeRow(const RowKernels& kernels, RowScheme scheme, AFormat format, const void* x,
                      std::int64_t k, void* q);

// Rows of k elements, so many bytes apart; q as far as rows of the format go.
struct RowBlock {
  const void* x;
  std::int64_t x_stride;
  std::int64_t rows, k;
  void* q;
  std::int64_t q_stride;
};

// The same of many rows: scales[rows] and, unless null, zeros[rows]. Some choose together, for the
// divisions of one take as long as 500 of its elements; then they are still in the L1 (Zen 4: k of
// 36 to 1024 10 to 28 % faster, x from memory 30 %).
void QuantizeRows(const RowKernels& kernels, RowScheme scheme, AFormat format,
                  const RowBlock& block, float* scales, std::int32_t* zeros);

}  // namespace qgemm
