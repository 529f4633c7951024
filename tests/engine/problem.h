// One product: random operands, and its result by the definition, in int64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "gemm/gemm.h"
#include "gemm/pack.h"
#include "gemm/quantize.h"
#include "pair_sums.h"
#include "pools.h"
#include "portable/activation.h"
#include "portable/half.h"
#include "random.h"

namespace qgemm::test {

struct Case {
  GemmShape shape;
  GemmSpec spec;
  Isa isa;
  int threads;
};

struct Problem {
  std::vector<std::uint8_t> x;
  std::vector<std::int8_t> w;
  std::vector<float> w_float;                     // exact in WType
  std::vector<float> block_scale, block_minimum;  // [groups, n], exact in ScaleType; q is in w
  std::vector<std::int8_t> packed;
  std::vector<std::int32_t> sums, w_zero, x_zero;
  std::vector<float> w_scale, x_scale, bias, out_scale;
  std::vector<std::uint8_t> residual;
  std::int32_t out_zero;
};

template <class T>
T At(const std::vector<std::uint8_t>& bytes, std::int64_t i) {
  T value;
  std::memcpy(&value, &bytes[std::size_t(i) * sizeof(T)], sizeof(T));
  return value;
}

template <class T>
void Set(std::vector<std::uint8_t>& bytes, std::int64_t i, T value) {
  std::memcpy(&bytes[std::size_t(i) * sizeof(T)], &value, sizeof(T));
}

inline float XFloat(const Problem& p, XType type, std::int64_t i) {
  return type == XType::kF32    ? At<float>(p.x, i)
         : type == XType::kBf16 ? ToFloat(At<Bf16>(p.x, i))
                                : ToFloat(At<F16>(p.x, i));
}

inline float ResidualAt(const Problem& p, ResidualType type, std::int64_t i) {
  return type == ResidualType::kF32    ? At<float>(p.residual, i)
         : type == ResidualType::kBf16 ? ToFloat(At<Bf16>(p.residual, i))
                                       : ToFloat(At<F16>(p.residual, i));
}

// One value in a type of scales.
inline float RoundTo(ScaleType type, float v) {
  return type == ScaleType::kF32    ? v
         : type == ScaleType::kBf16 ? ToFloat(ToBf16(v))
                                    : ToFloat(ToF16(v));
}

inline void StoreScale(ScaleType type, float v, std::int8_t* to) {
  const Bf16 bf16 = ToBf16(v);
  const F16 f16 = ToF16(v);
  const void* from = type == ScaleType::kF32    ? static_cast<const void*>(&v)
                     : type == ScaleType::kBf16 ? static_cast<const void*>(&bf16)
                                                : &f16;
  std::memcpy(to, from, type == ScaleType::kF32 ? 4 : 2);
}

// Weights in blocks, and where layout.h has them.
inline void MakeBlocks(const Case& c, Problem& p) {
  const std::int64_t n = c.shape.n, k = c.shape.k, group = c.spec.group;
  const WType w = c.spec.w;
  const BlockForm form = c.spec.blocks;
  const PackedLayout layout{k, n, w, group, form};
  p.packed.assign(layout.Bytes(), 0);
  for (std::int64_t i = 0; i < n * k; ++i)
    p.w.push_back(std::int8_t(Random(0, w == WType::kU4 ? 15 : 255)));
  for (std::int64_t i = 0; i < n * CeilDiv(k, group); ++i) {
    const float size = std::exp2(float(Random(-12, 3)));
    p.block_scale.push_back(RoundTo(form.scale, RandomFloat() * size));
    p.block_minimum.push_back(form.minimum ? RoundTo(form.scale, 8 * RandomFloat() * size)
                                           : p.block_scale.back() * float(-Offset(w)));
  }
  for (std::int64_t j = 0; j < n; ++j) {
    const std::int64_t panel = j / kPanelColumns, column = j % kPanelColumns;
    const std::int64_t width = layout.PanelWidth(panel);
    for (std::int64_t i = 0; i < k; ++i) {
      std::int8_t* to =
          &p.packed[layout.PanelOffset(panel) + i / group * width * layout.GroupBytes()];
      StoreScale(form.scale, p.block_scale[i / group * n + j], to + column * form.ScaleBytes());
      if (form.minimum) {
        StoreScale(form.scale, p.block_minimum[i / group * n + j],
                   to + (width + column) * form.ScaleBytes());
      }
      const std::int64_t step = i % group / ElementsOfStep(w), element = i % ElementsOfStep(w);
      to += width * form.Bytes() + (step * width + column) * 4 + element % 4;
      *to = std::int8_t(*to | std::uint8_t(p.w[i * n + j]) << element / 4 * 4);
    }
  }
}

// The product that the weight of one by its transpose is packed for.
inline Case Untransposed(const Case& c) {
  Case source = c;
  source.spec.transposed = false;
  std::swap(source.shape.n, source.shape.k);
  return source;
}

inline Problem MakeProblem(const Case& c) {
  if (c.spec.transposed) {
    Case rows = Untransposed(c), weights = rows;
    std::swap(rows.shape.n, rows.shape.k);
    weights.shape.m = rows.shape.n = 0;
    Problem p = MakeProblem(weights);
    p.x = MakeProblem(rows).x;
    p.bias.assign(std::size_t(c.shape.n), 0);  // not used, but stacked
    p.out_scale.assign(std::size_t(c.shape.n) + 1, 1);
    return p;
  }
  const std::int64_t m = c.shape.m, n = c.shape.n, k = c.shape.k;
  const Epilogue& e = c.spec.epilogue;
  Problem p;
  const int style = int(Random(0, 7));  // 0: the extremes, where 16-bit sums would saturate
  if (IsFloat(c.spec.x)) {
    p.x.resize(m * k * 4);
    for (std::int64_t i = 0; i < m * k; ++i) {
      float v = RandomFloat() * std::exp2(float(Random(-8, 8)));
      const std::int64_t row = i / std::max<std::int64_t>(k, 1);
      if (row % 7 == 3) v = 0;                           // a zero row
      if (row % 7 == 4) v *= 1e-40F;                     // subnormal
      if (row % 7 == 2) v = std::fabs(v) + 1;            // no negative value
      if (row % 11 == 9) v *= 1e38F;                     // may be beyond f32 in range
      if (row % 7 == 5 && i % k == k / 2) v = INFINITY;  // not finite
      if (row % 11 == 6 && i % k == k - 1) v = -NAN;
      if (c.spec.x == XType::kF32) {
        Set(p.x, i, v);
      } else if (c.spec.x == XType::kBf16) {
        Set(p.x, i, ToBf16(v));
      } else {
        Set(p.x, i, ToF16(v));
      }
    }
  } else {
    const int extreme = c.spec.x == XType::kU8 ? 255 : 128;
    for (std::int64_t i = 0; i < m * k; ++i)
      p.x.push_back(std::uint8_t(style == 0 ? extreme : Random(0, 255)));
  }
  const int most = style == 1 ? 32 : style == 2 ? 60 : 127;  // none and few outliers of acc16
  for (std::int64_t i = 0; i < n * k && !IsBlocks(c.spec.w); ++i)
    p.w.push_back(std::int8_t(style == 0 ? -128 : Random(-most - 1, most)));
  for (std::int64_t i = 0; i < n; ++i) p.bias.push_back(RandomFloat());
  const std::int64_t blocks = KBlocks(k, e.w_zero, c.spec.group);
  for (std::int64_t i = 0; i < n * (c.spec.group > 0 ? blocks : 1); ++i) {
    p.w_scale.push_back(std::exp(RandomFloat()) * 0.01F);
    p.w_zero.push_back(int(Random(-128, 127)));
  }
  for (std::int64_t i = 0; i < m; ++i) {
    p.x_scale.push_back(std::exp(RandomFloat()) * 0.01F);
    p.x_zero.push_back(int(c.spec.x == XType::kU8 ? Random(0, 255) : Random(-128, 127)));
  }
  if (m == 0) p.x_scale = {1}, p.x_zero = {0};
  for (std::int64_t i = 0; i <= n; ++i) {
    p.out_scale.push_back(float(std::sqrt(double(k) + 1) * 0.002 * double(Random(1, 4))));
  }
  p.residual.resize(std::size_t(m * n * SizeOf(e.residual)));
  for (std::int64_t i = 0; i < m * n; ++i) {
    float v = 3 * RandomFloat();
    if (i % 61 == 7) v = INFINITY;
    if (i % 67 == 8) v = -INFINITY;
    if (i % 71 == 9) v = NAN;
    if (e.residual == ResidualType::kF32) Set(p.residual, i, v);
    if (e.residual == ResidualType::kBf16) Set(p.residual, i, ToBf16(v));
    if (e.residual == ResidualType::kF16) Set(p.residual, i, ToF16(v));
  }
  if (IsBlocks(c.spec.w)) MakeBlocks(c, p);
  p.out_zero = int(e.out == OutType::kU8 ? Random(0, 255) : Random(-128, 127));
  if (IsBlocks(c.spec.w)) return p;
  const PackedLayout layout{k, n, c.spec.w};
  p.packed.assign(layout.Bytes(), 77);
  p.sums.assign(blocks * n, 77);
  Threads pool;
  if (IsFloat(c.spec.w)) {
    std::vector<std::uint16_t> bits;
    for (std::int64_t i = 0; i < n * k; ++i) {
      float v = RandomFloat() * std::exp2(float(Random(-12, 3)));
      if (style == 3 && i % 97 == 5) v *= 1e-6F;  // subnormal in float16
      if (style == 4 && i % 101 == 6) v = INFINITY;
      const bool half = c.spec.w == WType::kF16;
      bits.push_back(half ? ToF16(v).bits : ToBf16(v).bits);
      p.w_float.push_back(half ? ToFloat(F16{bits.back()}) : ToFloat(Bf16{bits.back()}));
    }
    auto* packed = reinterpret_cast<std::uint16_t*>(p.packed.data());
    Pack(layout, PackFloatOperands{bits.data(), packed}, pool, 2);
    return p;
  }
  Pack(layout,
       PackOperands{p.w.data(), e.w_zero ? p.w_zero.data() : nullptr, p.packed.data(),
                    p.sums.data(), c.spec.group},
       pool, 2);
  return p;
}

// What follows the scales.
inline void Output(const Case& c, const Problem& p, std::int64_t at, float y,
                   std::vector<std::uint8_t>& out) {
  const Epilogue& e = c.spec.epilogue;
  const std::int64_t column = at % c.shape.n;
  if (e.bias) y = y + p.bias[column];
  if (e.residual != ResidualType::kNone) y = y + ResidualAt(p, e.residual, at);
  y = Activate(e.activation, y);
  if (e.out == OutType::kF32) {
    Set(out, at, y);
  } else if (e.out == OutType::kBf16) {
    Set(out, at, ToBf16(y));
  } else if (e.out == OutType::kF16) {
    Set(out, at, ToF16(y));
  } else {
    const double low = e.out == OutType::kU8 ? 0 : -128, high = low + 255;
    const float t = y * (1.0F / p.out_scale[e.out_scale_per_column ? column : 0]);
    const double q = std::isnan(t) ? p.out_zero : std::nearbyint(double(t)) + p.out_zero;
    out[at] = std::uint8_t(int(std::clamp(q, low, high)));
  }
}

// Weights in blocks.
inline std::vector<std::uint8_t> BlockReference(const Case& c, const Problem& p) {
  const auto& [m, n, k, batch, ragged] = c.shape;
  const GemmSpec& spec = c.spec;
  std::vector<std::uint8_t> out(m * n * SizeOf(spec.epilogue.out));
  const int offset = spec.blocks.minimum ? 0 : Offset(spec.w);
  for (std::int64_t i = 0; i < m; ++i) {
    std::vector<float> x(k), y(n);
    for (std::int64_t q = 0; q < k; ++q) x[q] = XFloat(p, spec.x, i * k + q);
    for (std::int64_t b = 0; b < k; b += spec.group) {
      const std::int64_t end = std::min(k, b + spec.group);
      float amax = 0;
      bool finite = true;
      for (std::int64_t q = b; q < end; ++q) {
        finite = finite && std::isfinite(x[q]);
        amax = std::max(amax, std::fabs(x[q]));
      }
      if (amax < 127 * std::numeric_limits<float>::min()) amax = 127;
      const float scale = finite ? amax / 127 : NAN;
      std::vector<int> xq;
      int sum = 0;
      for (std::int64_t q = b; q < end; ++q) {
        xq.push_back(finite ? int(std::nearbyint(x[q] * (127 / amax))) : 0);
        sum += xq.back();
      }
      for (std::int64_t j = 0; j < n; ++j) {
        const std::int64_t at = b / spec.group * n + j;
        const float d = p.block_scale[at], minimum = p.block_minimum[at];
        int acc = 0;
        for (std::int64_t q = b; q < end; ++q) {
          const int w = std::uint8_t(p.w[q * n + j]);
          acc += xq[q - b] * (w - offset);
          if (spec.keeps_x) y[j] = std::fma(x[q], std::fma(float(w), d, minimum), y[j]);
        }
        if (spec.keeps_x) continue;
        y[j] = std::fma(float(acc) * scale, d, y[j]);
        if (spec.blocks.minimum) y[j] = std::fma(minimum, scale * float(sum), y[j]);
      }
    }
    for (std::int64_t j = 0; j < n; ++j) Output(c, p, i * n + j, y[j], out);
  }
  return out;
}

// Float sums: products and sums fused, K ascending.
inline std::vector<std::uint8_t> FloatReference(const Case& c, const Problem& p) {
  const auto& [m, n, k, batch, ragged] = c.shape;
  const Epilogue& e = c.spec.epilogue;
  std::vector<std::uint8_t> out(m * n * SizeOf(e.out));
  std::vector<float> row(k);
  const bool scaled = !IsFloat(c.spec.w);
  const bool pairs = PairsFamilyOf(c.isa, c.spec.x, c.spec.w) != nullptr;
  const std::int64_t block = c.spec.group > 0 ? c.spec.group : std::max<std::int64_t>(k, 1);
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t q = 0; q < k; ++q) row[q] = XFloat(p, c.spec.x, i * k + q);
    for (std::int64_t j = 0; j < n; ++j) {
      float y = 0;
      if (pairs) {
        const auto of_row = [&](std::int64_t q) { return row[q]; };
        const auto of_column = [&, j = j](std::int64_t q) { return p.w_float[q * n + j]; };
        const auto x = Padded(k, of_row);
        const auto w = Padded(k, of_column);
        y = c.isa == Isa::kAmxInt8 ? TiledSum(k, x, w) : PairedSum(k, x, w);
      }
      for (std::int64_t b = 0; b < std::max<std::int64_t>(k, 1) && !pairs; b += block) {
        const std::int64_t column = b / block * n + j;
        const int zero = e.w_zero ? p.w_zero[column] : 0;
        float sum = 0;
        for (std::int64_t q = b; q < std::min(k, b + block); ++q) {
          const float w = scaled ? float(p.w[q * n + j] - zero) : p.w_float[q * n + j];
          sum = std::fma(row[q], w, sum);
        }
        if (scaled) sum = sum * p.w_scale[column];
        y = b == 0 ? sum : y + sum;
      }
      Output(c, p, i * n + j, y, out);
    }
  }
  return out;
}

