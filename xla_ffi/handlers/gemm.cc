// jax_qgemm.gemm.v1: out = epilogue(x · w) for a packed weight; the mathematics is in gemm/spec.h.
//
// operands: x [M,K] u8, s8, f32, bf16 or f16; data s8 [packed]; w_scale f32 [N];
//   column_sums s32 [blocks,N]; with a group, w_scale and w_zero_point are [groups,N];
//   then those in use: x_scale f32 [] or [M]; x_zero_point s32 [] or [M]; w_zero_point s32 [N];
//   bias f32 [N]; residual f32, bf16 or f16 [M,N]; out_scale f32 [] or [N]; out_zero_point s32 [].
// result: out [M,N] f32, bf16, f16, u8, s8, or s32 (the sums themselves).
#include "gemm/gemm.h"

#include <optional>
#include <string_view>

#include "handlers/check.h"
#include "handlers/dtypes.h"
#include "handlers/handlers.h"
#include "handlers/pool.h"

namespace qgemm {
namespace {

constexpr char kTarget[] = "jax_qgemm.gemm.v1";

std::optional<Activation> ActivationOf(std::string_view name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "silu") return Activation::kSilu;
  return {};
}

ffi::Error Gemm(ffi::ThreadPool thread_pool, ffi::AnyBuffer x, ffi::BufferR1<ffi::S8> data,
                ffi::AnyBuffer w_scale, ffi::BufferR2<ffi::S32> column_sums,
                ffi::RemainingArgs rest, ffi::Result<ffi::AnyBuffer> out, bool dynamic,
                bool has_x_zero_point, bool has_w_zero_point, bool has_bias, bool has_residual,
                std::int64_t group, std::string_view activation) {
  Checker check(kTarget);
  PlanKey key;
  Epilogue& epilogue = key.spec.epilogue;
  const auto x_type = XTypeOf(x.element_type());
  const auto out_type = OutTypeOf(out->element_type());
  const auto act = ActivationOf(activation);
  check.Require(x_type && out_type && act, "unsupported dtype of x or out, or activation '",
                activation, "'");
  check.Require(x.dimensions().size() == 2, "x has rank ", x.dimensions().size(), ", expected 2");
  if (!check.ok()) return check.error();
  check.Require(dynamic == IsFloat(*x_type),
                "dynamic quantization goes with float x, and only with it");

  check.Require(IsGroup(group), "unsupported group ", group);
  check.Require(w_scale.element_type() == ffi::F32 && w_scale.dimensions().size() > 0,
                "w_scale must be float32 of rank 1 or 2");
  if (!check.ok()) return check.error();

  const std::int64_t m = x.dimensions()[0], k = x.dimensions()[1];
  const std::int64_t n = w_scale.dimensions().back();
  const std::int64_t blocks = KBlocks(k, has_w_zero_point, group);
  key.shape = {m, n, k};
  key.spec.x = *x_type;
  key.spec.group = group;
  epilogue.out = *out_type;
  epilogue.activation = *act;
  epilogue.w_zero = has_w_zero_point;
  epilogue.bias = has_bias;
  check.Shape("out", *out, {m, n});
  check.Shape("data", data, {PackedLayout{k, n}.Bytes()});
  check.Shape("column_sums", column_sums, {blocks, n});
  if (group > 0) {
    check.Shape("w_scale", w_scale, {blocks, n});
  } else {
    check.Shape("w_scale", w_scale, {n});
  }
  check.Require(*out_type != OutType::kS32 ||
                    (!dynamic && !has_bias && !has_residual && *act == Activation::kNone),
                "an int32 result takes integer x and no bias, residual or activation");
  check.Require(*out_type != OutType::kS32 || group == 0, "an int32 result takes no groups");

  GemmOperands operands;
  operands.x = x.untyped_data();
  operands.w = data.typed_data();
  operands.w_scale = static_cast<const float*>(w_scale.untyped_data());
  operands.column_sums = column_sums.typed_data();
  operands.out = out->untyped_data();
  OptionalOperands optional(rest, check);
  const auto granularity = [](bool per_row) {
    return per_row ? Granularity::kRow : Granularity::kTensor;
  };
  bool per_row = false;
  if (!dynamic && *out_type != OutType::kS32) {
    operands.x_scale = optional.NextPerTensorOr<ffi::F32>("x_scale", m, per_row);
    epilogue.x_scale = granularity(per_row);
  }
  if (has_x_zero_point) {
    check.Require(
        !dynamic,
        "dynamic quantization chooses the zero point itself: x_zero_point must be absent");
    operands.x_zero = optional.NextPerTensorOr<ffi::S32>("x_zero_point", m, per_row);
    epilogue.x_zero = granularity(per_row);
  }
  if (has_w_zero_point) {
    operands.w_zero = optional.NextOfColumns<ffi::S32>("w_zero_point", group, blocks, n);
  }
  if (has_bias) operands.bias = optional.NextOfShape<ffi::F32>("bias", {n});
  if (has_residual) {
    const auto residual = optional.NextAny("residual");
    if (residual) {
      check.Shape("residual", *residual, {m, n});
      epilogue.residual = ResidualTypeOf(residual->element_type());
      check.Require(epilogue.residual != ResidualType::kNone, "unsupported dtype of residual");
      operands.residual = residual->untyped_data();
    }
  }
  if (IsQuantized(*out_type)) {
    operands.out_scale =
        optional.NextPerTensorOr<ffi::F32>("out_scale", n, epilogue.out_scale_per_column);
    const std::int32_t* zero = optional.NextOfShape<ffi::S32>("out_zero_point", {});
    if (check.ok()) operands.out_zero = *zero;
  }
  optional.RequireNoMore();
  if (!check.ok()) return check.error();

  return Guarded(kTarget, [&] {
    XlaPool pool(thread_pool);
    key.isa = SelectedIsa();
    key.threads = pool.num_threads();
    RunGemm(*GetPlan(key), operands, pool);
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_Error* GemmV1(XLA_FFI_CallFrame* call_frame) {
  static const auto& handler = *ffi::Ffi::Bind()
                                    .Ctx<ffi::ThreadPool>()
                                    .Arg<ffi::AnyBuffer>()
                                    .Arg<ffi::BufferR1<ffi::S8>>()
                                    .Arg<ffi::AnyBuffer>()
                                    .Arg<ffi::BufferR2<ffi::S32>>()
                                    .RemainingArgs()
                                    .Ret<ffi::AnyBuffer>()
                                    .Attr<bool>("dynamic")
                                    .Attr<bool>("has_x_zero_point")
                                    .Attr<bool>("has_w_zero_point")
                                    .Attr<bool>("has_bias")
                                    .Attr<bool>("has_residual")
                                    .Attr<std::int64_t>("group")
                                    .Attr<std::string_view>("activation")
                                    .To(Gemm)
                                    .release();
  return handler.Call(call_frame);
}

}  // namespace qgemm
