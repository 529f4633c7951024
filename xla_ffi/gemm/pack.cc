#include "gemm/pack.h"

#include <algorithm>
#include <cstring>

#include "runtime/cpu.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace qgemm {
namespace {

// Sums of a column in int16 hold so many quads: 63 * 4 * 128 < 32768.
constexpr int kShortQuads = 63;

#ifdef __SSE2__

// Of sixteen columns. What compilers make of the loops below packs at a third of the speed.
template <bool kStream>
void PackUnit(const std::int8_t* const rows[kQuad], std::int64_t first, std::int8_t* out,
              std::int16_t* sums) {
  const auto load = [](const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); };
  const auto store = [](void* p, __m128i v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); };
  const auto emit = [store](std::int8_t* p, __m128i v) {
    if (kStream) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(p), v);
    } else {
      store(p, v);
    }
  };
  const __m128i a = load(rows[0] + first), b = load(rows[1] + first);
  const __m128i c = load(rows[2] + first), d = load(rows[3] + first);
  for (const bool high : {false, true}) {
    const __m128i ab = high ? _mm_unpackhi_epi8(a, b) : _mm_unpacklo_epi8(a, b);
    const __m128i cd = high ? _mm_unpackhi_epi8(c, d) : _mm_unpacklo_epi8(c, d);
    std::int8_t* const quads = out + (first + high * 8) * kQuad;
    emit(quads, _mm_unpacklo_epi16(ab, cd));
    emit(quads + 16, _mm_unpackhi_epi16(ab, cd));
    // The low and the high bytes of eight int16, summed.
    const auto sum = [](__m128i v) {
      return _mm_add_epi16(_mm_srai_epi16(_mm_slli_epi16(v, 8), 8), _mm_srai_epi16(v, 8));
    };
    std::int16_t* const to = sums + first + high * 8;
    store(to, _mm_add_epi16(load(to), _mm_add_epi16(sum(ab), sum(cd))));
  }
}

void FinishStream() { _mm_sfence(); }

#else

template <bool kStream>
void PackUnit(const std::int8_t* const rows[kQuad], std::int64_t first, std::int8_t* out,
              std::int16_t* sums) {
  for (std::int64_t j = first; j < first + kColumnUnit; ++j) {
    for (int i = 0; i < kQuad; ++i) {
      out[kQuad * j + i] = rows[i][j];
      sums[j] = std::int16_t(sums[j] + rows[i][j]);
    }
  }
}

void FinishStream() {}

#endif

// Four rows of `width` bytes, a multiple of 16, become quads; what they sum to is added to `sums`.
template <bool kStream>
void PackQuad(const std::int8_t* const rows[kQuad], std::int64_t width, std::int8_t* out,
              std::int16_t* sums) {
  for (std::int64_t first = 0; first < width; first += kColumnUnit) {
    PackUnit<kStream>(rows, first, out, sums);
  }
}

void MoveSums(std::int16_t* from, std::int32_t* to) {
  for (int j = 0; j < kPanelColumns; ++j) {
    to[j] += from[j];
    from[j] = 0;
  }
}

