// Checking what a program passes to a handler. Programs made by the Python layer always pass; one
// written by hand gets InvalidArgument with the reason, never a read out of bounds.
#pragma once

#include <cstdint>
#include <exception>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>

#include "xla/ffi/api/ffi.h"

namespace qgemm {

namespace ffi = xla::ffi;

// The first error found, if any.
class Checker {
 public:
  explicit Checker(const char* target) : target_(target) {}

  bool ok() const { return message_.empty(); }
  ffi::Error error() const {
    return ok() ? ffi::Error::Success()
                : ffi::Error(ffi::ErrorCode::kInvalidArgument,
                             std::string(target_) + ": " + message_);
  }

  template <class... Parts>
  bool Require(bool condition, const Parts&... parts) {
    if (!condition && ok()) {
      std::ostringstream text;
      (text << ... << parts);
      message_ = text.str();
    }
    return condition;
  }

  // Buffer or AnyBuffer of exactly these dimensions.
  template <class Buffer>
  bool Shape(const char* name, const Buffer& buffer, std::initializer_list<std::int64_t> expected) {
    const auto dims = buffer.dimensions();
    // The text of a shape costs microseconds: only for an error.
    return Equal(dims, 0, expected) ||
           Require(false, name, " has shape ", Text(dims), ", expected ", Text(expected));
  }

  // The same, or with a leading dimension of `batch` if that is not 0. Returns the elements from
  // one of the batch to the next, 0 where all share the buffer.
  template <class Buffer>
  std::int64_t BatchedShape(const char* name, const Buffer& buffer, std::int64_t batch,
                            std::initializer_list<std::int64_t> expected) {
    const auto dims = buffer.dimensions();
    if (batch == 0 || dims.size() == 0 || dims[0] != batch || !Equal(dims, 1, expected)) {
      Shape(name, buffer, expected);
      return 0;
    }
    std::int64_t elements = 1;
    for (const std::int64_t d : expected) elements *= d;
    return elements;
  }

 private:
  template <class Dims>
  static bool Equal(const Dims& dims, std::size_t first,
                    std::initializer_list<std::int64_t> expected) {
    bool same = dims.size() == first + expected.size();
    for (std::size_t i = 0; same && i < expected.size(); ++i) {
      same = dims[first + i] == expected.begin()[i];
    }
    return same;
  }

  template <class Dims>
  static std::string Text(const Dims& dims) {
    std::ostringstream text;
    text << '[';
    const char* separator = "";
    for (const std::int64_t d : dims) {
      text << separator << d;
      separator = ",";
    }
    text << ']';
    return text.str();
  }

  const char* const target_;
  std::string message_;
};

// Operands that a program passes only if it uses them, in order.
class OptionalOperands {
 public:
  OptionalOperands(ffi::RemainingArgs args, Checker& check) : args_(args), check_(check) {}

  template <ffi::DataType dtype>
  std::optional<ffi::Buffer<dtype>> Next(const char* name) {
    const auto buffer = args_.get<ffi::Buffer<dtype>>(next_++);
    if (!check_.Require(buffer.has_value(), name, " is missing or of another dtype")) return {};
    return *buffer;
  }

  std::optional<ffi::AnyBuffer> NextAny(const char* name) {
    const auto buffer = args_.get<ffi::AnyBuffer>(next_++);
    if (!check_.Require(buffer.has_value(), name, " is missing")) return {};
    return *buffer;
  }

  // Of this shape or, in a batch, one for each of its products: the data, and the bytes between.
  template <ffi::DataType dtype, class T>
  void NextBatched(const char* name, std::int64_t batch, std::initializer_list<std::int64_t> shape,
                   const T*& data, std::int64_t& stride) {
    const auto buffer = Next<dtype>(name);
    if (!buffer) return;
    stride = check_.BatchedShape(name, *buffer, batch, shape) * std::int64_t(sizeof(T));
    data = buffer->typed_data();
  }

  template <ffi::DataType dtype>
  auto NextOfShape(const char* name, std::initializer_list<std::int64_t> shape) {
    const auto buffer = Next<dtype>(name);
    if (buffer) check_.Shape(name, *buffer, shape);
    return buffer ? buffer->typed_data() : nullptr;
  }

  // A value per column [n] or, with groups, per group and column [groups, n].
  template <ffi::DataType dtype>
  auto NextOfColumns(const char* name, std::int64_t group, std::int64_t groups, std::int64_t n) {
    return group > 0 ? NextOfShape<dtype>(name, {groups, n}) : NextOfShape<dtype>(name, {n});
  }

  void RequireNoMore() {
    check_.Require(next_ == args_.size(), "got ", args_.size(), " optional operands, used ", next_);
  }

 private:
  const ffi::RemainingArgs args_;
  Checker& check_;
  std::size_t next_ = 0;
};

// Runs a handler's body; an exception (no memory left, say) becomes an error of the program.
template <class Body>
ffi::Error Guarded(const char* target, const Body& body) {
  try {
    return body();
  } catch (const std::exception& e) {
    return ffi::Error(ffi::ErrorCode::kInternal, std::string(target) + ": " + e.what());
  }
}

}  // namespace qgemm
