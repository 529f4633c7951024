// What a GEMM computes, apart from its shape: the static description every layer shares.
//
// With weights of int8:
//   acc[m,n] = sum_k (x[m,k] - x_zero[m]) * (w[k,n] - w_zero[n])          exact, int32
//   y[m,n]   = activation(f32(acc) * scales + bias[n] + residual[m,n])    see `Epilogue`
//   out[m,n] = y, or clamp(rne(y / out_scale[n]) + out_zero)
// With float sums, of float weights or of int8 ones whose x stays float:
//   sum[m,n] = sum_k x[m,k] * f32(w[k,n] - w_zero[n])    f32, k ascending, product and sum fused:
//              the same bits in every tile of every ISA, so a row has the same result in any batch
//   y[m,n]   = activation(sum * w_scale[n] + bias[n] + residual[m,n])    no scale of float weights
// With bfloat16 on both sides, where the CPU multiplies pairs of them (AVX512_BF16): the same for
// each odd k, then the even one before it, subnormal numbers counting as zeros before and after.
// AMX has that of bfloat16 and of float16, each 32 elements of K in two sums of even and of odd k.
// With weights in blocks, groups g of K that bring a scale d and a minimum c (where they have none,
// c = -offset * d, offset 8 or 128): w[k,n] = d[g,n] * q[k,n] + c[g,n]. Either x stays float and w
// is that, as one rounding has it, in float sums; or x is quantized, each row's part in a group
// symmetrically with a scale s[m,g], and, fused again, over g ascending,
//   y[m,n]   = sum_g d[g,n] * (s * (sum_k xq[m,k] * (q[k,n] - offset)))
//            or sum_g d[g,n] * (s * sum_k xq[m,k] * q[k,n]) + c[g,n] * (s * sum_k xq[m,k])
//
// By the transpose of a weight, x [m, n] and out [m, k]: float sums of x times what the weight
// stands for, rounded to f32 (transpose.h), over n ascending, 1024 of them; these sums added up,
// ascending. No bias, residual or activation.
#pragma once

#include <cstdint>

namespace qgemm {

// The dtype of x. Float x is quantized inside: asymmetric uint8, scale and zero point per row.
enum class XType : std::uint8_t { kU8, kS8, kF32, kBf16, kF16 };

constexpr std::int64_t SizeOf(XType x) {
  switch (x) {
    case XType::kF32:
      return 4;
    case XType::kBf16:
    case XType::kF16:
      return 2;
    case XType::kU8:
    case XType::kS8:
      break;
  }
  return 1;
}

constexpr bool IsFloat(XType x) { return x != XType::kU8 && x != XType::kS8; }

// The instruction multiplies unsigned by signed bytes: int8 x is shifted by +128, and so is its
// zero point.
constexpr std::int32_t ZeroShift(XType x) { return x == XType::kS8 ? 128 : 0; }
constexpr std::int32_t NegativeZero(std::int32_t zero, XType x) {
  return std::int32_t(0U - std::uint32_t(zero) - std::uint32_t(ZeroShift(x)));  // may wrap
}

enum class OutType : std::uint8_t { kF32, kBf16, kF16, kU8, kS8, kS32 };

constexpr std::int64_t SizeOf(OutType out) {
  switch (out) {
    case OutType::kU8:
    case OutType::kS8:
      return 1;
    case OutType::kBf16:
    case OutType::kF16:
      return 2;
    case OutType::kF32:
    case OutType::kS32:
      break;
  }
  return 4;
}

constexpr bool IsQuantized(OutType out) { return out == OutType::kU8 || out == OutType::kS8; }

// How the weights are stored; two in blocks, kF32 only as a panel of a transpose.
enum class WType : std::uint8_t { kS8, kF16, kBf16, kU4, kU8, kF32 };

constexpr bool IsFloat(WType w) {
  return w == WType::kF16 || w == WType::kBf16 || w == WType::kF32;
}
constexpr bool IsBlocks(WType w) { return w == WType::kU4 || w == WType::kU8; }

// Of blocks without a minimum: what stands for a weight of 0.
constexpr int Offset(WType w) { return w == WType::kU4 ? 8 : 128; }

// How a block stores what its group shares.
enum class ScaleType : std::uint8_t { kF32, kBf16, kF16 };

struct BlockForm {
  ScaleType scale = ScaleType::kF32;
  bool minimum = false;  // of the same type

  constexpr std::int64_t ScaleBytes() const { return scale == ScaleType::kF32 ? 4 : 2; }
  // Of a column.
  constexpr std::int64_t Bytes() const { return ScaleBytes() * (minimum ? 2 : 1); }