template <bool kStream>
void PackColumns(const PackedLayout& layout, const PackOperands& operands, std::int64_t panel) {
  const std::int64_t first = panel * kPanelColumns;
  const std::int64_t width = layout.PanelWidth(panel);
  const std::int64_t valid = std::min(width, layout.n - first);
  std::int8_t* out = operands.packed + layout.PanelOffset(panel);
  const std::int64_t block = KBlock(operands.w_zero != nullptr, operands.group);
  const std::int32_t* zeros = operands.w_zero;
  std::int32_t* sums = operands.column_sums + first;
  // Of rows that end inside a unit of columns; beyond their end it stays zero.
  std::int8_t staged[kQuad][kPanelColumns] = {};
  constexpr std::int8_t kNoRow[kPanelColumns] = {};
  for (std::int64_t begin = 0; begin < std::max<std::int64_t>(1, layout.k); begin += block) {
    const std::int64_t end = std::min(layout.k, begin + block);
    std::int32_t block_sums[kPanelColumns] = {};
    std::int16_t short_sums[kPanelColumns] = {};
    int short_quads = 0;
    for (std::int64_t k = begin; k < end; k += kQuad) {
      const std::int8_t* rows[kQuad];
      for (std::int64_t i = 0; i < kQuad; ++i) {
        const std::int8_t* row = operands.w + (k + i) * layout.n + first;
        rows[i] = k + i >= end ? kNoRow : row;
        if (valid == width || k + i >= end) continue;
        std::memcpy(staged[i], row, std::size_t(valid));
        rows[i] = staged[i];
      }
      PackQuad<kStream>(rows, width, out, short_sums);
      out += kQuad * width;
      if (++short_quads == kShortQuads || k + kQuad >= end) {
        MoveSums(short_sums, block_sums);
        short_quads = 0;
      }
    }
    for (std::int64_t j = 0; j < valid; ++j) {
      const std::int64_t zero = zeros == nullptr ? 0 : zeros[first + j];
      sums[j] = std::int32_t(std::uint32_t(block_sums[j]) - std::uint32_t((end - begin) * zero));
    }
    sums += layout.n;
    if (zeros != nullptr && operands.group > 0) zeros += layout.n;
  }
}

// Two rows of bfloat16 become pairs.
void PackPairs(const std::uint16_t* const rows[2], std::int64_t width, std::uint16_t* out) {
  for (std::int64_t j = 0; j < width; ++j) {
    out[2 * j] = rows[0][j];
    out[2 * j + 1] = rows[1][j];
  }
}

// Of float16, 16 columns of one row and then of the other.
void PackUnits(const std::uint16_t* const rows[2], std::int64_t width, std::uint16_t* out) {
  for (std::int64_t first = 0; first < width; first += kColumnUnit) {
    for (const std::uint16_t* row : {rows[0], rows[1]}) {
      std::memcpy(out, row + first, sizeof *out * kColumnUnit);
      out += kColumnUnit;
    }
  }
}

// Past the caches where the result would not stay in them: its lines then are not read first
// (4096x16384 on Zen 4: 1.2 to 1.4 times as fast).
bool Streams(const PackedLayout& layout, const PackOperands& operands) {
  const bool aligned = reinterpret_cast<std::uintptr_t>(operands.packed) % 16 == 0;
  return aligned && layout.Bytes() > std::int64_t(Cpu().l3_bytes / 4);
}

}  // namespace

void PackPanel(const PackedLayout& layout, const PackFloatOperands& operands, std::int64_t panel) {
  constexpr std::int64_t kPair = 2;
  const std::int64_t first = panel * kPanelColumns;
  const std::int64_t width = layout.PanelWidth(panel);
  const std::int64_t valid = std::min(width, layout.n - first);
  std::uint16_t* out = operands.packed + layout.ElementOffset(0, first);
  std::uint16_t staged[kPair][kPanelColumns] = {};
  constexpr std::uint16_t kNoRow[kPanelColumns] = {};
  for (std::int64_t k = 0; k < layout.k; k += kPair) {
    const std::uint16_t* rows[kPair];
    for (std::int64_t i = 0; i < kPair; ++i) {
      const std::uint16_t* row = operands.w + (k + i) * layout.n + first;
      rows[i] = k + i >= layout.k ? kNoRow : row;
      if (valid == width || k + i >= layout.k) continue;
      std::memcpy(staged[i], row, std::size_t(valid) * sizeof *row);
      rows[i] = staged[i];
    }
    layout.w == WType::kF16 ? PackUnits(rows, width, out) : PackPairs(rows, width, out);
    out += kPair * width;
  }
}

void PackPanel(const PackedLayout& layout, const PackOperands& operands, std::int64_t panel) {
  if (Streams(layout, operands)) {
    PackColumns<true>(layout, operands, panel);
    FinishStream();
  } else {
    PackColumns<false>(layout, operands, panel);
  }
}

}  // namespace qgemm
