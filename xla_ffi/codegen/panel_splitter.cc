// Splits panels for acc16.cc and multiplies the outliers: the counterpart of FBGEMM's sparse part
// (arXiv 2101.05615), but exact. FBGEMM takes out what passes a number of bits; here
// it is what two quads of a column can add up to beyond int16, so that kernels never saturate.
//
// Outliers are rare and lie anywhere, so they go through a copy of x whose columns are contiguous:
// 32 rows of one column of x are a vector. Their products, too, are summed in int16 first.
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "codegen/families.h"
#include "gemm/acc16.h"
#include "runtime/scratch.h"

// Only CPUs with AVX2 have a family that splits.
#define QGEMM_AVX2 __attribute__((target("avx2")))

namespace qgemm {
namespace {

constexpr std::int64_t kRows = 32;        // of a block of the copy of x
constexpr std::int64_t kTransposed = 16;  // rows and columns at a time
constexpr int kPairs = 3;
constexpr int kAtOnce = 2;

// Outliers of one column whose products with x fit int16 together: two of each pair.
struct Segment {
  std::uint32_t offsets[2 * kPairs];  // in a block of the copy of x
  std::int8_t values[2 * kPairs];
};

__m128i Load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
QGEMM_AVX2 __m256i Load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
QGEMM_AVX2 void Store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

struct Outlier {
  std::uint16_t k;
  std::uint8_t column;
  std::int8_t value;
};

// The outliers of one column, as they come.
class ColumnOutliers {
 public:
  void Clear() {
    segments_.clear();
    used_ = 2 * kPairs;
  }
  void Add(std::uint32_t offset, std::int8_t value) {
    positive_ += std::max<int>(0, value);
    negative_ -= std::min<int>(0, value);
    if (used_ == 2 * kPairs || std::max(positive_, negative_) > kMostInInt16) {
      segments_.emplace_back();
      used_ = 0;
      positive_ = std::max<int>(0, value);
      negative_ = -std::min<int>(0, value);
    }
    segments_.back().offsets[used_] = offset;
    segments_.back().values[used_++] = value;
  }
  const std::vector<Segment>& segments() const { return segments_; }

 private:
  std::vector<Segment> segments_;
  int used_ = 2 * kPairs;            // of the last segment; the rest of it are zeros
  int positive_ = 0, negative_ = 0;  // what its values add up to
};

// Per lane of int16, what the magnitudes of one sign, as quads, are too much by.
QGEMM_AVX2 __m256i Excess(const __m256i (&parts)[kQuadsInInt16]) {
  const __m256i ones = _mm256_set1_epi8(1);
  const __m256i sum =
      _mm256_add_epi16(_mm256_maddubs_epi16(parts[0], ones), _mm256_maddubs_epi16(parts[1], ones));
  return _mm256_subs_epu16(sum, _mm256_set1_epi16(kMostInInt16));
}

// The largest of the four magnitudes of a lane gives what is too much first, then the others. On
// return, `parts` is what is taken.
QGEMM_AVX2 void TakeExcess(__m256i (&parts)[kQuadsInInt16], __m256i excess) {
  const __m256i low_bytes = _mm256_set1_epi16(0xff);
  __m256i part[4], taken[4];
  for (int i = 0; i < 4; ++i) {
    part[i] =
        i % 2 == 0 ? _mm256_and_si256(parts[i / 2], low_bytes) : _mm256_srli_epi16(parts[i / 2], 8);
  }
  const __m256i largest =
      _mm256_max_epu16(_mm256_max_epu16(part[0], part[1]), _mm256_max_epu16(part[2], part[3]));
  for (__m256i& t : taken) t = _mm256_setzero_si256();
  for (const bool first : {true, false}) {
    for (int i = 0; i < 4; ++i) {
      __m256i take = _mm256_min_epu16(part[i], excess);
      if (first) take = _mm256_and_si256(take, _mm256_cmpeq_epi16(part[i], largest));
      excess = _mm256_sub_epi16(excess, take);
      part[i] = _mm256_sub_epi16(part[i], take);
      taken[i] = _mm256_add_epi16(taken[i], take);
    }
  }
  for (int quad = 0; quad < kQuadsInInt16; ++quad) {
    parts[quad] = _mm256_or_si256(taken[2 * quad], _mm256_slli_epi16(taken[2 * quad + 1], 8));
  }
}

class Acc16Splitter final : public PanelSplitter {
 public:
  void SetRows(const std::uint8_t* a, std::int64_t a_stride, std::int64_t count,
               std::int64_t quads) override {
    a_ = a;
    a_stride_ = a_stride;
    count_ = count;
    quads_ = quads;
    transposed_ = nullptr;
    sums_ = sums_memory_.Reserve<std::int32_t>(std::size_t(RoundUp(count, kRows) * kPanelColumns));
    zero_sums_ = false;
  }

