// The generated kernel families, for the kernel table. See the file of each.
#pragma once

#include "gemm/kernel.h"

namespace qgemm {

int Avx2MaxColumns(int rows);
TileFn Avx2Tile(const TileKey& key);
RowKernels Avx2Rows(XType x);
PeakLoop Avx2Peak();

int Avx512BwMaxColumns(int rows);
TileFn Avx512BwTile(const TileKey& key);
RowKernels Avx512BwRows(XType x);
PeakLoop Avx512BwPeak();

int Avx2Acc16MaxColumns(int rows);
TileFn Avx2Acc16Tile(const TileKey& key);
int Avx512BwAcc16MaxColumns(int rows);
TileFn Avx512BwAcc16Tile(const TileKey& key);
std::unique_ptr<PanelSplitter> MakeAcc16Splitter();

int AvxVnniMaxColumns(int rows);
TileFn AvxVnniTile(const TileKey& key);
RowKernels AvxVnniRows(XType x);
PeakLoop AvxVnniPeak();

int Avx512VnniMaxColumns(int rows);
TileFn Avx512VnniTile(const TileKey& key);
RowKernels Avx512VnniRows(XType x);
PeakLoop Avx512VnniPeak();
PeakLoop Avx512Bf16Peak();

int Avx2FloatMaxColumns(int rows);
TileFn Avx2FloatTile(const TileKey& key);
RowKernels Avx2FloatRows(XType x);
PeakLoop Avx2FloatPeak();
int Avx512FloatMaxColumns(int rows);
TileFn Avx512FloatTile(const TileKey& key);
RowKernels Avx512FloatRows(XType x);
PeakLoop Avx512FloatPeak();

RowKernels Avx2BlockRows(XType x);
RowKernels Avx512BlockRows(XType x);
int Avx2BlockMaxColumns(int rows);
int AvxVnniBlockMaxColumns(int rows);
TileFn Avx2BlockTile(const TileKey& key);
TileFn AvxVnniBlockTile(const TileKey& key);
int Avx512BwBlockMaxColumns(int rows);
int Avx512VnniBlockMaxColumns(int rows);
TileFn Avx512BwBlockTile(const TileKey& key);
TileFn Avx512VnniBlockTile(const TileKey& key);

int AmxMaxColumns(int rows);
TileFn AmxInt8Tile(const TileKey& key);
PeakLoop AmxInt8Peak();
SetUpFn AmxInt8SetUp(int rows);
TileFn AmxFloatTile(const TileKey& key);
PeakLoop AmxBf16Peak();
PeakLoop AmxFp16Peak();
SetUpFn AmxFloatSetUp(int rows);
void AmxFinish(DeferredTile& deferred);

void Avx2Transpose(const TransposeSource& source, std::int64_t panel, float* to);

}  // namespace qgemm
