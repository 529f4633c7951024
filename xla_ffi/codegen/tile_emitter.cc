#include "codegen/tile_emitter.h"

#include <algorithm>

#include "codegen/stream.h"
#include "gemm/layout.h"
#include "portable/bits.h"

namespace qgemm {

#define QGEMM_ARG(field) offsetof(TileArgs, field)

void TileEmitter::LoadRowBases(std::size_t pointer, std::size_t stride) {
  mov(reg_a, ptr[reg_args + pointer]);
  mov(reg_stride, ptr[reg_args + stride]);
  if (key_.first_row > 0) {
    imul(reg_a3, reg_stride, key_.first_row);
    add(reg_a, reg_a3);
  }
  lea(reg_a3, ptr[reg_stride + reg_stride * 2]);
  add(reg_a3, reg_a);
}

Xbyak::RegExp TileEmitter::Row(const Xbyak::Reg64& base, const Xbyak::Reg64& base3, int row,
                               int offset) const {
  const RegExp from = (row < 3 ? base : base3) + offset;
  return row % 3 == 0 ? from : from + reg_stride * (row % 3);
}

void TileEmitter::Begin() {
  LoadRowBases(QGEMM_ARG(a), QGEMM_ARG(a_stride));
  mov(reg_b, ptr[reg_args + QGEMM_ARG(b)]);
  mov(reg_quads, ptr[reg_args + QGEMM_ARG(quads)]);
}

void TileEmitter::BeginFetches() {
  if (fetches_out()) {
    push(reg_out);
    push(reg_out_rows);
    mov(reg_out, ptr[reg_args + QGEMM_ARG(out)]);
    mov(reg_out_rows, rows());
  }
  if (fetches_next()) {
    push(reg_next);
    mov(reg_next, ptr[reg_args + QGEMM_ARG(next)]);
  }
}

// The lines of the result, for writing, are there when the tile is done; all at once they would
// keep what loads weights waiting (1024x1024x1024 on Zen 4: an f32 result 5 % faster than without,
// a row beside each of the first iterations 3 % more; u8 2 %).
void TileEmitter::Fetch(int a_bytes) {
  if (fetches_out()) {
    Xbyak::Label done;
    sub(reg_out_rows, 1);
    js(done, T_NEAR);
    const int bytes = key_.columns * int(SizeOf(key_.epilogue.out));
    for (int line = 0; line < bytes; line += 64) prefetchw(ptr[reg_out + line]);
    add(reg_out, ptr[reg_args + QGEMM_ARG(out_stride)]);
    L(done);
  }
  if (fetches_next()) {
    const int bytes =
        kUnroll * (key_.FetchesPart() ? key_.columns * int(kStepBytes) : rows() * a_bytes);
    for (int line = 0; line < bytes; line += 64) FetchNext(*this, reg_next + line, wide());
    add(reg_next, bytes);
  }
}

void TileEmitter::EndFetches() {
  if (fetches_next()) pop(reg_next);
  if (fetches_out()) {
    pop(reg_out_rows);
    pop(reg_out);
  }
}

// -x_zero[m] * column_sums[n] - w_zero[n] * row_sums[m], wrapping. Uses no register of the K loop's
// but reg_quads.
void TileEmitter::ZeroPointTerms(bool fresh) {
  const Epilogue& e = key_.epilogue;
  if (e.float_sums) {
    for (int i = 0; i < rows() * vectors_; ++i) Zero(Accumulator(i / vectors_, i % vectors_));
    return;
  }
  const Vec term = Temporary(0), zero = Temporary(1);
  if (e.x_zero != Granularity::kNone) mov(reg_column_sums, ptr[reg_args + QGEMM_ARG(column_sums)]);
  if (e.x_zero == Granularity::kRow) {
    mov(reg_row_zeros, ptr[reg_args + QGEMM_ARG(row_negative_zeros)]);
  }
  if (e.x_zero == Granularity::kTensor) {
    vpbroadcastd(zero, dword[reg_args + QGEMM_ARG(x_negative_zero)]);
  }
  if (e.x_zero == Granularity::kTensor && !fresh) {
    for (int vector = 0; vector < vectors_; ++vector) {
      vpmulld(term, zero, ptr[reg_column_sums + vector * vector_bytes()]);
      for (int row = 0; row < rows(); ++row) {
        vpaddd(Accumulator(row, vector), Accumulator(row, vector), term);
      }
    }
  }
  for (int row = 0; row < rows() && (fresh || e.x_zero != Granularity::kTensor); ++row) {
    if (e.x_zero == Granularity::kRow) vpbroadcastd(zero, dword[reg_row_zeros + RowAt(row) * 4]);
    for (int vector = 0; vector < vectors_; ++vector) {
      const Vec sum = Accumulator(row, vector);
      const Address column_sums = ptr[reg_column_sums + vector * vector_bytes()];
      if (e.x_zero == Granularity::kNone) {
        if (fresh) Zero(sum);
      } else if (!fresh) {
        vpmulld(term, zero, column_sums);
        vpaddd(sum, sum, term);
      } else if (e.x_zero == Granularity::kTensor && row > 0) {
        vmovaps(sum, Accumulator(0, vector));
      } else {
        vpmulld(sum, zero, column_sums);
      }
    }
  }
  if (!e.w_zero) return;
  mov(reg_column_zeros, ptr[reg_args + QGEMM_ARG(column_zeros)]);
  mov(reg_row_sums, ptr[reg_args + QGEMM_ARG(row_sums)]);
  for (int row = 0; row < rows(); ++row) {
    vpbroadcastd(zero, dword[reg_row_sums + RowAt(row) * 4]);
    for (int vector = 0; vector < vectors_; ++vector) {
      vpmulld(term, zero, ptr[reg_column_zeros + vector * vector_bytes()]);
      vpsubd(Accumulator(row, vector), Accumulator(row, vector), term);
    }
  }
}

void TileEmitter::Sums(std::size_t sums, bool fresh) {
  constexpr int kStride = 4 * int(kPanelColumns);
  mov(reg_a, ptr[reg_args + sums]);
  for (int row = 0; row < rows(); ++row) {
    for (int vector = 0; vector < vectors(); ++vector) {
      const Vec sum = Accumulator(row, vector);
      const Address from = ptr[reg_a + (RowAt(row) * kStride + vector * vector_bytes())];
      if (fresh) {
        LoadInt(sum, from);
      } else {
        vpaddd(sum, sum, from);
      }
    }
  }
}

void TileEmitter::Quads(int count) {
  for (int quad = 0; quad < count; ++quad) Quad(quad);
}

void TileEmitter::LoopOverQuads(int a_bytes) {
  Xbyak::Label unrolled, single, remainder, done;
  const int left = ends_by_rows() ? kUnroll : 0;
  BeginFetches();
  sub(reg_quads, kUnroll + left);
  jl(remainder, T_NEAR);
  align(32);
  L(unrolled);
  Quads(kUnroll);
  Fetch(a_bytes);
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
  if (left > 0) Fetch(a_bytes);
  EndFetches();
}

void TileEmitter::LoadBlockScale(const Vec& to, const RegExp& from) {
  switch (key_.blocks.scale) {
    case ScaleType::kF32:
      vmovups(to, ptr[from]);
      break;
    case ScaleType::kBf16:
      LoadBf16(to, from);
      break;
    case ScaleType::kF16:
      LoadF16(to, from);
      break;
  }
}

void TileEmitter::Advance(int quads, int a_bytes) {
  add(reg_b, quads * panel_bytes());
  add(reg_a, quads * a_bytes);
  if (rows() > 3) add(reg_a3, quads * a_bytes);
}

void TileEmitter::End() {
  if (ends_by_rows()) {
    EndByRows();
    return;
  }
  const Epilogue& e = key_.epilogue;
  LoadRowBases(QGEMM_ARG(out), QGEMM_ARG(out_stride));
  if (e.out != OutType::kS32) {
    mov(reg_column_scales, ptr[reg_args + QGEMM_ARG(column_scales)]);
    mov(reg_bias, ptr[reg_args + QGEMM_ARG(bias)]);
    mov(reg_row_scales, ptr[reg_args + QGEMM_ARG(row_scales)]);
    mov(reg_partial, ptr[reg_args + QGEMM_ARG(partial)]);
    for (int vector = 0; vector < vectors_; ++vector) ScaleColumns(vector);
  }
  if (!sums_only()) {
    if (e.residual != ResidualType::kNone) AddResidual();
    Activate();
    if (e.out_scale_per_column) mov(reg_inverses, ptr[reg_args + QGEMM_ARG(out_inverses)]);
    for (int vector = 0; IsQuantized(e.out) && vector < vectors_; ++vector) Requantize(vector);
    for (int row = 0; row < rows(); ++row) StoreRow(row);
  }
  Finish();
}

// Of one vector of columns.
void TileEmitter::ScaleColumns(int vector) {
  const Vec scales = Temporary(0), scalar = Temporary(2);
  LoadScales(vector, scales, scalar);
  for (int row = 0; row < rows(); ++row) Scale(row, vector, scales, scalar);
}

void TileEmitter::LoadScales(int vector, const Vec& scales, const Vec& scalar) {
  const Epilogue& e = key_.epilogue;
  if (key_.w == WType::kS8 && (e.w_groups || !sums_only())) {
    vmovups(scales, ptr[reg_column_scales + vector * vector_bytes()]);
  }
  const bool x_per_tensor = !e.float_sums && e.x_scale == Granularity::kTensor;
  if (x_per_tensor && !e.w_groups && !sums_only()) {
    WithScalar(&CodeGenerator::vmulps, scales, reg_args + QGEMM_ARG(x_scale), scalar);
  }
}

// From a sum to f32(acc) * scales + bias, or to the sum so far.
void TileEmitter::Scale(int row, int vector, const Vec& scales, const Vec& scalar) {
  const Epilogue& e = key_.epilogue;
  const int offset = vector * vector_bytes();
  const Vec y = Accumulator(row, vector);
  const RegExp partial = reg_partial + (RowAt(row) * kPartialStride + offset);
  if (!e.float_sums) vcvtdq2ps(y, y);
  if (e.w_groups) vmulps(y, y, scales);
  if (adds_partial()) vaddps(y, y, ptr[partial]);
  if (sums_only()) {
    vmovups(ptr[partial], y);
    return;
  }
  if (key_.w == WType::kS8 && !e.w_groups) vmulps(y, y, scales);
  if (!e.float_sums && e.x_scale != Granularity::kTensor) {
    WithScalar(&CodeGenerator::vmulps, y, reg_row_scales + RowAt(row) * 4, scalar);
  } else if (!e.float_sums && e.w_groups) {
    WithScalar(&CodeGenerator::vmulps, y, reg_args + QGEMM_ARG(x_scale), scalar);
  }
  if (e.bias) vaddps(y, y, ptr[reg_bias + offset]);
}

void TileEmitter::AddResidual() {
  mov(reg_residual, ptr[reg_args + QGEMM_ARG(residual)]);
  if (key_.first_row > 0) {
    const Xbyak::Reg64& offset = reg_inverses;
    mov(offset, ptr[reg_args + QGEMM_ARG(residual_stride)]);
    imul(offset, offset, key_.first_row);
    add(reg_residual, offset);
  }
  for (int row = 0; row < rows(); ++row) {
    if (row > 0) add(reg_residual, ptr[reg_args + QGEMM_ARG(residual_stride)]);
    for (int vector = 0; vector < vectors_; ++vector) AddResidual(row, vector, Temporary(0));
  }
}

void TileEmitter::AddResidual(int row, int vector, const Vec& temporary) {
  const ResidualType type = key_.epilogue.residual;
  const Vec y = Accumulator(row, vector);
  const RegExp from = reg_residual + vector * lanes() * int(SizeOf(type));
  if (type == ResidualType::kF32) {
    vaddps(y, y, ptr[from]);
    return;
  }
  if (type == ResidualType::kBf16) {
    LoadBf16(temporary, from);
  } else {
    LoadF16(temporary, from);
  }
  vaddps(y, y, temporary);
}

// Relu before requantization is Requantize's.
void TileEmitter::Activate() {
  const Activation activation = key_.epilogue.activation;
  const int count = rows() * vectors_;
  const auto sum = [this](int i) { return Accumulator(i / vectors_, i % vectors_); };
  if (IsSmooth(activation)) EmitSmooth(activation, count, sum);
  if (activation != Activation::kRelu || IsQuantized(key_.epilogue.out)) return;
  const Vec zero = Temporary(0);
  Zero(zero);
  // max(0, y) with y second: NaN and -0 stay, as in where(y < 0, 0, y).
  for (int i = 0; i < count; ++i) vmaxps(sum(i), zero, sum(i));
}

void TileEmitter::Requantize(int vector) {
  const Epilogue& e = key_.epilogue;
  const Vec inverse = Temporary(0), most = Temporary(1), temporary = Temporary(2);
  if (e.out_scale_per_column) {
    vmovups(inverse, ptr[reg_inverses + vector * vector_bytes()]);
  } else if (vector == 0) {
    vbroadcastss(inverse, dword[reg_args + QGEMM_ARG(out_inverse)]);
  }
  if (vector == 0) LoadConstant(most, BitsOf(kMostQuantized));
  for (int row = 0; row < rows(); ++row) {
    const Vec y = Accumulator(row, vector);
    vmulps(y, y, inverse);
    ConvertBounded(y, most, temporary);
  }
}

// rne(y / out_scale) as int32, NaN counting as 0; below the range of int32 it is the least int32,
// as the conversion has it. StoreQuantized saturates, and raises for relu what lies below 0; NaN
// then is the least int32, too.
void TileEmitter::ConvertBounded(const Vec& y, const Vec& most, const Vec& temporary) {
  vminps(y, most, y);  // with y second: NaN stays
  if (key_.epilogue.activation == Activation::kRelu) {
    vcvtps2dq(y, y);
  } else {
    RoundToInt(y, temporary);
  }
}

void TileEmitter::StoreRow(int row) {
  const OutType out = key_.epilogue.out;
  if (IsQuantized(out)) {
    // Four vectors become one.
    const QuantizedStore store = StoreWith(Temporary(0), Temporary(1), Temporary(2));
    if (row == 0) LoadQuantizedStore(store, reg_args + QGEMM_ARG(out_zero));
    for (int first = 0; first < vectors_; first += 4) {
      const int count = std::min(4, vectors_ - first);
      const auto y = [&](int i) { return Accumulator(row, first + (i < count ? i : 0)); };
      StoreQuantized(Row(reg_a, reg_a3, row, first * lanes()), {y(0), y(1), y(2), y(3)}, count,
                     store);
    }
    return;
  }
  for (int vector = 0; vector < vectors_; ++vector) {
    const Vec y = Accumulator(row, vector);
    const RegExp to = Row(reg_a, reg_a3, row, vector * lanes() * int(SizeOf(out)));
    if (out == OutType::kS32) {
      StoreInt(ptr[to], y);
    } else {
      StoreFloat(to, y, Temporary(2), Temporary(3));
    }
  }
}

void TileEmitter::StoreFloat(const RegExp& to, const Vec& y, const Vec& t0, const Vec& t1) {
  if (key_.epilogue.out == OutType::kBf16) {
    StoreBf16(to, y, t0, t1);
  } else if (key_.epilogue.out == OutType::kF16) {
    StoreF16(to, y);
  } else {
    vmovups(ptr[to], y);
  }
}

#undef QGEMM_ARG

}  // namespace qgemm
