// Generated kernels for rows of x: their range, rounding to integers, widening to float32.
#pragma once

#include "codegen/vector_emitter.h"
#include "gemm/kernel.h"

namespace qgemm {

// The kernels for a float x that is quantized, and for one that stays float (generated at first
// use).
RowKernels GeneratedRows(VectorWidth width, XType x);
RowKernels GeneratedFloatRows(VectorWidth width, XType x);

}  // namespace qgemm
