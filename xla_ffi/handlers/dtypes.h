// XLA's dtypes in the engine's terms.
#pragma once

#include <optional>

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
