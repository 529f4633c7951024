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

// Only CPUs with AVX2, and then with BMI1, have a family that splits. Without BMI1 the bits of a
// mask take 1.15 times as long (Zen 3).
#define QGEMM_AVX2 __attribute__((target("avx2,bmi,popcnt")))

namespace qgemm {
namespace {

constexpr std::int64_t kRows = 32;        // of a block of the copy of x
constexpr std::int64_t kTransposed = 16;  // rows and columns at a time
constexpr int kPairs = 3;                 // of a segment
constexpr int kAtOnce = 4;                // outliers that are written without counting

// Outliers of one column whose products with x fit int16 together: two of each pair, their values
// twice.
struct Segment {
  std::uint32_t offsets[2 * kPairs];  // in a block of the copy of x
  std::int8_t values[4 * kPairs];
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

// Per lane of int16, what the magnitudes of one sign, as quads, are too much by.
QGEMM_AVX2 __m256i Excess(const __m256i (&parts)[kQuadsInInt16]) {
  const __m256i ones = _mm256_set1_epi8(1);
  const __m256i sum =
      _mm256_add_epi16(_mm256_maddubs_epi16(parts[0], ones), _mm256_maddubs_epi16(parts[1], ones));
  return _mm256_subs_epu16(sum, _mm256_set1_epi16(kMostInInt16));
}

// The largest of the four magnitudes of a lane gives what is too much. On return, `parts` is what
// is taken and `excess` what is left to take: seldom anything.
QGEMM_AVX2 void TakeExcess(__m256i (&parts)[kQuadsInInt16], __m256i& excess) {
  const __m256i low_bytes = _mm256_set1_epi16(0xff);
  __m256i part[4];
  for (int i = 0; i < 4; ++i) {
    part[i] =
        i % 2 == 0 ? _mm256_and_si256(parts[i / 2], low_bytes) : _mm256_srli_epi16(parts[i / 2], 8);
  }
  const __m256i largest =
      _mm256_max_epu16(_mm256_max_epu16(part[0], part[1]), _mm256_max_epu16(part[2], part[3]));
  for (__m256i& p : part) {
    p = _mm256_min_epu16(_mm256_and_si256(p, _mm256_cmpeq_epi16(p, largest)), excess);
    excess = _mm256_sub_epi16(excess, p);
  }
  for (int quad = 0; quad < kQuadsInInt16; ++quad) {
    parts[quad] = _mm256_or_si256(part[2 * quad], _mm256_slli_epi16(part[2 * quad + 1], 8));
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

  void Split(const std::int8_t* panel, std::int64_t width, std::int64_t columns) override {
    weights_ = weights_memory_.Reserve<std::int8_t>(std::size_t(quads_ * kQuad * kPanelColumns));
    const std::int64_t outliers = SplitQuads(panel, width, std::min(columns, width));
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
  // Copies a panel without its outliers, in strips of so many columns, and returns how many these
  // are.
  QGEMM_AVX2 std::int64_t SplitQuads(const std::int8_t* panel, std::int64_t width,
                                     std::int64_t columns) {
    // Each weight can be one, and Keep writes ahead.
    outliers_ = outliers_memory_.Reserve<Outlier>(std::size_t(quads_ * kQuad * width + kAtOnce));
    Outlier* end = outliers_;
    const __m256i zero = _mm256_setzero_si256();
    for (std::int64_t quad = 0; quad < quads_; quad += kQuadsInInt16) {
      const std::int64_t count = std::min<std::int64_t>(kQuadsInInt16, quads_ - quad);
      for (std::int64_t strip = 0; strip < width; strip += columns) {
        const std::int8_t* const from = panel + (quad * width + strip) * kQuad;
        std::int8_t* const to = weights_ + (strip * quads_ + quad * columns) * kQuad;
        for (std::int64_t column = 0; column < columns; column += 8) {
          const std::int64_t byte = column * kQuad;
          __m256i w[kQuadsInInt16] = {Load(from + byte),
                                      count == 2 ? Load(from + byte + width * kQuad) : zero};
          end = TakeOutliers(w, quad, strip + column, end);
          Store(to + byte, w[0]);
          if (count == 2) Store(to + byte + columns * kQuad, w[1]);
        }
      }
    }
    return end - outliers_;
  }

  // Of two quads of eight columns, whose outliers join those before `end`.
  QGEMM_AVX2 static Outlier* TakeOutliers(__m256i (&w)[kQuadsInInt16], std::int64_t quad,
                                          std::int64_t first_column, Outlier* end) {
    const __m256i zero = _mm256_setzero_si256();
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
      if (_mm256_testz_si256(either, either)) return end;
      // A lane where it is both has its turn in the next round.
      const __m256i lower = _mm256_cmpeq_epi16(excess, zero);
      for (int i = 0; i < kQuadsInInt16; ++i) {
        positive[i] = _mm256_blendv_epi8(positive[i], negative[i], lower);
      }
      __m256i left = _mm256_blendv_epi8(excess, other, lower);
      TakeExcess(positive, left);
      __m256i outliers[kQuadsInInt16];
      for (int i = 0; i < kQuadsInInt16; ++i) {
        outliers[i] = _mm256_sub_epi8(_mm256_xor_si256(positive[i], lower), lower);
        w[i] = _mm256_sub_epi8(w[i], outliers[i]);
      }
      end = Keep(outliers, quad, first_column, end);
      left = _mm256_or_si256(left, _mm256_andnot_si256(lower, other));
      if (_mm256_testz_si256(left, left)) return end;
    }
  }

  // Most have few: these are written without asking how many.
  QGEMM_AVX2 static Outlier* Keep(const __m256i (&outliers)[kQuadsInInt16], std::int64_t quad,
                                  std::int64_t first_column, Outlier* to) {
    alignas(32) std::int8_t values[64 + 1];
    values[64] = 0;
    std::uint64_t found = 0;
    for (int i = 0; i < kQuadsInInt16; ++i) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(values + 32 * i), outliers[i]);
      const __m256i none = _mm256_cmpeq_epi8(outliers[i], _mm256_setzero_si256());
      found |= std::uint64_t(~std::uint32_t(_mm256_movemask_epi8(none))) << 32 * i;
    }
    Outlier* const end = to + __builtin_popcountll(found);
    do {
      for (int n = 0; n < kAtOnce; ++n, ++to, found &= found - 1) {
        const int i = found == 0 ? 64 : __builtin_ctzll(found);
        *to = {std::uint16_t((quad + i / 32) * kQuad + i % kQuad),
               std::uint8_t(first_column + i % 32 / kQuad), values[i]};
      }
    } while (to < end);
    return end;
  }

