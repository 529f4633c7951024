// Names of kernels: what perf, files of machine code and verbose lines show. No two keys share one.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "gemm/kernel.h"

namespace qgemm {

// As in 5x200x80.
std::string Dims(std::initializer_list<std::int64_t> sizes);

const char* Name(XType x);
const char* Name(WType w);
const char* Name(OutType out);

// As in f16_minimum.
std::string Name(const BlockForm& form);

// As in u8_relu_bias_xscale_row: what is there, apart from one scale for all of x.
std::string Name(const Epilogue& epilogue);

// As in tile_6x64_f32; more where a panel is narrow, K is in blocks, or the weights are streamed.
std::string Name(const TileKey& key);

// As in row_range_f32.
std::string RowKernelName(RowOp op, XType x);

}  // namespace qgemm
