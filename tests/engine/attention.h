// Attention over a cache, compared with a reference in double; operands end where readable memory
// ends.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "attention/attention.h"
#include "call.h"
#include "pools.h"
#include "random.h"

namespace qgemm::test {

// A head's cache as it was quantized: [position][head_dim].
inline std::vector<double> Dequantized(const std::vector<float>& x) {
  float amax = 0;
  for (const float v : x) amax = std::max(amax, std::fabs(v));
  std::vector<double> values;
  for (const float v : x) values.push_back(std::nearbyint(v * (127 / amax)) * double(amax / 127));
  return values;
}

inline bool RunAttentionCase(Isa isa) {
  const std::int64_t batch = Random(1, 2), groups = Random(1, 3), shared = Random(1, 4);
  const std::int64_t dim = 16 * Random(1, 6), length = 64 * Random(1, 3);
  const std::int64_t tokens = Random(1, std::min<std::int64_t>(length, Random(0, 1) ? 90 : 3));
  const auto before = std::int32_t(Random(0, length - tokens));
  const std::int64_t heads = groups * shared, seen = before + tokens;
  const AttentionShape shape{{batch, groups, length, dim}, tokens, heads, Random(0, 3) != 0};
  const auto draw = [](std::int64_t count) {
    std::vector<float> v;
    for (std::int64_t i = 0; i < count; ++i) v.push_back(RandomFloat());
    return v;
  };
  const std::vector<float> query = draw(batch * tokens * heads * dim);
  const std::vector<float> keys = draw(batch * seen * groups * dim),
                           values = draw(batch * seen * groups * dim);
  std::vector<std::uint8_t> mask;
  for (std::int64_t i = 0; i < batch * length; ++i) mask.push_back(std::uint8_t(Random(0, 3) > 0));
  const bool masked = Random(0, 1);

  const std::size_t bytes = std::size_t(batch * groups * shape.cache.HeadBytes());
  std::vector<std::int8_t> key(bytes, 0), value(bytes, 0);
  std::vector<float> key_scale(batch * groups * length, NAN), value_scale = key_scale;
  const std::int32_t start = 0;
  {
    const Fenced k(keys.data(), keys.size() * 4), v(values.data(), values.size() * 4);
    UpdateKvCache({shape.cache,
                   seen,
                   XType::kF32,
                   k.data(),
                   v.data(),
                   {&start, 0},
                   key.data(),
                   value.data(),
                   key_scale.data(),
                   value_scale.data()},
                  isa);
  }
  std::vector<float> out(query.size() + 2, 77);
  {
    const Fenced q(query.data(), query.size() * 4), k(key.data(), bytes), v(value.data(), bytes);
    const Fenced ks(key_scale.data(), key_scale.size() * 4);
    const Fenced vs(value_scale.data(), value_scale.size() * 4), m(mask.data(), mask.size());
    const AttentionOperands operands{
        XType::kF32,
        q.data(),
        {reinterpret_cast<const std::int8_t*>(k.data()),
         reinterpret_cast<const std::int8_t*>(v.data()), reinterpret_cast<const float*>(ks.data()),
         reinterpret_cast<const float*>(vs.data())},
        {&before, 0},
        masked ? m.data() : nullptr,
        out.data() + 1,
        0.3F};
    Threads pool;
    RunAttention(shape, operands, isa, pool, int(Random(1, 3)));
  }
  bool right = out.front() == 77 && out.back() == 77;
  double worst = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t h = 0; h < heads; ++h) {
        const std::int64_t at = ((b * tokens + t) * heads + h) * dim;
        const std::int64_t last = shape.causal ? before + t + 1 : seen;
        std::vector<double> mixed(dim, 0);
        double total = 0;
        for (std::int64_t l = 0; l < last; ++l) {
          if (masked && mask[b * length + l] == 0) continue;
          const auto row = keys.begin() + ((b * seen + l) * groups + h / shared) * dim;
          const auto value_row = values.begin() + ((b * seen + l) * groups + h / shared) * dim;
          const std::vector<double> k = Dequantized({row, row + dim}),
                                    v = Dequantized({value_row, value_row + dim});
          double score = 0;
          for (std::int64_t d = 0; d < dim; ++d) score += query[at + d] * k[d];
          const double weight = std::exp(score * 0.3);
          total += weight;
          for (std::int64_t d = 0; d < dim; ++d) mixed[d] += weight * v[d];
        }
        for (std::int64_t d = 0; d < dim; ++d) {
          const double want = total == 0 ? 0 : mixed[d] / total;
          const double error = std::fabs(out[1 + at + d] - want);
          right = right && error < 3e-5;  // nor a NaN
          worst = std::max(worst, error);
        }
      }
    }
  }
  if (right) return true;
  std::printf(
      "FAILED %s attention batch=%ld groups=%ld shared=%ld dim=%ld length=%ld tokens=%ld "
      "before=%d causal=%d mask=%d: off by %g\n",
      IsaName(isa), long(batch), long(groups), long(shared), long(dim), long(length), long(tokens),
      int(before), int(shape.causal), int(masked), worst);
  return false;
}

}  // namespace qgemm::test
