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
  bool streams() const { return key_.streams && !key_.FetchesPart(); }  // its own weights
  bool has_partial() const { return key_.part == KPart::kMiddle || key_.part == KPart::kLast; }
  int panel_bytes() const { return key_.panel_columns * 4; }  // from quad to quad

  // The sums of one row and one vector of columns, as int32 or, Epilogue::float_sums, as f32, when
  // the K loop is done.
  virtual Vec Accumulator(int row, int vector) const = 0;
  static constexpr int kPartialStride = 256;  // bytes
  // Free vector registers outside the K loop: 0 to 3.
  virtual Vec Temporary(int i) const = 0;

  // Blocks of more rows than one tile takes have tiles of so many (see EvenSplit): these fetch what
  // comes next.
  virtual bool many_rows() const { return rows() >= 4; }

  // Adds the products of one quad of K, `quad` of an unrolled iteration.
  virtual void Quad(int quad) = 0;
  // Adds those of an unrolled iteration.
  virtual void Quads(int count);

  // TileArgs::sums: the accumulators start from them, or they are added to them.
  void LoadSums() { Sums(offsetof(TileArgs, sums), true); }
  void AddSums() { Sums(offsetof(TileArgs, sums), false); }
  // The accumulators go on from the sums of the parts of K before.
  void LoadPartial() { Sums(offsetof(TileArgs, partial), true); }
  // What the zero points add to the sums: the accumulators start from it, or it is added to them.
  void StartFromZeroPointTerms() { ZeroPointTerms(true); }
  void AddZeroPointTerms() { ZeroPointTerms(false); }
  void Begin();
  // Whether the last quads are multiplied row by row, each row beside the end of the one before: an
  // epilogue has more operations than a core looks ahead, so that multipliers would rest (a tile of
  // 6x64 on Zen 4 costs 84 cycles beyond its products, not 106). LoopOverQuads then leaves
  // kUnroll quads to End.
  virtual bool ends_by_rows() const { return false; }
  // Of AVX-512: the products of these and one row, with all but vector 28 as in the K loop.
  virtual void LastQuads(int) {}
  // Whether the key allows it.
  bool may_end_by_rows() const;
  // All of K. A quad of x takes `a_bytes`.
  void LoopOverQuads(int a_bytes);
  // The same of weights in blocks: `begin` and `end` emit what comes before and after the quads of
  // a group, with reg_block_scales and reg_row_groups at what the group has; of one row for each of
  // several passes over a group.
  template <class BeginGroup, class EndGroup>
  void LoopOverGroups(int a_bytes, int passes, const BeginGroup& begin, const EndGroup& end);
  // A vector of what columns share, f32, from where a block has it.
  void LoadBlockScale(const Vec& to, const RegExp& from);
  // Address of row 0..5 of a matrix whose rows 0 and 3 are in `base` and `base3`.
  RegExp Row(const Xbyak::Reg64& base, const Xbyak::Reg64& base3, int row, int offset) const;
  void End();

  // Of the K loop.
  const Xbyak::Reg64 reg_args{rdi}, reg_a{rax}, reg_a3{rdx}, reg_stride{rcx}, reg_b{rsi},
      reg_quads{r8}, reg_block_scales{r9}, reg_row_groups{r10}, reg_groups{r11};

  static constexpr int kUnroll = 4;  // see IsGroupOfBlocks

 private:
  bool sums_only() const { return key_.part == KPart::kFirst || key_.part == KPart::kMiddle; }
  // In an iteration of the K loop: a row of the result, and of what comes next as much as the tile
  // has of x or, of narrow tiles, of weights.
  bool fetches_out() const { return many_rows() && !sums_only() && !key_.ends; }
  bool fetches_next() const { return key_.FetchesPart() || (many_rows() && !key_.ends); }
  void BeginFetches();
  void Fetch(int a_bytes);
  void EndFetches();
  int RowAt(int row) const { return key_.first_row + row; }
  bool adds_partial() const { return has_partial() && !key_.f32_panel; }

  void Advance(int quads, int a_bytes);
  void LoadRowBases(std::size_t pointer, std::size_t stride);
  void Sums(std::size_t from, bool fresh);
  void ZeroPointTerms(bool fresh);
  void ScaleColumns(int vector);
  void AddResidual();
  void Activate();
  void Requantize(int vector);
  void StoreRow(int row);

  // Of one vector of sums.
  void LoadScales(int vector, const Vec& scales, const Vec& scalar);
  void Scale(int row, int vector, const Vec& scales, const Vec& scalar);
  void AddResidual(int row, int vector, const Vec& temporary);  // the row at reg_residual
  void ConvertBounded(const Vec& y, const Vec& most, const Vec& temporary);
  QuantizedStore StoreWith(const Vec& order, const Vec& zero_point, const Vec& temporary) const {
    return {order, zero_point, temporary, key_.epilogue.activation == Activation::kRelu,
            key_.epilogue.out == OutType::kS8};
  }
  void StoreFloat(const RegExp& to, const Vec& y, const Vec& t0, const Vec& t1);

  void EndByRows();
  void EndRow(int row);
  // Then the sums are in vectors below 24, and what the epilogue needs in those from there on.
  Vec RowScales(int vector) const { return V(24 + vector); }
  Vec RowTemporary() const { return V(28); }
  Vec RowBound() const { return V(31); }  // the most before conversion; of floats the least, 0
  QuantizedStore RowStore() const { return StoreWith(V(29), V(30), RowTemporary()); }

  const TileKey key_;
  const int vectors_;

  // Of the K loop, too.
  const Xbyak::Reg64 reg_next{r12}, reg_out{r13}, reg_out_rows{r14};
  // Of the zero points.
  const Xbyak::Reg64 reg_column_sums{r9}, reg_column_zeros{r10}, reg_row_zeros{r11},
      reg_row_sums{r8};
  // Of the epilogue; reg_a, reg_a3 and reg_stride then address the output.
  const Xbyak::Reg64 reg_column_scales{r9}, reg_bias{r10}, reg_row_scales{r11}, reg_partial{rsi},
      reg_residual{r8}, reg_inverses{r9};
};

