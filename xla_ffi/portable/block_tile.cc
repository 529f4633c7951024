// The micro-kernel of weights in blocks and x quantized by groups, in plain C++.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "portable/block.h"
#include "portable/epilogue.h"
#include "portable/portable.h"

namespace qgemm {
namespace {

void RunTile(TileArgs* args) {
  const TileKey& key = *args->key;
  const std::int64_t elements = ElementsOfStep(key.w) * args->group_steps;
  for (int row = 0; row < key.rows; ++row) {
    const auto* a = static_cast<const std::int8_t*>(args->a) + row * args->a_stride;
    for (int j = 0; j < key.columns; ++j) {
      float y = 0;
      for (std::int64_t g = 0; g < args->groups; ++g) {
        const BlockOfColumn block(*args, g, j);
        RowGroup x;
        std::memcpy(&x,
                    reinterpret_cast<const std::uint8_t*>(args->row_groups + row) +
                        g * args->row_groups_stride,
                    sizeof x);
        std::int32_t sum = 0;
        if (!key.blocks.minimum) std::memcpy(&sum, &x.term, sizeof sum);
        for (std::int64_t k = 0; k < elements; ++k) sum += a[g * elements + k] * block.At(k);
        y = std::fma(float(sum) * x.scale, block.Scale(), y);
        if (key.blocks.minimum) y = std::fma(block.Minimum(), x.term, y);
      }
      Finish(*args, row, j, y);
    }
  }
}

}  // namespace

TileFn PortableBlockTile(const TileKey&) { return RunTile; }

}  // namespace qgemm
