// Affine quantization of rows: the parameters, in one place, and the row-wise operation.
#pragma once

#include <cstdint>

#include "gemm/kernel.h"
#include "gemm/spec.h"

namespace qgemm {

// min(1 / scale, FLT_MAX): a finite factor for every positive scale, subnormal ones included.
float Reciprocal(float scale);

// Symmetric int8 parameters of a row from the bits of its max |x|.
struct SymmetricParams {
  float scale;    // amax / 127; 1 where that is 0; NaN for a row that holds NaN or Inf
  float inverse;  // min(127 / amax, FLT_MAX)
  bool finite;
};
SymmetricParams ChooseSymmetric(std::uint32_t amax_bits);

// The clamps with which rne(clamp(y * inverse)) + zero saturates to [qmin, qmax] at any magnitude.
QuantizeArgs StaticQuantizeArgs(float scale, std::int32_t zero, std::int32_t qmin,
                                std::int32_t qmax);

// Quantizes one float row to symmetric int8 stored as value + `zero`, in the given format.
// Returns the row's scale.
float QuantizeRowSymmetric(const RowKernels& kernels, AFormat format, const void* x, std::int64_t k,
                           std::int32_t zero, void* q);

}  // namespace qgemm