  // Makes the segments of each column.
  void SortByColumn(std::int64_t count) {
    std::int64_t at[kPanelColumns + 1] = {};
    for (std::int64_t i = 0; i < count; ++i) ++at[outliers_[i].column + 1];
    for (std::int64_t i = 0; i < kPanelColumns; ++i) at[i + 1] += at[i];
    auto* const sorted = sorted_memory_.Reserve<Outlier>(std::size_t(count));
    for (std::int64_t i = 0; i < count; ++i) sorted[at[outliers_[i].column]++] = outliers_[i];
    segments_.clear();
    const Outlier* outlier = sorted;
    for (std::int64_t column = 0; column < kPanelColumns; ++column) {
      outlier = AddColumn(outlier, sorted + at[column]);
      if (segments_.size() % 2 != 0) segments_.emplace_back();
      columns_end_[column] = segments_.size();
    }
  }

  const Outlier* AddColumn(const Outlier* outlier, const Outlier* end) {
    while (outlier < end) {
      Segment& segment = segments_.emplace_back();
      int positive = 0, negative = 0;  // what its values add up to
      for (int used = 0; used < 2 * kPairs && outlier < end; ++used, ++outlier) {
        positive += std::max<int>(0, outlier->value);
        negative -= std::min<int>(0, outlier->value);
        if (std::max(positive, negative) > kMostInInt16) break;
        segment.offsets[used] = outlier->k * std::uint32_t(kRows);
        std::int8_t* const twice = segment.values + used / 2 * 4 + used % 2;
        twice[0] = twice[2] = outlier->value;
      }
    }
    return outlier;
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
      __m256i sums[kColumns][4];
      for (std::int64_t i = column; i < column + kColumns; ++i) {
        const Segment* const all = segments_.data();
        MultiplyColumn(x, all + (i == 0 ? 0 : columns_end_[i - 1]), all + columns_end_[i],
                       sums[i - column]);
      }
      for (int part = 0; part < 4; ++part) {
        const __m256i v[kColumns] = {sums[0][part], sums[1][part], sums[2][part], sums[3][part],
                                     sums[4][part], sums[5][part], sums[6][part], sums[7][part]};
        StoreTransposed(v, sums_ + (first_row + part * 4) * kPanelColumns + column);
      }
    }
  }

