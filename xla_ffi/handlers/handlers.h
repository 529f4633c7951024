// The custom calls of this library. A target's name ends in the version of its operands and
// attributes: what a released version means never changes, so exported programs keep loading.
#pragma once

#include "xla/ffi/api/c_api.h"

namespace qgemm {

XLA_FFI_Error* AttentionV1(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* GemmV1(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* PackV1(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* PackFloatV1(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* QuantizeV1(XLA_FFI_CallFrame* call_frame);
XLA_FFI_Error* UpdateKvCacheV1(XLA_FFI_CallFrame* call_frame);

struct HandlerRegistration {
  const char* target;
  XLA_FFI_Error* (*handler)(XLA_FFI_CallFrame*);
};

inline constexpr HandlerRegistration kHandlers[] = {
    {"jax_qgemm.attention.v1", AttentionV1}, {"jax_qgemm.gemm.v1", GemmV1},
    {"jax_qgemm.pack.v1", PackV1},           {"jax_qgemm.pack_float.v1", PackFloatV1},
    {"jax_qgemm.quantize.v1", QuantizeV1},   {"jax_qgemm.update_kv_cache.v1", UpdateKvCacheV1},
};

}  // namespace qgemm
