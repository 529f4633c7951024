// jax_qgemm.attention.v1: attention over a quantized cache; see attention/attention.h.
//
// operands: query f32, bf16 or f16 [B,T,H,D]; key s8 [B,G,L*D] and key_scale f32 [B,G,L]; value and
//   value_scale of the same shapes; position s32 [] or [B]; if has_mask, mask pred [B,L].
// result: out as query.
#include "attention/attention.h"

#include "handlers/check.h"
#include "handlers/dtypes.h"
#include "handlers/handlers.h"
#include "handlers/pool.h"

namespace qgemm {
namespace {

constexpr char kTarget[] = "jax_qgemm.attention.v1";

ffi::Error Attention(ffi::ThreadPool thread_pool, ffi::AnyBuffer query, ffi::BufferR3<ffi::S8> key,
                     ffi::BufferR3<ffi::F32> key_scale, ffi::BufferR3<ffi::S8> value,
                     ffi::BufferR3<ffi::F32> value_scale, ffi::Buffer<ffi::S32> position,
                     ffi::RemainingArgs rest, ffi::Result<ffi::AnyBuffer> out, float scale,
                     bool causal, bool has_mask) {
  Checker check(kTarget);
  const auto type = XTypeOf(query.element_type());
  check.Require(type && IsFloat(*type) && out->element_type() == query.element_type(),
                "query and out must be float32, bfloat16 or float16, and the same");
  const auto dims = query.dimensions();
  check.Require(dims.size() == 4, "query has rank ", dims.size(), ", expected 4");
  if (!check.ok()) return check.error();
  const std::int64_t batch = dims[0], queries = dims[1], heads = dims[2], head_dim = dims[3];
  const std::int64_t cache_heads = key.dimensions()[1], length = key_scale.dimensions()[2];
  const KvShape cache{batch, cache_heads, length, head_dim};
  check.Require(cache.IsValid() && (cache_heads > 0 ? heads % cache_heads == 0 : heads == 0),
                "no cache of ", cache_heads, " heads and ", length, " positions for ", heads,
                " heads of ", head_dim);
  check.Shape("out", *out, {batch, queries, heads, head_dim});
  check.Shape("key", key, {batch, cache_heads, length * head_dim});
  check.Shape("key_scale", key_scale, {batch, cache_heads, length});
  check.Shape("value", value, {batch, cache_heads, length * head_dim});
  check.Shape("value_scale", value_scale, {batch, cache_heads, length});
  const std::int64_t stride = check.BatchedShape("position", position, batch, {});
  OptionalOperands optional(rest, check);
  const bool* mask = has_mask ? optional.NextOfShape<ffi::PRED>("mask", {batch, length}) : nullptr;
  optional.RequireNoMore();
  if (!check.ok()) return check.error();
  if (batch * queries * heads * head_dim == 0) return ffi::Error::Success();
  const AttentionOperands operands{
      *type,
      query.untyped_data(),
      {key.typed_data(), value.typed_data(), key_scale.typed_data(), value_scale.typed_data()},
      {position.typed_data(), stride},
      reinterpret_cast<const std::uint8_t*>(mask),
      out->untyped_data(),
      scale};
  return Guarded(kTarget, [&] {
    XlaPool pool(thread_pool);
    RunAttention({cache, queries, heads, causal}, operands, SelectedIsa(), pool,
                 pool.num_threads());
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_Error* AttentionV1(XLA_FFI_CallFrame* call_frame) {
  static const auto& handler = *ffi::Ffi::Bind()
                                    .Ctx<ffi::ThreadPool>()
                                    .Arg<ffi::AnyBuffer>()
                                    .Arg<ffi::BufferR3<ffi::S8>>()
                                    .Arg<ffi::BufferR3<ffi::F32>>()
                                    .Arg<ffi::BufferR3<ffi::S8>>()
                                    .Arg<ffi::BufferR3<ffi::F32>>()
                                    .Arg<ffi::Buffer<ffi::S32>>()
                                    .RemainingArgs()
                                    .Ret<ffi::AnyBuffer>()
                                    .Attr<float>("scale")
                                    .Attr<bool>("causal")
                                    .Attr<bool>("has_mask")
                                    .To(Attention)
                                    .release();
  return handler.Call(call_frame);
}

}  // namespace qgemm
