// The end of a tile row by row, beside the last products of the next row: see ends_by_rows.
#include <cstddef>

#include "codegen/tile_emitter.h"
#include "portable/bits.h"

namespace qgemm {

#define QGEMM_ARG(field) offsetof(TileArgs, field)

bool TileEmitter::may_end_by_rows() const {
  const Epilogue& e = key_.epilogue;
  const bool plain = key_.part == KPart::kWhole && !key_.from_sums && !e.w_groups;
  return plain && !key_.short_k && e.out != OutType::kS32 && !IsSmooth(e.activation);
}

void TileEmitter::EndByRows() {
  const Epilogue& e = key_.epilogue;
  push(reg_out);
  mov(reg_out, ptr[reg_args + QGEMM_ARG(out)]);
  mov(reg_residual, ptr[reg_args + QGEMM_ARG(residual)]);
  mov(reg_bias, ptr[reg_args + QGEMM_ARG(bias)]);
  mov(reg_row_scales, ptr[reg_args + QGEMM_ARG(row_scales)]);
  mov(reg_column_scales, ptr[reg_args + QGEMM_ARG(column_scales)]);
  for (int vector = 0; vector < vectors(); ++vector) {
    LoadScales(vector, RowScales(vector), RowTemporary());
  }
  if (e.out_scale_per_column) mov(reg_inverses, ptr[reg_args + QGEMM_ARG(out_inverses)]);
  if (IsQuantized(e.out)) {
    LoadConstant(RowBound(), BitsOf(kMostQuantized));
    LoadQuantizedStore(RowStore(), reg_args + QGEMM_ARG(out_zero));
  } else if (e.activation == Activation::kRelu) {
    Zero(RowBound());
  }
  for (int row = 0; row < rows(); ++row) {
    LastQuads(row);
    if (row > 0) EndRow(row - 1);
  }
  EndRow(rows() - 1);
  pop(reg_out);
  Finish();
}

void TileEmitter::EndRow(int row) {
  const Epilogue& e = key_.epilogue;
  const Vec temporary = RowTemporary();
  for (int vector = 0; vector < vectors(); ++vector) {
    const Vec y = Accumulator(row, vector);
    Scale(row, vector, RowScales(vector), temporary);
    if (e.residual != ResidualType::kNone) AddResidual(row, vector, temporary);
    if (!IsQuantized(e.out)) {
      if (e.activation == Activation::kRelu) vmaxps(y, RowBound(), y);  // NaN and -0 stay
      StoreFloat(reg_out + vector * lanes() * int(SizeOf(e.out)), y, temporary, temporary);
      continue;
    }
    if (e.out_scale_per_column) {
      vmulps(y, y, ptr[reg_inverses + vector * vector_bytes()]);
    } else {
      vmulps(y, y, ptr_b[reg_args + QGEMM_ARG(out_inverse)]);
    }
    ConvertBounded(y, RowBound(), temporary);
  }
  if (IsQuantized(e.out)) {
    const auto y = [&](int i) { return Accumulator(row, i < vectors() ? i : 0); };
    StoreQuantized(reg_out, {y(0), y(1), y(2), y(3)}, vectors(), RowStore());
  }
  if (row + 1 == rows()) return;
  add(reg_out, ptr[reg_args + QGEMM_ARG(out_stride)]);
  if (e.residual != ResidualType::kNone) {
    add(reg_residual, ptr[reg_args + QGEMM_ARG(residual_stride)]);
  }
}

#undef QGEMM_ARG

}  // namespace qgemm
