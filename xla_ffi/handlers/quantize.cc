// jax_qgemm.quantize.v1: rows of float x to int8 or uint8.
//
// mode "per_row_symmetric": operand x f32, bf16 or f16 [M,K]; results q s8 [M,K], scale f32 [M].
// mode "per_row_asymmetric": the same x; results q u8 [M,K], scale f32 [M], zero_point s32 [M].
// mode "static": operands x, scale f32 [], zero_point s32 []; result q s8 or u8 [M,K].
#include <string_view>

#include "gemm/quantize_rows.h"
#include "handlers/check.h"
#include "handlers/dtypes.h"
#include "handlers/handlers.h"
#include "handlers/pool.h"
#include "runtime/float_env.h"

namespace qgemm {
namespace {

constexpr char kTarget[] = "jax_qgemm.quantize.v1";

ffi::Error Quantize(ffi::ThreadPool thread_pool, ffi::AnyBuffer x, ffi::RemainingArgs rest,
                    ffi::Result<ffi::AnyBuffer> q, ffi::RemainingRets more, std::string_view mode) {
  Checker check(kTarget);
  const bool is_static = mode == "static";
  const bool asymmetric = mode == "per_row_asymmetric";
  check.Require(is_static || asymmetric || mode == "per_row_symmetric", "unknown mode '", mode,
                "'");
  const auto x_type = XTypeOf(x.element_type());
  check.Require(x_type && IsFloat(*x_type), "x must be float32, bfloat16 or float16");
  const bool is_signed = q->element_type() == ffi::S8;
  const bool is_unsigned = q->element_type() == ffi::U8;
  check.Require(is_static    ? is_signed || is_unsigned
                : asymmetric ? is_unsigned
                             : is_signed,
                "q is of the wrong dtype for mode '", mode, "'");
  check.Require(x.dimensions().size() == 2, "x has rank ", x.dimensions().size(), ", expected 2");
  if (!check.ok()) return check.error();

  QuantizeRowsOperands operands{};
  operands.x_type = *x_type;
  operands.x = x.untyped_data();
  operands.rows = x.dimensions()[0];
  operands.k = x.dimensions()[1];
  operands.q = q->untyped_data();
  check.Shape("q", *q, {operands.rows, operands.k});
  check.Require(more.size() == (is_static    ? 0U
                                : asymmetric ? 2U
                                             : 1U),
                "got ", more.size() + 1, " results");
  OptionalOperands optional(rest, check);
  if (is_static) {
    const float* scale = optional.NextOfShape<ffi::F32>("scale", {});
    const std::int32_t* zero = optional.NextOfShape<ffi::S32>("zero_point", {});
    if (check.ok()) {
      const FloatEnvironment ieee;
      operands.static_args =
          StaticQuantizeArgs(*scale, *zero, is_signed ? -128 : 0, is_signed ? 127 : 255);
    }
  } else if (check.ok()) {
    auto scale = more.get<ffi::BufferR1<ffi::F32>>(0);
    if (check.Require(scale.has_value(), "scale must be float32 of rank 1")) {
      check.Shape("scale", **scale, {operands.rows});
      operands.row_scales = (*scale)->typed_data();
    }
    if (asymmetric && check.ok()) {
      auto zero = more.get<ffi::BufferR1<ffi::S32>>(1);
      if (check.Require(zero.has_value(), "zero_point must be int32 of rank 1")) {
        check.Shape("zero_point", **zero, {operands.rows});
        operands.row_zeros = (*zero)->typed_data();
      }
    }
  }
  optional.RequireNoMore();
  if (!check.ok()) return check.error();
  return Guarded(kTarget, [&] {
    XlaPool pool(thread_pool);
    QuantizeRows(operands, SelectedIsa(), pool, pool.num_threads());
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_Error* QuantizeV1(XLA_FFI_CallFrame* call_frame) {
  static const auto& handler = *ffi::Ffi::Bind()
                                    .Ctx<ffi::ThreadPool>()
                                    .Arg<ffi::AnyBuffer>()
                                    .RemainingArgs()
                                    .Ret<ffi::AnyBuffer>()
                                    .RemainingRets()
                                    .Attr<std::string_view>("mode")
                                    .To(Quantize)
                                    .release();
  return handler.Call(call_frame);
}

}  // namespace qgemm
