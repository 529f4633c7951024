// The weights of positions from their scores.
#pragma once

#include <cstdint>

#include "runtime/cpu.h"

namespace qgemm {

// scores[i] of base 2 become 2^(scores[i] - max) * scales[i], for `count` of them; returns the sum
// of the powers. Both arrays may be read, and scores written, up to the next multiple of 16. -Inf
// is the score of what is left out; if all are, every weight and the sum are 0. The same bits on
// every ISA: each step is one rounding, and sums go by 16 lanes.
using SoftmaxFn = float (*)(float* scores, const float* scales, std::int64_t count);

SoftmaxFn SoftmaxOf(Isa isa);

}  // namespace qgemm
