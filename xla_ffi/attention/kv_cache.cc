#include "attention/kv_cache.h"

#include <string>

#include "gemm/names.h"
#include "gemm/quantize.h"
#include "runtime/float_env.h"
#include "runtime/scratch.h"
#include "runtime/verbose.h"

namespace qgemm {
namespace {

CallLine Describe(const KvUpdate& update, Isa isa) {
  const auto& [batch, heads, length, head_dim] = update.shape;
  const XType type = update.type;
  return {"update_kv_cache",
          IsaName(isa),
          RowKernelName(RowOp::kRange, type) + "+" + RowKernelName(RowOp::kToByte, type),
          std::string(Name(type)) + ":s8",
          Dims({batch, update.tokens, heads, head_dim}),
          "cache:" + Dims({heads, length}),
          1};
}

void Update(const KvUpdate& update, Isa isa) {
  const FloatEnvironment ieee;
  const auto& [batch, heads, length, head_dim] = update.shape;
  const RowKernels kernels = FamilyOf(isa).rows(update.type);
  const PackedLayout keys = update.shape.Keys(), values = update.shape.Values();
  thread_local Scratch memory;
  auto* const q = memory.Reserve<std::int8_t>(std::size_t(head_dim));
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t first = update.positions.Of(b);
    for (std::int64_t t = 0; t < update.tokens; ++t) {
      const std::int64_t position = first + t;
      if (position < 0 || position >= length) continue;
      for (std::int64_t h = 0; h < heads; ++h) {
        const std::int64_t head = b * heads + h;
        const std::int64_t from = ((b * update.tokens + t) * heads + h) * head_dim;
        const auto quantize = [&](const void* x) {
          const auto* row = static_cast<const std::uint8_t*>(x) + from * SizeOf(update.type);
          return QuantizeRow(kernels, RowScheme::kSymmetric, AFormat::kU8, row, head_dim, q).scale;
        };
        std::int8_t* const key = update.key_data + head * update.shape.HeadBytes();
        update.key_scale[head * length + position] = quantize(update.key);
        for (std::int64_t d = 0; d < head_dim; ++d) key[keys.ElementOffset(d, position)] = q[d];
        std::int8_t* const value = update.value_data + head * update.shape.HeadBytes();
        update.value_scale[head * length + position] = quantize(update.value);
        for (std::int64_t d = 0; d < head_dim; ++d) value[values.ElementOffset(position, d)] = q[d];
      }
    }
  }
}

}  // namespace

void UpdateKvCache(const KvUpdate& update, Isa isa) {
  Traced([&] { Update(update, isa); }, [&] { return Describe(update, isa); });
}

}  // namespace qgemm
