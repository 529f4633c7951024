// What the micro-kernels of all instruction sets share: arguments, row addressing and the epilogue.
//
// A generator emits:  Begin(); LoopOverQuads(); what joins its sums in Accumulator(row, vector);
// End().
#pragma once

#include <cstddef>

#include "codegen/vector_emitter.h"
#include "gemm/kernel.h"

namespace qgemm {

class TileEmitter : public VectorEmitter {
 public:
  TileFn function() const { return getCode<TileFn>(); }

 protected:
  TileEmitter(VectorWidth width, const TileKey& key)
      : VectorEmitter(width), key_(key), vectors_(key.columns / lanes()) {}
  ~TileEmitter() = default;

  int rows() const { return key_.rows; }
  int vectors() const { return vectors_; }                    // across the columns of the tile
  int panel_bytes() const { return key_.panel_columns * 4; }  // from quad to quad

  // The sums of one row and one vector of columns, as int32, when the K loop is done.
  virtual Vec Accumulator(int row, int vector) const = 0;
  // Free vector registers of the epilogue, 0 to 3.
  virtual Vec Temporary(int i) const = 0;

  // Adds the products of one quad of K, `quad` of an unrolled iteration.
  virtual void Quad(int quad) = 0;

  void Begin();
  // All of K. A quad of x takes `a_bytes`.
  void LoopOverQuads(int a_bytes);
  // Address of row 0..5 of a matrix whose rows 0 and 3 are in `base` and `base3`.
  RegExp Row(const Xbyak::Reg64& base, const Xbyak::Reg64& base3, int row, int offset) const;
  void End();

  // Of the K loop.
  const Xbyak::Reg64 reg_args{rdi}, reg_a{rax}, reg_a3{rdx}, reg_stride{rcx}, reg_b{rsi},
      reg_quads{r8};

 private:
  static constexpr int kPartialStride = 256;  // bytes

  bool sums_only() const { return key_.part == KPart::kFirst || key_.part == KPart::kMiddle; }
  bool adds_partial() const { return key_.part == KPart::kMiddle || key_.part == KPart::kLast; }

  void Advance(int quads, int a_bytes);
  void LoadRowBases(std::size_t pointer, std::size_t stride);
  void LoadColumnPointers();
  void PrepareColumns(int vector);
  void CorrectZeroPoints(const Vec& y, int row, int vector);
  void Scale(const Vec& y, int row);
  void Store(const Vec& y, int row, int vector);

  const TileKey key_;
  const int vectors_;

  // Of the epilogue; reg_a, reg_a3 and reg_stride then address the output.
  const Xbyak::Reg64 reg_column_sums{rsi}, reg_column_zeros{r8}, reg_column_scales{r9},
      reg_bias{r10}, reg_row_zeros{r11}, reg_row_sums{rbx}, reg_row_scales{r12}, reg_partial{r13};
};

}  // namespace qgemm
