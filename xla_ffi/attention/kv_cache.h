// A cache of keys and values for attention: int8, symmetric, a scale for each position of each
// head.
//
// For each batch element and head the keys are the packed matrix (layout.h) [head_dim, length],
// positions being columns, and the values the packed matrix [length, head_dim]: what products with
// queries and with weights of positions read. Both take length * head_dim bytes.
#pragma once

#include <cstdint>

#include "gemm/layout.h"
#include "gemm/spec.h"
#include "runtime/cpu.h"

namespace qgemm {

struct KvShape {
  std::int64_t batch, heads, length, head_dim;

  // Whole panels of positions and whole units of columns: no padding.
  constexpr bool IsValid() const {
    return batch >= 0 && heads >= 0 && length % kPanelColumns == 0 && head_dim % kColumnUnit == 0;
  }
  constexpr PackedLayout Keys() const { return {head_dim, length}; }
  constexpr PackedLayout Values() const { return {length, head_dim}; }
  constexpr std::int64_t HeadBytes() const { return length * head_dim; }
};

struct KvData {
  const std::int8_t *key, *value;        // [batch, heads, HeadBytes]
  const float *key_scale, *value_scale;  // [batch, heads, length]
};

// Of one for all batch elements, or one each.
struct KvPositions {
  const std::int32_t* data;
  std::int64_t stride;  // 0 or 1

  std::int64_t Of(std::int64_t batch) const { return data[batch * stride]; }
};

// Quantizes `tokens` new positions, from positions.Of(batch) on, into the cache; those outside it
// are left out.
struct KvUpdate {
  KvShape shape;
  std::int64_t tokens;
  XType type;               // of key and value: float
  const void *key, *value;  // [batch, tokens, heads, head_dim]
  KvPositions positions;
  std::int8_t *key_data, *value_data;
  float *key_scale, *value_scale;
};

void UpdateKvCache(const KvUpdate& update, Isa isa);

}  // namespace qgemm
