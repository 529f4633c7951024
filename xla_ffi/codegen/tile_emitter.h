// What the micro-kernels of all instruction sets share: arguments, row addressing and the epilogue.
//
// A generator emits:  sums that start from ZeroPointTerms, or AddZeroPointTerms when they are
// joined; in between Begin(); LoopOverQuads(); at last End().
#pragma once

#include <cstddef>

#include "codegen/activation_emitter.h"
#include "gemm/kernel.h"

namespace qgemm {

class TileEmitter : public ActivationEmitter {
 public:
  TileFn function() const { return getCode<TileFn>(); }

 protected:
  TileEmitter(VectorWidth width, const TileKey& key)
      : ActivationEmitter(width), key_(key), vectors_(key.columns / lanes()) {}
  ~TileEmitter() = default;

  int rows() const { return key_.rows; }
  int vectors() const { return vectors_; }  // across the columns of the tile
  bool streams() const { return key_.streams; }
  int panel_bytes() const { return key_.panel_columns * 4; }  // from quad to quad

  // The sums of one row and one vector of columns, as int32 or, Epilogue::float_sums, as f32, when
  // the K loop is done.
  virtual Vec Accumulator(int row, int vector) const = 0;
  // Free vector registers outside the K loop: 0 to 3, with AVX-512 to 6.
  virtual Vec Temporary(int i) const = 0;

  // Adds the products of one quad of K, `quad` of an unrolled iteration.
  virtual void Quad(int quad) = 0;
  // Adds those of an unrolled iteration.
  virtual void Quads(int count);

  // TileArgs::sums: the accumulators start from them, or they are added to them.
  void LoadSums() { Sums(true); }
  void AddSums() { Sums(false); }
  // What the zero points add to the sums: the accumulators start from it, or it is added to them.
  void StartFromZeroPointTerms() { ZeroPointTerms(true); }
  void AddZeroPointTerms() { ZeroPointTerms(false); }
  void Begin();
  // All of K. A quad of x takes `a_bytes`.
  void LoopOverQuads(int a_bytes);
  // Address of row 0..5 of a matrix whose rows 0 and 3 are in `base` and `base3`.
  RegExp Row(const Xbyak::Reg64& base, const Xbyak::Reg64& base3, int row, int offset) const;
  void End();

  // Of the K loop.
  const Xbyak::Reg64 reg_args{rdi}, reg_a{rax}, reg_a3{rdx}, reg_stride{rcx}, reg_b{rsi},
      reg_quads{r8}, reg_next{r9};

 private:
  static constexpr int kPartialStride = 256;  // bytes

  bool sums_only() const { return key_.part == KPart::kFirst || key_.part == KPart::kMiddle; }
  // Blocks of more rows than one tile takes have tiles of so many (see EvenSplit): these fetch what
  // comes next.
  bool many_rows() const { return rows() >= 4; }
  bool adds_partial() const { return key_.part == KPart::kMiddle || key_.part == KPart::kLast; }

  void FetchOutput();
  void Advance(int quads, int a_bytes);
  void LoadRowBases(std::size_t pointer, std::size_t stride);
  void Sums(bool fresh);
  void ZeroPointTerms(bool fresh);
  void ScaleColumns(int vector);
  void AddResidual();
  void Activate();
  void Requantize(int vector);
  void StoreRow(int row);

  const TileKey key_;
  const int vectors_;

  // Of the zero points.
  const Xbyak::Reg64 reg_column_sums{r9}, reg_column_zeros{r10}, reg_row_zeros{r11},
      reg_row_sums{r8};
  // Of the epilogue; reg_a, reg_a3 and reg_stride then address the output.
  const Xbyak::Reg64 reg_column_scales{r9}, reg_bias{r10}, reg_row_scales{r11}, reg_partial{rsi},
      reg_residual{r8}, reg_inverses{r9};
};

}  // namespace qgemm
