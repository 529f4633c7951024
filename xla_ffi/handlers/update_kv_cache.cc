// jax_qgemm.update_kv_cache.v1: new positions, quantized, into a cache; see attention/kv_cache.h.
//
// operands: key and value f32, bf16 or f16 [B,T,G,D]; position s32 [] or [B], the first new one;
// the
//   cache: key_data s8 [B,G,L*D], key_scale f32 [B,G,L], value_data, value_scale.
// results: the cache, which the program lets share the operands' memory.
#include <cstring>

#include "attention/kv_cache.h"
#include "handlers/check.h"
#include "handlers/dtypes.h"
#include "handlers/handlers.h"

namespace qgemm {
namespace {

constexpr char kTarget[] = "jax_qgemm.update_kv_cache.v1";

// Where XLA did not let them share memory.
template <class From, class To>
void CopyOnce(const From& from, To& to) {
  if (from.untyped_data() != to->untyped_data()) {
    std::memcpy(to->untyped_data(), from.untyped_data(), from.size_bytes());
  }
}

ffi::Error UpdateKv(ffi::AnyBuffer key, ffi::AnyBuffer value, ffi::Buffer<ffi::S32> position,
                    ffi::BufferR3<ffi::S8> key_data, ffi::BufferR3<ffi::F32> key_scale,
                    ffi::BufferR3<ffi::S8> value_data, ffi::BufferR3<ffi::F32> value_scale,
                    ffi::ResultBufferR3<ffi::S8> new_key_data,
                    ffi::ResultBufferR3<ffi::F32> new_key_scale,
                    ffi::ResultBufferR3<ffi::S8> new_value_data,
                    ffi::ResultBufferR3<ffi::F32> new_value_scale) {
  Checker check(kTarget);
  const auto type = XTypeOf(key.element_type());
  check.Require(type && IsFloat(*type) && value.element_type() == key.element_type(),
                "key and value must be float32, bfloat16 or float16, and the same");
  const auto dims = key.dimensions();
  check.Require(dims.size() == 4, "key has rank ", dims.size(), ", expected 4");
  if (!check.ok()) return check.error();
  const std::int64_t batch = dims[0], tokens = dims[1], heads = dims[2], head_dim = dims[3];
  const std::int64_t length = key_scale.dimensions()[2];
  const KvShape cache{batch, heads, length, head_dim};
  check.Require(cache.IsValid(), "no cache of ", length, " positions for heads of ", head_dim);
  check.Shape("value", value, {batch, tokens, heads, head_dim});
  for (const auto* data : {&key_data, &value_data}) {
    check.Shape("key_data or value_data", *data, {batch, heads, length * head_dim});
  }
  for (const auto* scale : {&key_scale, &value_scale}) {
    check.Shape("key_scale or value_scale", *scale, {batch, heads, length});
  }
  check.Shape("new key_data", *new_key_data, {batch, heads, length * head_dim});
  check.Shape("new key_scale", *new_key_scale, {batch, heads, length});
  check.Shape("new value_data", *new_value_data, {batch, heads, length * head_dim});
  check.Shape("new value_scale", *new_value_scale, {batch, heads, length});
  const std::int64_t stride = check.BatchedShape("position", position, batch, {});
  if (!check.ok()) return check.error();
  return Guarded(kTarget, [&] {
    CopyOnce(key_data, new_key_data);
    CopyOnce(key_scale, new_key_scale);
    CopyOnce(value_data, new_value_data);
    CopyOnce(value_scale, new_value_scale);
    const KvUpdate update{cache,
                          tokens,
                          *type,
                          key.untyped_data(),
                          value.untyped_data(),
                          {position.typed_data(), stride},
                          new_key_data->typed_data(),
                          new_value_data->typed_data(),
                          new_key_scale->typed_data(),
                          new_value_scale->typed_data()};
    if (head_dim > 0) UpdateKvCache(update, SelectedIsa());
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_Error* UpdateKvCacheV1(XLA_FFI_CallFrame* call_frame) {
  static const auto& handler = *ffi::Ffi::Bind()
                                    .Arg<ffi::AnyBuffer>()
                                    .Arg<ffi::AnyBuffer>()
                                    .Arg<ffi::Buffer<ffi::S32>>()
                                    .Arg<ffi::BufferR3<ffi::S8>>()
                                    .Arg<ffi::BufferR3<ffi::F32>>()
                                    .Arg<ffi::BufferR3<ffi::S8>>()
                                    .Arg<ffi::BufferR3<ffi::F32>>()
                                    .Ret<ffi::BufferR3<ffi::S8>>()
                                    .Ret<ffi::BufferR3<ffi::F32>>()
                                    .Ret<ffi::BufferR3<ffi::S8>>()
                                    .Ret<ffi::BufferR3<ffi::F32>>()
                                    .To(UpdateKv)
                                    .release();
  return handler.Call(call_frame);
}

}  // namespace qgemm
