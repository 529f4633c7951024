// jax_qgemm.pack.v1: a weight matrix into the layout of gemm/layout.h.
//
// operands: qvalue s8 [K,N]; zero_point s32 [N], or [groups,N] with a group, if has_zero_point.
// results: data s8 [packed]; column_sums s32 [blocks,N] of qvalue - zero_point.
#include "gemm/pack.h"

#include "handlers/check.h"
#include "handlers/handlers.h"
#include "handlers/pool.h"

namespace qgemm {
namespace {

constexpr char kTarget[] = "jax_qgemm.pack.v1";

ffi::Error PackHandler(ffi::ThreadPool thread_pool, ffi::BufferR2<ffi::S8> qvalue,
                       ffi::RemainingArgs rest, ffi::ResultBufferR1<ffi::S8> data,
                       ffi::ResultBufferR2<ffi::S32> column_sums, bool has_zero_point,
                       std::int64_t group) {
  Checker check(kTarget);
  const std::int64_t k = qvalue.dimensions()[0], n = qvalue.dimensions()[1];
  const PackedLayout layout{k, n};
  if (!check.Require(IsGroup(group), "unsupported group ", group)) return check.error();
  const std::int64_t blocks = KBlocks(k, has_zero_point, group);
  check.Shape("data", *data, {layout.Bytes()});
  check.Shape("column_sums", *column_sums, {blocks, n});
  OptionalOperands optional(rest, check);
  const std::int32_t* zero_point = nullptr;
  if (has_zero_point) zero_point = optional.NextOfColumns<ffi::S32>("zero_point", group, blocks, n);
  optional.RequireNoMore();
  if (!check.ok()) return check.error();
  return Guarded(kTarget, [&] {
    XlaPool pool(thread_pool);
    Pack(layout,
         PackOperands{qvalue.typed_data(), zero_point, data->typed_data(),
                      column_sums->typed_data(), group},
         pool, pool.num_threads());
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_Error* PackV1(XLA_FFI_CallFrame* call_frame) {
  static const auto& handler = *ffi::Ffi::Bind()
                                    .Ctx<ffi::ThreadPool>()
                                    .Arg<ffi::BufferR2<ffi::S8>>()
                                    .RemainingArgs()
                                    .Ret<ffi::BufferR1<ffi::S8>>()
                                    .Ret<ffi::BufferR2<ffi::S32>>()
                                    .Attr<bool>("has_zero_point")
                                    .Attr<std::int64_t>("group")
                                    .To(PackHandler)
                                    .release();
  return handler.Call(call_frame);
}

}  // namespace qgemm
