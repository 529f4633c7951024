// jax_qgemm.pack_float.v1: a float16 or bfloat16 matrix into the layout of gemm/layout.h.
//
// operand: values u16 [K,N], the bits of what `weights` names. result: data u16 [packed].
#include <optional>
#include <string_view>

#include "gemm/pack.h"
#include "handlers/check.h"
#include "handlers/handlers.h"
#include "handlers/pool.h"

namespace qgemm {
namespace {

constexpr char kTarget[] = "jax_qgemm.pack_float.v1";

std::optional<WType> WTypeOf(std::string_view name) {
  if (name == "float16") return WType::kF16;
  if (name == "bfloat16") return WType::kBf16;
  return {};
}

ffi::Error PackFloat(ffi::ThreadPool thread_pool, ffi::BufferR2<ffi::U16> values,
                     ffi::ResultBufferR1<ffi::U16> data, std::string_view weights) {
  Checker check(kTarget);
  const auto type = WTypeOf(weights);
  if (!check.Require(type.has_value(), "unsupported weights '", weights, "'")) {
    return check.error();
  }
  const PackedLayout layout{values.dimensions()[0], values.dimensions()[1], *type};
  if (!check.Shape("data", *data, {layout.Elements()})) return check.error();
  return Guarded(kTarget, [&] {
    XlaPool pool(thread_pool);
    Pack(layout, PackFloatOperands{values.typed_data(), data->typed_data()}, pool,
         pool.num_threads());
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_Error* PackFloatV1(XLA_FFI_CallFrame* call_frame) {
  static const auto& handler = *ffi::Ffi::Bind()
                                    .Ctx<ffi::ThreadPool>()
                                    .Arg<ffi::BufferR2<ffi::U16>>()
                                    .Ret<ffi::BufferR1<ffi::U16>>()
                                    .Attr<std::string_view>("weights")
                                    .To(PackFloat)
                                    .release();
  return handler.Call(call_frame);
}

}  // namespace qgemm