// By the transpose of a weight: products with what it stands for and sums fused, in order.
inline std::vector<std::uint8_t> TransposedReference(const Case& c, const Problem& p) {
  const auto& [m, n, k, batch, ragged] = c.shape;
  std::vector<std::uint8_t> out(m * n * SizeOf(c.spec.epilogue.out));
  std::vector<float> row(k);
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t q = 0; q < k; ++q) row[q] = XFloat(p, c.spec.x, i * k + q);
    for (std::int64_t j = 0; j < n; ++j) {
      float y = 0, before = 0;
      for (std::int64_t q = 0; q < k; ++q) {
        const std::int64_t at = j * k + q;
        if (q > 0 && q % 1024 == 0) {
          before = q == 1024 ? y : before + y;
          y = 0;
        }
        const std::int64_t shared = (c.spec.group > 0 ? j / c.spec.group * k : 0) + q;
        float w;
        if (IsFloat(c.spec.w)) {
          w = p.w_float[at];
        } else if (IsBlocks(c.spec.w)) {
          w = std::fma(float(std::uint8_t(p.w[at])), p.block_scale[shared],
                       p.block_minimum[shared]);
        } else {
          w = float(p.w[at] - (c.spec.epilogue.w_zero ? p.w_zero[shared] : 0)) * p.w_scale[shared];
        }
        y = std::fma(row[q], w, y);
      }
      Output(c, p, i * n + j, k > 1024 ? before + y : y, out);
    }
  }
  return out;
}

