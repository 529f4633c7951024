// What the micro-kernels of weights in blocks share: the end of a group.
#pragma once

#include <cstddef>

#include "codegen/tile_emitter.h"

namespace qgemm {

class BlockTileEmitter : public TileEmitter {
 protected:
  BlockTileEmitter(VectorWidth width, const TileKey& key)
      : TileEmitter(width, key),
        nibbles_(key.w == WType::kU4),
        form_(key.blocks),
        panel_columns_(key.panel_columns) {}
  ~BlockTileEmitter() = default;

  static constexpr int kBytes = 4;  // of x at a time

  Vec Accumulator(int row, int vector) const override { return V(row * vectors() + vector); }
  // Of the products of a group, int32.
  virtual Vec Sum(int row, int vector) const = 0;
  // A vector of what columns have for a group, another, and what a row has: they come after the
  // products, of whose registers they may take those.
  struct GroupRegisters {
    Vec scales, minima, scalar;
  };
  virtual GroupRegisters OfGroup() const = 0;

  // The sums of some vectors start from RowTerm, or, of weights with minima, from 0.
  void StartSums(int first, int end);
  // RowTerm joins them.
  void AddRowTerms(int first, int end);
  // The sums join the accumulators, scaled.
  void AddGroup(int first, int end);

  const bool nibbles_;

 private:
  RegExp RowScale(int row) const;
  RegExp RowTerm(int row) const;

  const BlockForm form_;
  const int panel_columns_;
};

}  // namespace qgemm
