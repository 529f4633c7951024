// Cases: regimes, forms of quantization and epilogues in pairs, and at random.
#pragma once

#include <cstdint>
#include <vector>

#include "call.h"
#include "gemm/kernel.h"
#include "pairwise.h"
#include "problem.h"
#include "random.h"

namespace qgemm::test {

// What a product by the transpose does not have is left out.
inline void MakeTransposed(GemmSpec& spec) {
  spec.transposed = true;
  spec.keeps_x = !IsFloat(spec.w);
  spec.epilogue.activation = Activation::kNone;
  spec.epilogue.residual = ResidualType::kNone;
  spec.epilogue.bias = false;
}

inline GemmSpec RandomSpec() {
  GemmSpec spec;
  Epilogue& e = spec.epilogue;
  spec.x = Pick<XType>({XType::kU8, XType::kS8, XType::kF32, XType::kBf16, XType::kF16});
  e.out = Pick<OutType>(
      {OutType::kF32, OutType::kBf16, OutType::kF16, OutType::kU8, OutType::kS8, OutType::kS32});
  if (e.out == OutType::kS32 && IsFloat(spec.x)) e.out = OutType::kF32;
  if (e.out != OutType::kS32) {
    e.activation = Pick<Activation>({Activation::kNone, Activation::kNone, Activation::kRelu,
                                     Activation::kGelu, Activation::kGeluTanh, Activation::kSilu});
    e.residual = Pick<ResidualType>({ResidualType::kNone, ResidualType::kNone, ResidualType::kF32,
                                     ResidualType::kBf16, ResidualType::kF16});
    e.out_scale_per_column = IsQuantized(e.out) && Random(0, 1);
    spec.group = Pick<std::int64_t>({0, 0, 0, 16, 32, 128});
  }
  if (IsFloat(spec.x) && Random(0, 1)) {
    spec.w = Pick<WType>({WType::kF16, WType::kBf16, WType::kS8});
    spec.keeps_x = spec.w == WType::kS8;
  }
  e.w_zero = Random(0, 2) == 0;
  if (IsFloat(spec.x) && Random(0, 3) == 0) {
    spec.w = Pick<WType>({WType::kU4, WType::kU8});
    spec.group = Pick<std::int64_t>({32, 64, 96, 128});
    spec.blocks = {ScaleType(Random(0, 2)), Random(0, 1) == 1};
    spec.keeps_x = Random(0, 1);
    e.w_zero = false;
  }
  if (IsFloat(spec.w)) spec.group = 0, e.w_zero = false;
  e.bias = e.out != OutType::kS32 && Random(0, 1);
  if (!IsFloat(spec.x)) {
    e.x_zero = Pick<Granularity>({Granularity::kNone, Granularity::kTensor, Granularity::kRow});
    e.x_scale = e.out == OutType::kS32
                    ? Granularity::kTensor
                    : Pick<Granularity>({Granularity::kTensor, Granularity::kRow});
  }
  if (IsFloat(spec.x) && !IsQuantized(e.out) && Random(0, 3) == 0) MakeTransposed(spec);
  return spec;
}

// How a product runs (gemm/plan.h), by its shape and the number of threads.
enum class Regime {
  kTiny,
  kTiles,
  kByRows,
  kByColumns,
  kKParts,
  kKBlocks,
  kBatch,
  kLargeBatch,
  kRagged
};
constexpr int kRegimes = 9;

inline Case CaseOf(Regime regime, Isa isa) {
  const std::vector<std::int64_t> edges = {1,  2,  3,  4,  5,  7,  8,  9,  15,  16,  17,
                                           31, 33, 47, 48, 63, 64, 65, 80, 127, 128, 129};
  const std::int64_t rows = FamilyOf(isa).max_rows;
  const auto threads = int(Random(2, 3));
  const std::int64_t m = Random(1, rows + 1), n = Pick(edges), k = Pick(edges);
  switch (regime) {
    case Regime::kTiny:
      return {{m, n, k}, {}, isa, 1};
    case Regime::kTiles:
      return {{Random(rows, 2 * rows + 2), n, Random(1, 300)}, {}, isa, 1};
    case Regime::kByRows:
      return {
          {2 * rows * threads + Random(0, 70), n + 64 * Random(1, 6), 300 + k}, {}, isa, threads};
    case Regime::kByColumns:
      return {{Random(1, 7), 640 + n, 1500 + k}, {}, isa, threads};
    case Regime::kKParts:
      return {{Random(1, 12), n, 5000 + k}, {}, isa, int(Random(2, 5))};
    case Regime::kKBlocks:
      return {{Random(1, 3), Random(1, 20), Pick<std::int64_t>({32769, 65540, 66400})},
              {},
              isa,
              threads};
    case Regime::kBatch:
      return {{m, n, k, Random(2, 5)}, {}, isa, threads};
    case Regime::kLargeBatch:
      return {{m, n + 64, 400 + k, 4 * threads + Random(0, 3)}, {}, isa, threads};
    case Regime::kRagged:
      break;
  }
  return {{Random(1, 3 * rows), n, k, Random(1, 5), true}, {}, isa, threads};
}

// Every regime, form of quantization and epilogue with every other, in pairs.
template <class Check>
void Sweep(Isa isa, const Check& check) {
  struct XForm {
    XType type;
    Granularity scale, zero;
  };
  constexpr Granularity kNone = Granularity::kNone, kTensor = Granularity::kTensor,
                        kRow = Granularity::kRow;
  const std::vector<XForm> x_forms = {
      {XType::kU8, kTensor, kNone}, {XType::kU8, kTensor, kTensor}, {XType::kU8, kRow, kRow},
      {XType::kS8, kTensor, kNone}, {XType::kS8, kRow, kNone},      {XType::kS8, kTensor, kTensor},
      {XType::kS8, kRow, kRow},     {XType::kF32, kTensor, kNone},  {XType::kBf16, kTensor, kNone},
      {XType::kF16, kTensor, kNone}};
  constexpr int kIntegers = 7;
  const std::vector<std::int64_t> groups = {0, 16, 32, 64, 128};
  const std::vector<OutType> outs = {OutType::kF32, OutType::kBf16, OutType::kF16, OutType::kU8,
                                     OutType::kS8,  OutType::kU8,   OutType::kS8};
  constexpr int kPerTensor = 5;
  const std::vector<int> sizes = {kRegimes, int(x_forms.size()), int(groups.size()), 2, 2, 4,
                                  5,        int(outs.size())};
  for (const std::vector<int>& v : Pairwise(sizes, rng)) {
    Case c = CaseOf(Regime(v[0]), isa);
    Epilogue& e = c.spec.epilogue;
    const XForm& x = x_forms[std::size_t(v[1])];
    c.spec.x = x.type;
    e.x_scale = x.scale;
    e.x_zero = x.zero;
    c.spec.group = groups[std::size_t(v[2])];
    e.w_zero = v[3] == 1;
    e.bias = v[4] == 1;
    e.residual = ResidualType(v[5]);
    e.activation = Activation(v[6]);
    e.out = outs[std::size_t(v[7])];
    e.out_scale_per_column = v[7] >= kPerTensor;
    check(c);
  }
  // By transposes.
  const std::vector<GemmSpec> weights = [] {
    std::vector<GemmSpec> specs(7);
    specs[0].w = WType::kF16;
    specs[1].w = WType::kBf16;
    specs[3].group = 16;
    specs[4].group = 64;
    specs[4].epilogue.w_zero = true;
    specs[5].w = WType::kU4;
    specs[5].group = 32;
    specs[5].blocks = {ScaleType(Random(0, 2)), false};
    specs[6].w = Pick<WType>({WType::kU4, WType::kU8});
    specs[6].group = 96;
    specs[6].blocks = {ScaleType(Random(0, 2)), true};
    return specs;
  }();
  for (const std::vector<int>& v : Pairwise({kRegimes, int(weights.size()), 3, 3}, rng)) {
    Case c = CaseOf(Regime(v[0]), isa);
    c.spec = weights[std::size_t(v[1])];
    c.spec.x = v[2] == 0 ? XType::kF32 : v[2] == 1 ? XType::kBf16 : XType::kF16;
    c.spec.epilogue.out = OutType(v[3]);
    MakeTransposed(c.spec);
    check(c);
  }
  // Float sums.
  const std::vector<XType> float_x = {XType::kF32, XType::kBf16, XType::kF16};
  for (const std::vector<int>& v : Pairwise({kRegimes, 3, 5, 2, 4, 5, int(outs.size()), 2}, rng)) {
    Case c = CaseOf(Regime(v[0]), isa);
    Epilogue& e = c.spec.epilogue;
    c.spec.x = float_x[std::size_t(v[1])];
    c.spec.w = v[2] == 0 ? WType::kF16 : v[2] == 1 ? WType::kBf16 : WType::kS8;
    c.spec.keeps_x = v[2] > 1;
    c.spec.group = v[2] == 3 ? 16 : v[2] == 4 ? 64 : 0;
    e.w_zero = v[2] > 1 && v[7] == 1;
    e.bias = v[3] == 1;
    e.residual = ResidualType(v[4]);
    e.activation = Activation(v[5]);
    e.out = outs[std::size_t(v[6])];
    e.out_scale_per_column = v[6] >= kPerTensor;
    check(c);
  }
  // Blocks.
  const std::vector<std::int64_t> groups_of_blocks = {32, 64, 128};
  for (const std::vector<int>& v :
       Pairwise({kRegimes, 3, 4, 3, 3, 2, 4, 5, int(outs.size()), 2}, rng)) {
    Case c = CaseOf(Regime(v[0]), isa);
    Epilogue& e = c.spec.epilogue;
    c.spec.x = float_x[std::size_t(v[1])];
    c.spec.w = v[2] % 2 == 0 ? WType::kU4 : WType::kU8;
    c.spec.keeps_x = v[2] > 1;
    c.spec.group = groups_of_blocks[std::size_t(v[3])];
    if (c.spec.w == WType::kU8 && v[3] == 2) c.spec.group = 16;
    c.spec.blocks = {ScaleType(v[4]), v[5] == 1};
    e.bias = v[9] == 1;
    e.residual = ResidualType(v[6]);
    e.activation = Activation(v[7]);
    e.out = outs[std::size_t(v[8])];
    e.out_scale_per_column = v[8] >= kPerTensor;
    check(c);
  }
  // The sums themselves: of integers, and without an epilogue.
  for (const std::vector<int>& v : Pairwise({kRegimes, kIntegers, 2}, rng)) {
    Case c = CaseOf(Regime(v[0]), isa);
    const XForm& x = x_forms[std::size_t(v[1])];
    c.spec.x = x.type;
    c.spec.epilogue.x_zero = x.zero;
    c.spec.epilogue.w_zero = v[2] == 1;
    c.spec.epilogue.out = OutType::kS32;
    check(c);
  }
}

}  // namespace qgemm::test
