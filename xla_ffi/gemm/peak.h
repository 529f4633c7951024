// Measures the arithmetic peak of this machine.
#pragma once

#include "gemm/kernel.h"

namespace qgemm {

// Int8 operations (two per multiply-accumulate) per second, in 1e9, of `threads` threads that run
// the family's peak loop at once for about so many seconds; 0 if it has none.
double MeasurePeakGops(const KernelFamily& family, int threads, double seconds);

}  // namespace qgemm
