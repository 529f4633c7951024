// Attention over a cache of quantized keys and values.
//
// Keys and values are int8, symmetric, with a scale for each position of each head. With s the
// scale of the softmax, g(h) = h / (heads / kv_heads) the head of the cache that head h has, and L
// the positions that query t sees, positions + t + 1 of them, or positions + queries, less those
// that `mask` leaves out:
//   score[l]    = s * (q[t,h] . key[g,l]) * key_scale[g,l]
//   out[t,h,:]  = sum_L exp(score[l] - max) * value_scale[g,l] * value[g,l,:] / sum_L exp(...)
// in f32; 0 where a query sees nothing. A query has the same result in any batch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/kv_cache.h"
#include "gemm/kernel.h"
#include "runtime/parallel.h"
#include "runtime/verbose.h"

namespace qgemm {

struct AttentionShape {
  KvShape cache;
  std::int64_t queries, heads;
  bool causal;

  constexpr std::int64_t HeadsPerCacheHead() const { return heads / cache.heads; }
  // Rows of scores that share a head of the cache.
  constexpr std::int64_t Rows() const { return queries * HeadsPerCacheHead(); }
};

struct AttentionOperands {
  XType type;         // of query and out: float
  const void* query;  // [batch, queries, heads, head_dim]
  KvData cache;
  KvPositions positions;     // before the first query
  const std::uint8_t* mask;  // bool [batch, length], or null
  void* out;                 // as query
  float scale;
};

// Rows that a work item has: enough for a panel of keys, once in the cache, to be worth it.
inline constexpr std::int64_t kAttentionRows = 48;

constexpr std::int64_t AttentionItems(const AttentionShape& shape) {
  return shape.cache.batch * shape.cache.heads * CeilDiv(shape.Rows(), kAttentionRows);
}

// Works through the items a participant claims through `self`, the first of them in hand.
void RunAttentionItems(const AttentionShape& shape, const AttentionOperands& operands, Isa isa,
                       Job::Participant& self, std::int64_t first);

// How many threads are worth using where they are at hand, and worth waking.
Crew AttentionCrew(const AttentionShape& shape, const AttentionOperands& operands, int threads);

CallLine DescribeAttention(const AttentionShape& shape, const AttentionOperands& operands, Isa isa,
                           int threads);

// Pool: see ParallelClaim.
template <class Pool>
void RunAttention(const AttentionShape& shape, const AttentionOperands& operands, Isa isa,
                  Pool& pool, int threads) {
  const std::int64_t items = AttentionItems(shape);
  const Crew crew = AttentionCrew(shape, operands, threads);
  const auto run = [&] {
    ParallelClaim(pool, items, crew, [&](Job::Participant& self, std::int64_t first) {
      RunAttentionItems(shape, operands, isa, self, first);
    });
  };
  Traced(run, [&] { return DescribeAttention(shape, operands, isa, crew.at_hand); });
}

}  // namespace qgemm
