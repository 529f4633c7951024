// What a call of jax_qgemm.gemm.v1 does besides its shapes, from the attribute `form`.
//
// `form` is one array of int32 numbers, for attributes are looked up by name at each call: 15 of
// them took longer than a small product. Which number means what is part of the version.
#pragma once

#include <cstdint>
#include <type_traits>

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
    GemmForm form;
    if (!check.Require(numbers.size() == std::size_t(FormField::kCount), "form has ",
                       numbers.size(), " numbers, expected ", int(FormField::kCount))) {
      return form;
    }
    const auto number = [&](FormField field) { return numbers[std::size_t(field)]; };
    const auto read = [&](FormField field, const char* name, auto last, auto& to) {
      using Value = std::remove_reference_t<decltype(to)>;
      if (check.Require(number(field) >= 0 && number(field) <= std::int32_t(last),
                        "unsupported number of ", name, " in form: ", number(field))) {
        to = Value(number(field));
      }
    };
    read(FormField::kWeights, "weights", WType::kU8, form.weights);
    int block_scale = 0;
    read(FormField::kBlockScale, "block_scale", int(ScaleType::kF16) + 1, block_scale);
    const bool in_blocks = block_scale > 0;
    if (in_blocks) form.blocks.scale = ScaleType(block_scale - 1);
    read(FormField::kBlockMinimum, "block_minimum", true, form.blocks.minimum);
    form.group = number(FormField::kGroup);
    read(FormField::kDynamic, "dynamic", true, form.dynamic);
    read(FormField::kXScale, "x_scale", Granularity::kRow, form.x_scale);
    read(FormField::kXZeroPoint, "x_zero_point", Granularity::kRow, form.x_zero_point);
    read(FormField::kWZeroPoint, "w_zero_point", true, form.w_zero_point);
    read(FormField::kBias, "bias", true, form.bias);
    read(FormField::kResidual, "residual", true, form.residual);
    read(FormField::kActivation, "activation", Activation::kSilu, form.activation);
    read(FormField::kOutScalePerColumn, "out_scale", true, form.out_scale_per_column);
    read(FormField::kBatched, "batched", true, form.batched);
    read(FormField::kRagged, "ragged", true, form.ragged);
    read(FormField::kTransposed, "transposed", true, form.transposed);
    check.Require(IsGroup(form.group), "unsupported group ", form.group);
    check.Require(!form.batched || !form.ragged, "batched and ragged do not go together");
    check.Require(IsBlocks(form.weights) == in_blocks && (in_blocks || !form.blocks.minimum),
                  "block_scale and block_minimum go with weights in blocks");
    return form;
  }
};

}  // namespace qgemm