template <class BeginGroup, class EndGroup>
void TileEmitter::LoopOverGroups(int a_bytes, int passes, const BeginGroup& begin,
                                 const EndGroup& end) {
  const Xbyak::Reg64 &group_a = reg_a3, group_b = rbx;  // of up to three rows
  Xbyak::Label group, done;
  mov(reg_block_scales, ptr[reg_args + offsetof(TileArgs, block_scales)]);
  mov(reg_row_groups, ptr[reg_args + offsetof(TileArgs, row_groups)]);
  mov(reg_groups, ptr[reg_args + offsetof(TileArgs, groups)]);
  if (passes > 1) push(group_b);
  BeginFetches();
  test(reg_groups, reg_groups);
  jz(done, T_NEAR);
  L(group);
  if (passes > 1) {
    mov(group_a, reg_a);
    mov(group_b, reg_b);
  }
  for (int pass = 0; pass < passes; ++pass) {
    Xbyak::Label quads;
    begin(pass);
    if (pass > 0) {
      mov(reg_a, group_a);
      mov(reg_b, group_b);
    }
    mov(reg_quads, ptr[reg_args + offsetof(TileArgs, group_steps)]);
    align(32);
    L(quads);
    Quads(kUnroll);
    if (pass == 0) Fetch(a_bytes);
    Advance(kUnroll, a_bytes);
    sub(reg_quads, kUnroll);
    jnz(quads, T_NEAR);
    end(pass);
  }
  add(reg_b, key_.panel_columns * int(key_.blocks.Bytes()));
  add(reg_block_scales, ptr[reg_args + offsetof(TileArgs, group_bytes)]);
  add(reg_row_groups, ptr[reg_args + offsetof(TileArgs, row_groups_stride)]);
  sub(reg_groups, 1);
  jnz(group, T_NEAR);
  L(done);
  EndFetches();
  if (passes > 1) pop(group_b);
}

}  // namespace qgemm