  // Rows 4 i to 4 i + 3 are in the lower half of sums[i], those 16 further on in the upper one:
  // interleaving works within 128-bit lanes.
  QGEMM_AVX2 static void MultiplyColumn(const std::uint8_t* x, const Segment* segment,
                                        const Segment* end, __m256i (&sums)[4]) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i total[4];
    for (__m256i& t : total) t = _mm256_setzero_si256();
    for (; segment < end; segment += 2) {
      __m256i even[2], odd[2];
      for (int i = 0; i < 2; ++i) MultiplySegment(x, segment[i], even[i], odd[i]);
      const __m256i both[4] = {
          _mm256_unpacklo_epi16(even[0], even[1]), _mm256_unpackhi_epi16(even[0], even[1]),
          _mm256_unpacklo_epi16(odd[0], odd[1]), _mm256_unpackhi_epi16(odd[0], odd[1])};
      for (int part = 0; part < 4; ++part) {
        total[part] = _mm256_add_epi32(total[part], _mm256_madd_epi16(both[part], ones));
      }
    }
    std::copy_n(total, 4, sums);
  }

  // Rows 0 to 7 and 16 to 23, and the others.
  QGEMM_AVX2 static void MultiplySegment(const std::uint8_t* x, const Segment& segment,
                                         __m256i& even, __m256i& odd) {
    even = odd = _mm256_setzero_si256();
    for (int pair = 0; pair < kPairs; ++pair) {
      std::int32_t twice;
      std::memcpy(&twice, segment.values + 4 * pair, sizeof twice);
      const __m256i values = _mm256_set1_epi32(twice);
      const __m256i a = Load(x + segment.offsets[2 * pair]);
      const __m256i b = Load(x + segment.offsets[2 * pair + 1]);
      even = _mm256_add_epi16(even, _mm256_maddubs_epi16(_mm256_unpacklo_epi8(a, b), values));
      odd = _mm256_add_epi16(odd, _mm256_maddubs_epi16(_mm256_unpackhi_epi8(a, b), values));
    }
  }

  // Eight columns of four rows and of four 16 further on.
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
      Store(to + (row + 16) * kPanelColumns,
            _mm256_permute2x128_si256(quads[row], quads[row + 4], 0x31));
    }
  }

  const std::uint8_t* a_ = nullptr;
  std::int64_t a_stride_ = 0, count_ = 0, quads_ = 0;
  Scratch weights_memory_, outliers_memory_, sorted_memory_, transposed_memory_, sums_memory_;
  std::int8_t* weights_ = nullptr;
  Outlier* outliers_ = nullptr;
  std::uint8_t* transposed_ = nullptr;  // once an outlier needs it
  std::int32_t* sums_ = nullptr;
  bool zero_sums_ = false;
  std::vector<Segment> segments_;  // column after column, an even number of each
  std::size_t columns_end_[kPanelColumns] = {};
};

}  // namespace

std::unique_ptr<PanelSplitter> MakeAcc16Splitter() { return std::make_unique<Acc16Splitter>(); }

}  // namespace qgemm
