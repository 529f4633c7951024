// What a group of K has for a column of a tile, of weights in blocks.
#pragma once

#include <cstdint>
#include <cstring>

#include "gemm/kernel.h"
#include "gemm/layout.h"
#include "portable/half.h"

namespace qgemm {

class BlockOfColumn {
 public:
  BlockOfColumn(const TileArgs& args, std::int64_t group, int column)
      : key_(*args.key),
        scales_(args.block_scales + group * args.group_bytes + column * key_.blocks.ScaleBytes()),
        steps_(reinterpret_cast<const std::uint8_t*>(args.b) + group * args.group_bytes +
               column * kStepBytes) {}

  float Scale() const { return Load(scales_); }
  float Minimum() const {
    if (!key_.blocks.minimum) return Scale() * float(-Offset(key_.w));
    return Load(scales_ + key_.panel_columns * key_.blocks.ScaleBytes());
  }
  // Element k of the group, as it is stored.
  int At(std::int64_t k) const {
    const std::int64_t elements = ElementsOfStep(key_.w), of_step = k % elements;
    const std::uint8_t* step = steps_ + k / elements * key_.panel_columns * kStepBytes;
    const int byte = step[of_step % kStepBytes];
    if (key_.w == WType::kU8) return byte;
    return of_step < kStepBytes ? byte & 0xf : byte >> 4;
  }

 private:
  float Load(const std::uint8_t* from) const {
    switch (key_.blocks.scale) {
      case ScaleType::kBf16:
        return LoadAs<Bf16>(from);
      case ScaleType::kF16:
        return LoadAs<F16>(from);
      case ScaleType::kF32:
        break;
    }
    return LoadAs<float>(from);
  }
  template <class T>
  static float LoadAs(const std::uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return ToFloat(value);
  }

  const TileKey& key_;
  const std::uint8_t* const scales_;
  const std::uint8_t* const steps_;
};

}  // namespace qgemm
