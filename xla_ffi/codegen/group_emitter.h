// Generated kernels for rows of x that are multiplied with weights in blocks: quantized by groups.
#pragma once

#include "codegen/vector_emitter.h"
#include "gemm/kernel.h"

namespace qgemm {

// Those of other rows (row_emitter.h), and to_groups; generated at first use.
RowKernels GeneratedBlockRows(VectorWidth width, XType x);

}  // namespace qgemm
