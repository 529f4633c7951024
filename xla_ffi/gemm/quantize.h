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

}  // namespace qgemm
