// XLA's dtypes in the engine's terms.
#pragma once

#include <optional>
#include <string_view>

#include "gemm/spec.h"
#include "xla/ffi/api/ffi.h"

namespace qgemm {

namespace ffi = xla::ffi;

inline std::optional<XType> XTypeOf(ffi::DataType dtype) {
  switch (dtype) {
    case ffi::DataType::U8:
      return XType::kU8;
    case ffi::DataType::S8:
      return XType::kS8;
    case ffi::DataType::F32:
      return XType::kF32;
    case ffi::DataType::BF16:
      return XType::kBf16;
    case ffi::DataType::F16:
      return XType::kF16;
    default:
      return {};
  }
}

inline std::optional<OutType> OutTypeOf(ffi::DataType dtype) {
  switch (dtype) {
    case ffi::DataType::F32:
      return OutType::kF32;
    case ffi::DataType::BF16:
      return OutType::kBf16;
    case ffi::DataType::F16:
      return OutType::kF16;
    case ffi::DataType::U8:
      return OutType::kU8;
    case ffi::DataType::S8:
      return OutType::kS8;
    case ffi::DataType::S32:
      return OutType::kS32;
    default:
      return {};
  }
}

// By the name of how the weights are stored.
inline std::optional<WType> WTypeOf(std::string_view name) {
  if (name == "int8") return WType::kS8;
  if (name == "float16") return WType::kF16;
  if (name == "bfloat16") return WType::kBf16;
  if (name == "int4") return WType::kU4;
  if (name == "int8_blocks") return WType::kU8;
  return {};
}

inline std::optional<ScaleType> ScaleTypeOf(std::string_view name) {
  if (name == "float32") return ScaleType::kF32;
  if (name == "bfloat16") return ScaleType::kBf16;
  if (name == "float16") return ScaleType::kF16;
  return {};
}

// kNone for a dtype that a residual cannot have.
inline ResidualType ResidualTypeOf(ffi::DataType dtype) {
  switch (dtype) {
    case ffi::DataType::F32:
      return ResidualType::kF32;
    case ffi::DataType::BF16:
      return ResidualType::kBf16;
    case ffi::DataType::F16:
      return ResidualType::kF16;
    default:
      return ResidualType::kNone;
  }
}

}  // namespace qgemm
