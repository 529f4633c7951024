#include "gemm/pack.h"

#include <algorithm>
#include <cstring>

namespace qgemm {
namespace {

// Four rows of `width` bytes become quads.
void InterleaveQuad(const std::int8_t* const rows[kQuad], std::int64_t width, std::int8_t* out) {
  for (std::int64_t j = 0; j < width; ++j) {
    out[kQuad * j] = rows[0][j];
    out[kQuad * j + 1] = rows[1][j];
    out[kQuad * j + 2] = rows[2][j];
    out[kQuad * j + 3] = rows[3][j];
  }
}

void AddRow(const std::int8_t* row, std::int64_t width, std::int32_t* sums) {
  for (std::int64_t j = 0; j < width; ++j) sums[j] += row[j];
}

}  // namespace

void PackPanel(const PackedLayout& layout, const PackOperands& operands, std::int64_t panel) {
  const std::int64_t first = panel * kPanelColumns;
  const std::int64_t width = layout.PanelWidth(panel);
  const std::int64_t valid = std::min(width, layout.n - first);
  std::int8_t* out = operands.packed + layout.PanelOffset(panel);
  const std::int64_t block = KBlock(operands.w_zero != nullptr, operands.group);
  const std::int32_t* zeros = operands.w_zero;
  std::int32_t* sums = operands.column_sums + first;
  for (std::int64_t begin = 0; begin < std::max<std::int64_t>(1, layout.k); begin += block) {
    const std::int64_t end = std::min(layout.k, begin + block);
    std::int32_t block_sums[kPanelColumns] = {};
    for (std::int64_t k = begin; k < end; k += kQuad) {
      std::int8_t staged[kQuad][kPanelColumns] = {};
      const std::int8_t* rows[kQuad];
      for (std::int64_t i = 0; i < kQuad; ++i) {
        rows[i] = staged[i];
        if (k + i >= end) continue;
        const std::int8_t* row = operands.w + (k + i) * layout.n + first;
        if (valid == width) {
          rows[i] = row;
        } else {
          std::memcpy(staged[i], row, std::size_t(valid));
        }
        AddRow(row, valid, block_sums);
      }
      InterleaveQuad(rows, width, out);
      out += kQuad * width;
    }
    for (std::int64_t j = 0; j < valid; ++j) {
      const std::int64_t zero = zeros == nullptr ? 0 : zeros[first + j];
      sums[j] = std::int32_t(std::uint32_t(block_sums[j]) - std::uint32_t((end - begin) * zero));
    }
    sums += layout.n;
    if (zeros != nullptr && operands.group > 0) zeros += layout.n;
  }
}

}  // namespace qgemm
