// Generated row-wise quantization: the range of a row, and rounding it to integers.
#pragma once

#include "codegen/vector_emitter.h"
#include "gemm/kernel.h"

namespace qgemm {

// The kernels for a float x (generated at first use).
RowKernels GeneratedRows(VectorWidth width, XType x);

}  // namespace qgemm
