// Generated kernels that quantize a row of x by groups.
#pragma once

#include "codegen/vector_emitter.h"
#include "gemm/kernel.h"

namespace qgemm {

// Generated at first use.
GroupsFn GeneratedGroups(VectorWidth width, XType x);

}  // namespace qgemm