  friend bool operator==(const BlockForm& a, const BlockForm& b) {
    return a.scale == b.scale && a.minimum == b.minimum;
  }
};

// What is added to the output before the activation.
enum class ResidualType : std::uint8_t { kNone, kF32, kBf16, kF16 };

constexpr std::int64_t SizeOf(ResidualType residual) {
  return residual == ResidualType::kNone ? 0 : residual == ResidualType::kF32 ? 4 : 2;
}

// The last three are defined in portable/activation.h.
enum class Activation : std::uint8_t { kNone, kRelu, kGelu, kGeluTanh, kSilu };

constexpr bool IsSmooth(Activation activation) {
  return activation != Activation::kNone && activation != Activation::kRelu;
}

// How many values of a scale or zero point x has.
enum class Granularity : std::uint8_t { kNone, kTensor, kRow };

// Scale order: one scale per tensor: f32(acc) * (x_scale * w_scale[n]);
//              one per row:          (f32(acc) * w_scale[n]) * x_scale[m];
//              w in groups of K:     (sum_g f32(acc[g]) * w_scale[g,n]) * x_scale, g ascending;
//              float sums, and those of blocks, have no x_scale.
struct Epilogue {
  OutType out = OutType::kF32;
  Activation activation = Activation::kNone;
  Granularity x_zero = Granularity::kNone;
  Granularity x_scale = Granularity::kTensor;
  bool w_zero = false;
  bool w_groups = false;
  bool bias = false;
  ResidualType residual = ResidualType::kNone;
  bool out_scale_per_column = false;
  bool float_sums = false;  // of blocks, too

  friend bool operator==(const Epilogue& a, const Epilogue& b) {
    return a.out == b.out && a.activation == b.activation && a.x_zero == b.x_zero &&
           a.x_scale == b.x_scale && a.w_zero == b.w_zero && a.w_groups == b.w_groups &&
           a.bias == b.bias && a.residual == b.residual &&
           a.out_scale_per_column == b.out_scale_per_column && a.float_sums == b.float_sums;
  }
};

// Different for different epilogues.
constexpr std::uint64_t BitsOf(const Epilogue& e) {
  return std::uint64_t(e.out) | std::uint64_t(e.activation) << 4 | std::uint64_t(e.x_zero) << 8 |
         std::uint64_t(e.x_scale) << 10 | std::uint64_t(e.residual) << 12 |
         std::uint64_t(e.w_zero) << 16 | std::uint64_t(e.bias) << 17 |
         std::uint64_t(e.out_scale_per_column) << 18 | std::uint64_t(e.w_groups) << 19 |
         std::uint64_t(e.float_sums) << 20;
}

struct GemmSpec {
  XType x = XType::kF32;  // with weights of floats or in blocks: float, too
  WType w = WType::kS8;
  Epilogue epilogue;
  std::int64_t group = 0;  // elements of K that share a scale of w; 0: all of them
  bool keeps_x = false;    // a float x stays float for weights of integers, too
  BlockForm blocks;        // of weights in blocks, which have a group and a float x
  // By the transpose of the weight, whose K then is the N of the product and the other way round.
  bool transposed = false;

  constexpr bool FloatSums() const { return IsFloat(w) || keeps_x || transposed; }

  friend bool operator==(const GemmSpec& a, const GemmSpec& b) {
    return a.x == b.x && a.w == b.w && a.epilogue == b.epilogue && a.group == b.group &&
           a.keeps_x == b.keeps_x && a.blocks == b.blocks && a.transposed == b.transposed;
  }
};

// `batch` products of one shape, each of operands of its own or shared. Ragged: they share the rows
// of x and out, each takes as many as its group has (GemmOperands::group_sizes), one after the
// other; rows of no group are 0.
struct GemmShape {
  std::int64_t m = 0, n = 0, k = 0, batch = 1;
  bool ragged = false;

  friend bool operator==(const GemmShape& a, const GemmShape& b) {
    return a.m == b.m && a.n == b.n && a.k == b.k && a.batch == b.batch && a.ragged == b.ragged;
  }
};

// Bytes from the operand of one product of a batch to that of the next; 0 for a shared one.
struct BatchStrides {
  std::int64_t x = 0, w = 0, w_scale = 0, column_sums = 0, w_zero = 0, x_scale = 0, x_zero = 0,
               bias = 0, residual = 0, out_scale = 0, out_zero = 0, out = 0;
};

// The operands of one call. Absent ones are null; row-major, densely packed, any alignment.
struct GemmOperands {
  const void* x = nullptr;                    // [m, k]
  const std::int8_t* w = nullptr;             // packed, see layout.h
  const float* w_scale = nullptr;             // [n], or [KBlocks, n] of groups; of kS8 weights
  const std::int32_t* column_sums = nullptr;  // [KBlocks, n], of kS8 weights
  const std::int32_t* w_zero = nullptr;       // as w_scale
  const float* x_scale = nullptr;             // [1] or [m]
  const std::int32_t* x_zero = nullptr;       // [1] or [m]
  const float* bias = nullptr;                // [n]
  const void* residual = nullptr;             // [m, n]
  const float* out_scale = nullptr;           // [1] or [n]
  const std::int32_t* out_zero = nullptr;     // [1]
  void* out = nullptr;                        // [m, n]
  const std::int32_t* group_sizes = nullptr;  // [batch], of a ragged product
  BatchStrides strides;

  // Those of product `index` of a batch.
  GemmOperands Of(std::int64_t index) const;
};

}  // namespace qgemm
