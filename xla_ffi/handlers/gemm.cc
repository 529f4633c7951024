// jax_qgemm.gemm.v1: out = epilogue(x · w) for a packed weight; the mathematics is in gemm/spec.h.
//
// operands: x [M,K] u8, s8, f32, bf16 or f16; data [packed], s8; of weights that take a float x
// u16,
//   the bits of "float16" and "bfloat16", or u8, "int4" and "int8_blocks" with a group and scales;
//   of s8, w_scale f32 [N] and, unless x stays float, column_sums s32 [blocks,N]; with a group,
//   w_scale and w_zero_point are [groups,N];
//   then those in use: x_scale f32 [] or [M]; x_zero_point s32 [] or [M]; w_zero_point s32 [N];
//   bias f32 [N]; residual f32, bf16 or f16 [M,N]; out_scale f32 [] or [N]; out_zero_point s32 [].
// result: out [M,N] f32, bf16, f16, u8, s8, or s32 (the sums themselves).
// Batched, several products: out has a leading dimension for them, and so may each operand.
// Ragged: groups of rows of x with a weight each, all operands of w with a leading dimension, bias
//   too or one for all; the last operand is group_sizes s32 [groups].
// By the transpose of the weight: x is [M,N] and out [M,K], both of floats.
// attribute: form, an array of s32, see gemm_form.h.
#include "gemm/gemm.h"

#include "gemm/acc16.h"
#include "gemm/f32_panels.h"
#include "handlers/check.h"
#include "handlers/dtypes.h"
#include "handlers/gemm_form.h"
#include "handlers/handlers.h"
#include "handlers/pool.h"
#include "runtime/huge_pages.h"

