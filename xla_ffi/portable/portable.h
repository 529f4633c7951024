// The kernels in plain C++: what any CPU runs, and what the generated ones are tested against.
#pragma once

#include "gemm/kernel.h"

namespace qgemm {

int PortableMaxColumns(int rows);
TileFn PortableTile(const TileKey& key);
RowKernels PortableRows(XType x);
TileFn PortableFloatTile(const TileKey& key);
TileFn PortableBlockTile(const TileKey& key);
void PortableTranspose(const TransposeSource& source, std::int64_t panel, float* to);

}  // namespace qgemm
