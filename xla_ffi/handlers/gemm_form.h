// What a call of jax_qgemm.gemm.v1 does besides its shapes, from the attribute `form`.
//
// `form` is one array of int32 numbers, for attributes are looked up by name at each call: 15 of
// them took longer than a small product. Which number means what is part of the version.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>

#include "gemm/layout.h"
#include "gemm/spec.h"
#include "handlers/check.h"

namespace qgemm {

// The places of the numbers. Flags are 0 or 1.
enum class FormField {
  kWeights,            // int8, float16, bfloat16, int4, int8_blocks
  kBlockScale,         // none, float32, bfloat16, float16
  kBlockMinimum,       // flag
  kGroup,              // elements of K that share a scale of the weight; 0: all
  kDynamic,            // flag: x, float, is quantized inside
  kXScale,             // none, tensor, row
  kXZeroPoint,         // none, tensor, row
  kWZeroPoint,         // flag, as the next two: whether there is that operand
  kBias,               //
  kResidual,           //
  kActivation,         // none, relu, gelu, gelu_tanh, silu
  kOutScalePerColumn,  // flag
  kBatched,            // flag
  kRagged,             // flag
  kTransposed,         // flag
  kCount,
};

// Numbers in programs are those of the engine, which has to keep them.
static_assert(int(WType::kS8) == 0 && int(WType::kF16) == 1 && int(WType::kBf16) == 2 &&
              int(WType::kU4) == 3 && int(WType::kU8) == 4);
static_assert(int(ScaleType::kF32) == 0 && int(ScaleType::kBf16) == 1 && int(ScaleType::kF16) == 2);
static_assert(int(Granularity::kNone) == 0 && int(Granularity::kTensor) == 1 &&
              int(Granularity::kRow) == 2);
static_assert(int(Activation::kNone) == 0 && int(Activation::kRelu) == 1 &&
              int(Activation::kGelu) == 2 && int(Activation::kGeluTanh) == 3 &&
              int(Activation::kSilu) == 4);

struct GemmForm {
  WType weights = WType::kS8;
  BlockForm blocks;  // of weights in blocks
  std::int64_t group = 0;
  bool dynamic = false;
  Granularity x_scale = Granularity::kNone, x_zero_point = Granularity::kNone;
  bool w_zero_point = false, bias = false, residual = false;
  Activation activation = Activation::kNone;
  bool out_scale_per_column = false;
  bool batched = false, ragged = false, transposed = false;

  // Whatever the numbers are; `check` has what is wrong with them.
  static GemmForm Of(ffi::Span<const std::int32_t> numbers, Checker& check) {
    struct Range {
      const char* name;
      std::int32_t last;
    };
    static constexpr Range kRanges[] = {
        {"weights", std::int32_t(WType::kU8)},
        {"block_scale", std::int32_t(ScaleType::kF16) + 1},
        {"block_minimum", 1},
        {"group", std::numeric_limits<std::int32_t>::max()},
        {"dynamic", 1},
        {"x_scale", std::int32_t(Granularity::kRow)},
        {"x_zero_point", std::int32_t(Granularity::kRow)},
        {"has_w_zero_point", 1},
        {"has_bias", 1},
        {"has_residual", 1},
        {"activation", std::int32_t(Activation::kSilu)},
        {"out_scale_per_column", 1},
        {"batched", 1},
        {"ragged", 1},
        {"transposed", 1},
    };
    static_assert(std::size(kRanges) == std::size_t(FormField::kCount));
    if (!check.Require(numbers.size() == std::size(kRanges), "form has ", numbers.size(),
                       " numbers, expected ", std::size(kRanges))) {
      return {};
    }
    for (std::size_t i = 0; i < std::size(kRanges); ++i) {
      const std::int32_t number = numbers[i];
      if (number >= 0 && number <= kRanges[i].last) continue;
      check.Require(false, "unsupported ", kRanges[i].name, " in form: ", number);
      return {};
    }
    const auto number = [&](FormField field) { return numbers[std::size_t(field)]; };
    const auto flag = [&](FormField field) { return number(field) != 0; };
    GemmForm form;
    form.weights = WType(number(FormField::kWeights));
    const bool in_blocks = flag(FormField::kBlockScale);
    if (in_blocks) form.blocks.scale = ScaleType(number(FormField::kBlockScale) - 1);
    form.blocks.minimum = flag(FormField::kBlockMinimum);
    form.group = number(FormField::kGroup);
    form.dynamic = flag(FormField::kDynamic);
    form.x_scale = Granularity(number(FormField::kXScale));
    form.x_zero_point = Granularity(number(FormField::kXZeroPoint));
    form.w_zero_point = flag(FormField::kWZeroPoint);
    form.bias = flag(FormField::kBias);
    form.residual = flag(FormField::kResidual);
    form.activation = Activation(number(FormField::kActivation));
    form.out_scale_per_column = flag(FormField::kOutScalePerColumn);
    form.batched = flag(FormField::kBatched);
    form.ragged = flag(FormField::kRagged);
    form.transposed = flag(FormField::kTransposed);
    check.Require(IsGroup(form.group), "unsupported group ", form.group);
    check.Require(!form.batched || !form.ragged, "batched and ragged do not go together");
    check.Require(IsBlocks(form.weights) == in_blocks && (in_blocks || !form.blocks.minimum),
                  "block_scale and block_minimum go with weights in blocks");
    return form;
  }
};

}  // namespace qgemm