// numerics, one element at a time.
inline std::vector<std::uint8_t> Reference(const Case& c, const Problem& p) {
  if (c.spec.transposed) return TransposedReference(c, p);
  if (IsBlocks(c.spec.w)) return BlockReference(c, p);
  if (c.spec.FloatSums()) return FloatReference(c, p);
  const std::int64_t m = c.shape.m, n = c.shape.n, k = c.shape.k;
  const Epilogue& e = c.spec.epilogue;
  std::vector<std::uint8_t> out(m * n * SizeOf(e.out));
  std::vector<std::int64_t> row(k);
  for (std::int64_t i = 0; i < m; ++i) {
    float row_scale = p.x_scale[e.x_scale == Granularity::kRow ? i : 0];
    std::int64_t zero =
        e.x_zero == Granularity::kNone ? 0 : p.x_zero[e.x_zero == Granularity::kRow ? i : 0];
    if (IsFloat(c.spec.x)) {
      float low = 0, high = 0;
      bool finite = true;
      for (std::int64_t j = 0; j < k; ++j) {
        const float v = XFloat(p, c.spec.x, i * k + j);
        finite = finite && std::isfinite(v);
        low = std::min(low, v);
        high = std::max(high, v);
      }
      if (high - low < 255 * std::numeric_limits<float>::min()) low = 0, high = 255;
      row_scale = (high - low) / 255.0F;
      if (std::isinf(row_scale)) row_scale = high / 255.0F - low / 255.0F;
      zero = finite ? std::int64_t(std::nearbyint(std::min(-low / row_scale, 255.0F))) : 0;
      const float inverse = std::min(1.0F / row_scale, std::numeric_limits<float>::max());
      for (std::int64_t j = 0; j < k; ++j) {
        const double q = std::nearbyint(XFloat(p, c.spec.x, i * k + j) * inverse) + double(zero);
        row[j] = finite ? std::int64_t(std::clamp(q, 0.0, 255.0)) : 0;
      }
      if (!finite) row_scale = std::numeric_limits<float>::quiet_NaN();
    } else {
      for (std::int64_t j = 0; j < k; ++j) {
        row[j] = c.spec.x == XType::kU8 ? p.x[i * k + j] : std::int8_t(p.x[i * k + j]);
      }
    }
    for (std::int64_t j = 0; j < n; ++j) {
      const std::int64_t block = KBlock(e.w_zero, c.spec.group);
      float f = 0;
      std::int64_t total = 0;
      for (std::int64_t b = 0; b < std::max<std::int64_t>(k, 1); b += block) {
        const std::int64_t column = c.spec.group > 0 ? b / block * n + j : j;
        const std::int64_t w_zero = e.w_zero ? p.w_zero[column] : 0;
        std::int64_t acc = 0;
        for (std::int64_t q = b; q < std::min(k, b + block); ++q)
          acc += (row[q] - zero) * (p.w[q * n + j] - w_zero);
        const float term = c.spec.group > 0 ? float(acc) * p.w_scale[column] : float(acc);
        f = b == 0 ? term : f + term;
        total += acc;
      }
      const std::int64_t at = i * n + j;
      if (e.out == OutType::kS32) {
        const auto wrapped = std::uint32_t(std::uint64_t(total));
        std::memcpy(&out[4 * at], &wrapped, 4);
        continue;
      }
      const bool per_row = IsFloat(c.spec.x) || e.x_scale == Granularity::kRow;
      Output(c, p, at,
             c.spec.group > 0 ? f * row_scale
             : per_row        ? (f * p.w_scale[j]) * row_scale
                              : f * (row_scale * p.w_scale[j]),
             out);
    }
  }
  return out;
}

}  // namespace qgemm::test
