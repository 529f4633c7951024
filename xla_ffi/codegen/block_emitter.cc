#include "codegen/block_emitter.h"

namespace qgemm {

Xbyak::RegExp BlockTileEmitter::RowScale(int row) const {
  return reg_row_groups + (row * int(sizeof(RowGroup)) + int(offsetof(RowGroup, scale)));
}

Xbyak::RegExp BlockTileEmitter::RowTerm(int row) const {
  return reg_row_groups + (row * int(sizeof(RowGroup)) + int(offsetof(RowGroup, term)));
}

void BlockTileEmitter::StartSums(int first, int end) {
  for (int row = 0; row < rows(); ++row) {
    for (int vector = first; vector < end; ++vector) {
      if (form_.minimum) {
        Zero(Sum(row, vector));
      } else {
        vpbroadcastd(Sum(row, vector), dword[RowTerm(row)]);
      }
    }
  }
}

void BlockTileEmitter::AddRowTerms(int first, int end) {
  if (form_.minimum) return;
  const Vec term = OfGroup().scalar;
  for (int row = 0; row < rows(); ++row) {
    vpbroadcastd(term, dword[RowTerm(row)]);
    for (int vector = first; vector < end; ++vector) {
      vpaddd(Sum(row, vector), Sum(row, vector), term);
    }
  }
}

void BlockTileEmitter::AddGroup(int first, int end) {
  const int bytes = int(form_.ScaleBytes());
  const auto& [scales, minima, scalar] = OfGroup();
  for (int vector = first; vector < end; ++vector) {
    const RegExp from = reg_block_scales + vector * lanes() * bytes;
    LoadBlockScale(scales, from);
    if (form_.minimum) LoadBlockScale(minima, from + panel_columns_ * bytes);
    for (int row = 0; row < rows(); ++row) {
      const Vec sum = Sum(row, vector), y = Accumulator(row, vector);
      vcvtdq2ps(sum, sum);
      WithScalar(&CodeGenerator::vmulps, sum, RowScale(row), scalar);
      vfmadd231ps(y, sum, scales);
      if (!form_.minimum) continue;
      if (wide()) {
        vfmadd231ps(y, minima, ptr_b[RowTerm(row)]);
      } else {
        vbroadcastss(scalar, dword[RowTerm(row)]);
        vfmadd231ps(y, minima, scalar);
      }
    }
  }
}

}  // namespace qgemm