namespace qgemm {
namespace {

constexpr char kTarget[] = "jax_qgemm.gemm.v1";

ffi::Error Gemm(ffi::ThreadPool thread_pool, ffi::AnyBuffer x, ffi::AnyBuffer data,
                ffi::RemainingArgs rest, ffi::Result<ffi::AnyBuffer> out,
                ffi::Span<const std::int32_t> numbers) {
  Checker check(kTarget);
  PlanKey key;
  Epilogue& epilogue = key.spec.epilogue;
  const GemmForm form = GemmForm::Of(numbers, check);
  const auto x_type = XTypeOf(x.element_type());
  const auto out_type = OutTypeOf(out->element_type());
  check.Require(x_type && out_type, "unsupported dtype of x or out");
  const std::size_t rank = x.dimensions().size();
  const std::size_t out_rank = out->dimensions().size();
  check.Require(out_rank == (form.batched ? 3 : 2), "out has rank ", out_rank);
  check.Require(!form.ragged || data.dimensions().size() == 2, "data has rank ",
                data.dimensions().size(), ", expected 2 of a ragged product");
  const std::int64_t batch = form.batched && check.ok() ? out->dimensions()[0] : 0;
  if (form.batched && check.ok() && batch == 0) return ffi::Error::Success();
  check.Require(rank == 2 || (batch > 0 && rank == 3), "x has rank ", rank, ", expected 2");
  if (!check.ok()) return check.error();

  const bool raw = *out_type == OutType::kS32, float_w = IsFloat(form.weights);
  const bool in_blocks = IsBlocks(form.weights), scaled = form.weights == WType::kS8;
  const bool keeps_x = IsFloat(*x_type) && !form.dynamic;
  check.Require(data.element_type() == (float_w     ? ffi::U16
                                        : in_blocks ? ffi::U8
                                                    : ffi::S8),
                "data is of another dtype");
  check.Require(!in_blocks || (IsFloat(*x_type) && !form.w_zero_point &&
                               IsGroupOfBlocks(form.weights, form.group)),
                "weights in blocks take a float x, groups of whole steps and no zero points");
  check.Require(!float_w || (IsFloat(*x_type) && !form.w_zero_point && form.group == 0),
                "float weights take a float x and have no zero points or groups");
  check.Require(!form.dynamic || (IsFloat(*x_type) && !float_w),
                "dynamic quantization goes with float x and weights of integers");
  check.Require((form.x_scale == Granularity::kNone) == (form.dynamic || raw || keeps_x),
                "x_scale goes with integer x and a result that is not int32");
  check.Require(!keeps_x || (form.x_zero_point == Granularity::kNone && !raw),
                "a float x has no zero point and no int32 result");
  check.Require(!form.dynamic || form.x_zero_point == Granularity::kNone,
                "dynamic quantization chooses the zero point itself: x_zero_point must be none");
  check.Require(!raw || (!form.dynamic && !form.bias && !form.residual &&
                         form.activation == Activation::kNone),
                "an int32 result takes integer x and no bias, residual or activation");
  check.Require(!raw || form.group == 0, "an int32 result takes no groups");
  check.Require(
      !form.transposed || (keeps_x && !form.bias && !form.residual &&
                           form.activation == Activation::kNone && !IsQuantized(*out_type)),
      "by a transpose: float x and result, no bias, residual or activation");
  if (!check.ok()) return check.error();

  const std::int64_t m = x.dimensions()[rank - 2], k = x.dimensions()[rank - 1];
  const std::int64_t n = out->dimensions().back();
  // Of the weight.
  const std::int64_t w_rows = form.transposed ? n : k, w_columns = form.transposed ? k : n;
  const std::int64_t blocks = KBlocks(w_rows, form.w_zero_point, form.group);
  // Of the weights: the groups of a ragged product are a batch that shares x and out.
  const std::int64_t stack = form.ragged ? data.dimensions()[0] : batch;
  key.shape = {m, n, k, form.batched || form.ragged ? stack : 1, form.ragged};
  key.spec.x = *x_type;
  key.spec.w = form.weights;
  key.spec.keeps_x = keeps_x && !float_w;
  key.spec.transposed = form.transposed;
  key.spec.group = form.group;
  key.spec.blocks = form.blocks;
  epilogue.out = *out_type;
  epilogue.activation = form.activation;
  epilogue.w_zero = form.w_zero_point;
  epilogue.bias = form.bias;
  epilogue.x_zero = form.x_zero_point;
  if (form.x_scale != Granularity::kNone) epilogue.x_scale = form.x_scale;
  epilogue.out_scale_per_column = form.out_scale_per_column && IsQuantized(*out_type);

  GemmOperands o;
  BatchStrides& strides = o.strides;
  if (batch > 0) {
    check.Shape("out", *out, {batch, m, n});
  } else {
    check.Shape("out", *out, {m, n});
  }
  strides.out = form.ragged ? 0 : m * n * SizeOf(*out_type);
  strides.x = check.BatchedShape("x", x, batch, {m, k}) * SizeOf(*x_type);
  const PackedLayout layout{w_rows, w_columns, form.weights, in_blocks ? form.group : 0,
                            key.spec.blocks};
  const std::int64_t element = float_w ? 2 : 1;
  strides.w = check.BatchedShape("data", data, stack, {layout.Bytes() / element}) * element;
  o.x = x.untyped_data();
  o.w = static_cast<const std::int8_t*>(data.untyped_data());
  o.out = out->untyped_data();

  OptionalOperands optional(rest, check);
  const auto next_of_columns = [&](const char* name, auto dtype, auto& to, std::int64_t& stride) {
    if (form.group > 0) {
      optional.NextBatched<dtype()>(name, stack, {blocks, w_columns}, to, stride);
    } else {
      optional.NextBatched<dtype()>(name, stack, {w_columns}, to, stride);
    }
  };
  const auto next_of_x = [&](const char* name, Granularity values, auto dtype, auto& to,
                             std::int64_t& stride) {
    if (values == Granularity::kTensor) optional.NextBatched<dtype()>(name, batch, {}, to, stride);
    if (values == Granularity::kRow) optional.NextBatched<dtype()>(name, batch, {m}, to, stride);
  };
  using F32 = std::integral_constant<ffi::DataType, ffi::F32>;
  using S32 = std::integral_constant<ffi::DataType, ffi::S32>;
  if (scaled) next_of_columns("w_scale", F32{}, o.w_scale, strides.w_scale);
  if (scaled && !keeps_x) {
    optional.NextBatched<ffi::S32>("column_sums", stack, {blocks, n}, o.column_sums,
                                   strides.column_sums);
  }
  next_of_x("x_scale", form.x_scale, F32{}, o.x_scale, strides.x_scale);
  next_of_x("x_zero_point", form.x_zero_point, S32{}, o.x_zero, strides.x_zero);
  if (form.w_zero_point) next_of_columns("w_zero_point", S32{}, o.w_zero, strides.w_zero);
  if (form.bias) optional.NextBatched<ffi::F32>("bias", stack, {n}, o.bias, strides.bias);
  if (form.residual) {
    if (const auto residual = optional.NextAny("residual")) {
      epilogue.residual = ResidualTypeOf(residual->element_type());
      check.Require(epilogue.residual != ResidualType::kNone, "unsupported dtype of residual");
      strides.residual =
          check.BatchedShape("residual", *residual, batch, {m, n}) * SizeOf(epilogue.residual);
      o.residual = residual->untyped_data();
    }
  }
  if (IsQuantized(*out_type)) {
    if (form.out_scale_per_column) {
      optional.NextBatched<ffi::F32>("out_scale", batch, {n}, o.out_scale, strides.out_scale);
    } else {
      optional.NextBatched<ffi::F32>("out_scale", batch, {}, o.out_scale, strides.out_scale);
    }
    optional.NextBatched<ffi::S32>("out_zero_point", batch, {}, o.out_zero, strides.out_zero);
  }
  if (form.ragged) o.group_sizes = optional.NextOfShape<ffi::S32>("group_sizes", {stack});
  optional.RequireNoMore();
  if (!check.ok()) return check.error();

  return Guarded(kTarget, [&] {
    XlaPool pool(thread_pool);
    key.isa = SelectedIsa();
    key.threads = pool.num_threads();
    key.acc16 = ShouldSumInInt16(key, o.w);
    key.f32_panels = ShouldWidenPanels(key);
    MoveToHugePages(o.w, std::size_t(layout.Bytes() * (strides.w > 0 ? stack : 1)));
    RunGemm(*GetPlan(key), o, pool);
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_Error* GemmV1(XLA_FFI_CallFrame* call_frame) {
  static const auto& handler = *ffi::Ffi::Bind()
                                    .Ctx<ffi::ThreadPool>()
                                    .Arg<ffi::AnyBuffer>()
                                    .Arg<ffi::AnyBuffer>()
                                    .RemainingArgs()
                                    .Ret<ffi::AnyBuffer>()
                                    .Attr<ffi::Span<const std::int32_t>>("form")
                                    .To(Gemm)
                                    .release();
  return handler.Call(call_frame);
}

}  // namespace qgemm