  void Split(const std::int8_t* panel, std::int64_t width) override {
    weights_ = weights_memory_.Reserve<std::int8_t>(std::size_t(quads_ * kQuad * kPanelColumns));
    const std::int64_t outliers = SplitQuads(panel, width);
    if (outliers > 0) {
      SortByColumn(outliers);
      if (transposed_ == nullptr) Transpose();
      for (std::int64_t row = 0; row < count_; row += kRows) Multiply(row, width);
    } else if (!zero_sums_) {
      std::fill_n(sums_, count_ * kPanelColumns, 0);
    }
    zero_sums_ = outliers == 0;
  }

  const std::int8_t* weights() const override { return weights_; }
  const std::int32_t* sums() const override { return sums_; }

 private:
  // Copies a panel without its outliers, and returns how many these are.
  QGEMM_AVX2 std::int64_t SplitQuads(const std::int8_t* panel, std::int64_t width) {
    const std::int64_t row = width * kQuad;  // bytes of a quad of all columns
    // Each weight can be one, and Keep writes ahead.
    outliers_ = outliers_memory_.Reserve<Outlier>(std::size_t(quads_ * row + kAtOnce));
    Outlier* end = outliers_;
    const __m256i zero = _mm256_setzero_si256();
    for (std::int64_t quad = 0; quad < quads_; quad += kQuadsInInt16) {
      const std::int64_t count = std::min<std::int64_t>(kQuadsInInt16, quads_ - quad);
      for (std::int64_t byte = quad * row; byte < (quad + 1) * row; byte += 32) {
        __m256i w[kQuadsInInt16] = {Load(panel + byte),
                                    count == 2 ? Load(panel + byte + row) : zero};
        for (;;) {
          __m256i positive[kQuadsInInt16], negative[kQuadsInInt16];
          for (int i = 0; i < kQuadsInInt16; ++i) {
            const __m256i below = _mm256_cmpgt_epi8(zero, w[i]);
            const __m256i magnitude = _mm256_abs_epi8(w[i]);
            positive[i] = _mm256_andnot_si256(below, magnitude);
            negative[i] = _mm256_and_si256(below, magnitude);
          }
          const __m256i excess = Excess(positive), other = Excess(negative);
          const __m256i either = _mm256_or_si256(excess, other);
          if (_mm256_testz_si256(either, either)) break;
          // A lane where it is both has its turn in the next round.
          const __m256i lower = _mm256_cmpeq_epi16(excess, zero);
          for (int i = 0; i < kQuadsInInt16; ++i) {
            positive[i] = _mm256_blendv_epi8(positive[i], negative[i], lower);
          }
          TakeExcess(positive, _mm256_blendv_epi8(excess, other, lower));
          for (int i = 0; i < count; ++i) {
            const __m256i outliers =
                _mm256_sub_epi8(_mm256_xor_si256(positive[i], lower), lower);  // negated
            w[i] = _mm256_sub_epi8(w[i], outliers);
            end = Keep(outliers, quad + i, (byte - quad * row) / kQuad, end);
          }
          if (_mm256_testc_si256(lower, _mm256_cmpgt_epi16(other, zero))) break;
        }
        for (int i = 0; i < count; ++i) Store(weights_ + byte + i * row, w[i]);
      }
    }
    return end - outliers_;
  }

  // Of eight columns. Most have few: these are written without asking how many.
  QGEMM_AVX2 static Outlier* Keep(__m256i outliers, std::int64_t quad, std::int64_t first_column,
                                  Outlier* to) {
    alignas(32) std::int8_t values[32 + 1] = {};
    _mm256_store_si256(reinterpret_cast<__m256i*>(values), outliers);
    const __m256i none = _mm256_cmpeq_epi8(outliers, _mm256_setzero_si256());
    std::uint64_t found = ~std::uint32_t(_mm256_movemask_epi8(none));
    Outlier* const end = to + __builtin_popcountll(found);
    do {
      for (int n = 0; n < kAtOnce; ++n, ++to, found &= found - 1) {
        const int i = __builtin_ctzll(found | 1ULL << 32);
        *to = {std::uint16_t(quad * kQuad + i % kQuad), std::uint8_t(first_column + i / kQuad),
               values[i]};
      }
    } while (to < end);
    return end;
  }

  void SortByColumn(std::int64_t count) {
    for (ColumnOutliers& column : columns_) column.Clear();
    for (std::int64_t i = 0; i < count; ++i) {
      const Outlier& outlier = outliers_[i];
      columns_[outlier.column].Add(outlier.k * std::uint32_t(kRows), outlier.value);
    }
  }

  // [blocks of kRows][k][kRows]; rows beyond the last are zeros.
  void Transpose() {
    const std::int64_t k = quads_ * kQuad;
    transposed_ = transposed_memory_.Reserve<std::uint8_t>(std::size_t(RoundUp(count_, kRows) * k));
    for (std::int64_t row = 0; row < RoundUp(count_, kRows); row += kTransposed) {
      std::uint8_t* to = transposed_ + row / kRows * kRows * k + row % kRows;
      for (std::int64_t column = 0; column < k; column += kTransposed) {
        TransposeBytes(row, column, std::min(kTransposed, k - column), to + column * kRows);
      }
    }
  }

