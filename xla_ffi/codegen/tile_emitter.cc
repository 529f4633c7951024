#include "codegen/tile_emitter.h"

namespace qgemm {

#define QGEMM_ARG(field) offsetof(TileArgs, field)

void TileEmitter::LoadRowBases(std::size_t pointer, std::size_t stride) {
  mov(reg_a, ptr[reg_args + pointer]);
  mov(reg_stride, ptr[reg_args + stride]);
  lea(reg_a3, ptr[reg_stride + reg_stride * 2]);
  add(reg_a3, reg_a);
}

Xbyak::RegExp TileEmitter::Row(const Xbyak::Reg64& base, const Xbyak::Reg64& base3, int row,
                               int offset) const {
  const RegExp from = (row < 3 ? base : base3) + offset;
  return row % 3 == 0 ? from : from + reg_stride * (row % 3);
}

void TileEmitter::Begin() {
  push(rbx);
  push(r12);
  push(r13);
  LoadRowBases(QGEMM_ARG(a), QGEMM_ARG(a_stride));
  mov(reg_b, ptr[reg_args + QGEMM_ARG(b)]);
  mov(reg_quads, ptr[reg_args + QGEMM_ARG(quads)]);
}

void TileEmitter::LoopOverQuads(int a_bytes) {
  constexpr int kUnroll = 4;
  Xbyak::Label unrolled, single, remainder, done;
  sub(reg_quads, kUnroll);
  jl(remainder, T_NEAR);
  align(32);
  L(unrolled);
  for (int quad = 0; quad < kUnroll; ++quad) Quad(quad);
  Advance(kUnroll, a_bytes);
  sub(reg_quads, kUnroll);
  jge(unrolled, T_NEAR);
  L(remainder);
  add(reg_quads, kUnroll);
  jz(done, T_NEAR);
  L(single);
  Quad(0);
  Advance(1, a_bytes);
  sub(reg_quads, 1);
  jnz(single, T_NEAR);
  L(done);
}

void TileEmitter::Advance(int quads, int a_bytes) {
  add(reg_b, quads * panel_bytes());
  add(reg_a, quads * a_bytes);
  if (rows() > 3) add(reg_a3, quads * a_bytes);
}

void TileEmitter::End() {
  LoadRowBases(QGEMM_ARG(out), QGEMM_ARG(out_stride));
  LoadColumnPointers();
  for (int vector = 0; vector < vectors_; ++vector) {
    PrepareColumns(vector);
    for (int row = 0; row < rows(); ++row) {
      const Vec y = Accumulator(row, vector);
      const RegExp partial = reg_partial + (row * kPartialStride + vector * vector_bytes());
      CorrectZeroPoints(y, row, vector);
      if (key_.epilogue.out != OutType::kS32) {
        vcvtdq2ps(y, y);
        if (adds_partial()) vaddps(y, y, ptr[partial]);
        if (sums_only()) {
          vmovups(ptr[partial], y);
          continue;
        }
        Scale(y, row);
        if (key_.epilogue.bias) vaddps(y, y, ptr[reg_bias + vector * vector_bytes()]);
        if (key_.epilogue.activation == Activation::kRelu) {
          // max(0, y) with y second: NaN and -0 stay, as in where(y < 0, 0, y).
          Zero(Temporary(2));
          vmaxps(y, Temporary(2), y);
        }
      }
      Store(y, row, vector);
    }
  }
  pop(r13);
  pop(r12);
  pop(rbx);
  Finish();
}

void TileEmitter::LoadColumnPointers() {
  mov(reg_column_sums, ptr[reg_args + QGEMM_ARG(column_sums)]);
  mov(reg_column_zeros, ptr[reg_args + QGEMM_ARG(column_zeros)]);
  mov(reg_column_scales, ptr[reg_args + QGEMM_ARG(column_scales)]);
  mov(reg_bias, ptr[reg_args + QGEMM_ARG(bias)]);
  mov(reg_row_zeros, ptr[reg_args + QGEMM_ARG(row_zeros)]);
  mov(reg_row_sums, ptr[reg_args + QGEMM_ARG(row_sums)]);
  mov(reg_row_scales, ptr[reg_args + QGEMM_ARG(row_scales)]);
  mov(reg_partial, ptr[reg_args + QGEMM_ARG(partial)]);
}

// Temporary 0: x_zero * column sums; temporary 1: the scale of the columns.
void TileEmitter::PrepareColumns(int vector) {
  const int offset = vector * vector_bytes();
  if (key_.epilogue.x_zero == Granularity::kTensor) {
    vpbroadcastd(Temporary(0), dword[reg_args + QGEMM_ARG(x_zero)]);
    vpmulld(Temporary(0), Temporary(0), ptr[reg_column_sums + offset]);
  }
  if (sums_only() || key_.epilogue.out == OutType::kS32) return;
  vmovups(Temporary(1), ptr[reg_column_scales + offset]);
  if (key_.epilogue.x_scale == Granularity::kTensor) {
    WithScalar(&CodeGenerator::vmulps, Temporary(1), reg_args + QGEMM_ARG(x_scale), Temporary(2));
  }
}

// acc - x_zero[m] * column_sums[n] - w_zero[n] * row_sums[m], wrapping.
void TileEmitter::CorrectZeroPoints(const Vec& y, int row, int vector) {
  const int offset = vector * vector_bytes();
  if (key_.epilogue.x_zero == Granularity::kTensor) vpsubd(y, y, Temporary(0));
  if (key_.epilogue.x_zero == Granularity::kRow) {
    vpbroadcastd(Temporary(2), dword[reg_row_zeros + row * 4]);
    vpmulld(Temporary(2), Temporary(2), ptr[reg_column_sums + offset]);
    vpsubd(y, y, Temporary(2));
  }
  if (key_.epilogue.w_zero) {
    vpbroadcastd(Temporary(2), dword[reg_row_sums + row * 4]);
    vpmulld(Temporary(2), Temporary(2), ptr[reg_column_zeros + offset]);
    vpsubd(y, y, Temporary(2));
  }
}

void TileEmitter::Scale(const Vec& y, int row) {
  vmulps(y, y, Temporary(1));
  if (key_.epilogue.x_scale == Granularity::kRow) {
    WithScalar(&CodeGenerator::vmulps, y, reg_row_scales + row * 4, Temporary(2));
  }
}

void TileEmitter::Store(const Vec& y, int row, int vector) {
  const OutType out = key_.epilogue.out;
  const int offset = vector * lanes() * int(SizeOf(out));
  const RegExp to = Row(reg_a, reg_a3, row, offset);
  switch (out) {
    case OutType::kS32:
      StoreInt(ptr[to], y);
      break;
    case OutType::kF32:
      vmovups(ptr[to], y);
      break;
    case OutType::kBf16:
      StoreBf16(to, y, Temporary(2), Temporary(3));
      break;
    case OutType::kU8:
    case OutType::kS8:
      WithScalar(&CodeGenerator::vmulps, y, reg_args + QGEMM_ARG(out_inverse), Temporary(2));
      NanToZero(y, Temporary(2));
      WithScalar(&CodeGenerator::vmaxps, y, reg_args + QGEMM_ARG(out_low), Temporary(2));
      WithScalar(&CodeGenerator::vminps, y, reg_args + QGEMM_ARG(out_high), Temporary(2));
      vcvtps2dq(y, y);
      WithScalar(&CodeGenerator::vpaddd, y, reg_args + QGEMM_ARG(out_zero), Temporary(2));
      StoreByte(to, y, out == OutType::kS8);
      break;
  }
}

#undef QGEMM_ARG

}  // namespace qgemm