  void TransposeBytes(std::int64_t row, std::int64_t column, std::int64_t columns,
                      std::uint8_t* to) {
    __m128i v[kTransposed];
    for (std::int64_t i = 0; i < kTransposed; ++i) {
      const std::uint8_t* const from = a_ + (row + i) * a_stride_ + column;
      std::uint8_t last[kTransposed] = {};
      const bool whole = row + i < count_ && columns == kTransposed;
      if (!whole && row + i < count_) std::memcpy(last, from, std::size_t(columns));
      v[i] = Load128(whole ? from : last);
    }
    // Each pass interleaves the halves; four of them transpose.
    for (int pass = 0; pass < 4; ++pass) {
      __m128i next[kTransposed];
      for (int i = 0; i < kTransposed / 2; ++i) {
        next[2 * i] = _mm_unpacklo_epi8(v[i], v[i + kTransposed / 2]);
        next[2 * i + 1] = _mm_unpackhi_epi8(v[i], v[i + kTransposed / 2]);
      }
      std::copy_n(next, kTransposed, v);
    }
    for (std::int64_t i = 0; i < columns; ++i) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * kRows), v[i]);
    }
  }

  // A block of rows by the outliers of a panel.
  QGEMM_AVX2 void Multiply(std::int64_t first_row, std::int64_t width) {
    constexpr std::int64_t kColumns = 8;  // transposed together
    const std::uint8_t* const x = transposed_ + first_row * quads_ * kQuad;
    for (std::int64_t column = 0; column < width; column += kColumns) {
      __m256i sums[kColumns][4];  // of eight rows each
      for (std::int64_t i = 0; i < kColumns; ++i) {
        MultiplyColumn(x, columns_[column + i].segments(), sums[i]);
      }
      for (int part = 0; part < 4; ++part) {
        const __m256i v[kColumns] = {sums[0][part], sums[1][part], sums[2][part], sums[3][part],
                                     sums[4][part], sums[5][part], sums[6][part], sums[7][part]};
        StoreTransposed(v, sums_ + (first_row + part * 8) * kPanelColumns + column);
      }
    }
  }

  QGEMM_AVX2 static void MultiplyColumn(const std::uint8_t* x, const std::vector<Segment>& segments,
                                        __m256i (&sums)[4]) {
    // Interleaving works within 128-bit lanes: rows 0 to 7 and 16 to 23 are in `even`.
    __m256i total[4];
    for (__m256i& t : total) t = _mm256_setzero_si256();
    for (const Segment& segment : segments) {
      __m256i even = _mm256_setzero_si256(), odd = even;
      for (int pair = 0; pair < kPairs; ++pair) {
        std::int16_t values;
        std::memcpy(&values, segment.values + 2 * pair, 2);
        const __m256i two = _mm256_set1_epi16(values);
        const __m256i a = Load(x + segment.offsets[2 * pair]);
        const __m256i b = Load(x + segment.offsets[2 * pair + 1]);
        even = _mm256_add_epi16(even, _mm256_maddubs_epi16(_mm256_unpacklo_epi8(a, b), two));
        odd = _mm256_add_epi16(odd, _mm256_maddubs_epi16(_mm256_unpackhi_epi8(a, b), two));
      }
      AddWidened(total[0], _mm256_castsi256_si128(even));
      AddWidened(total[1], _mm256_castsi256_si128(odd));
      AddWidened(total[2], _mm256_extracti128_si256(even, 1));
      AddWidened(total[3], _mm256_extracti128_si256(odd, 1));
    }
    std::copy_n(total, 4, sums);
  }

  QGEMM_AVX2 static void AddWidened(__m256i& total, __m128i v) {
    total = _mm256_add_epi32(total, _mm256_cvtepi16_epi32(v));
  }

  // Eight columns of eight rows.
  QGEMM_AVX2 static void StoreTransposed(const __m256i (&v)[8], std::int32_t* to) {
    __m256i pairs[8], quads[8];
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      quads[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
      quads[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
      quads[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
      quads[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for (int row = 0; row < 4; ++row) {
      Store(to + row * kPanelColumns, _mm256_permute2x128_si256(quads[row], quads[row + 4], 0x20));
      Store(to + (row + 4) * kPanelColumns,
            _mm256_permute2x128_si256(quads[row], quads[row + 4], 0x31));
    }
  }

  const std::uint8_t* a_ = nullptr;
  std::int64_t a_stride_ = 0, count_ = 0, quads_ = 0;
  Scratch weights_memory_, outliers_memory_, transposed_memory_, sums_memory_;
  std::int8_t* weights_ = nullptr;
  Outlier* outliers_ = nullptr;
  std::uint8_t* transposed_ = nullptr;  // once an outlier needs it
  std::int32_t* sums_ = nullptr;
  bool zero_sums_ = false;
  ColumnOutliers columns_[kPanelColumns];
};

}  // namespace

std::unique_ptr<PanelSplitter> MakeAcc16Splitter() { return std::make_unique<Acc16Splitter>(); }

}  // namespace qgemm
