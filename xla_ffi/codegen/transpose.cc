// Panels of the transpose by AVX2: 8 columns by 16 elements of K at a time, in registers.
#include <immintrin.h>

#include <cstring>

#include "codegen/families.h"
#include "gemm/transpose.h"
#include "portable/half.h"

// Only CPUs with all three have kernels that are generated.
#define QGEMM_AVX2 __attribute__((target("avx2,fma,f16c")))

namespace qgemm {
namespace {

QGEMM_AVX2 __m256i LoadStep(const TransposeUnit& unit, std::int64_t step) {
  if (step >= unit.valid_steps) return _mm256_setzero_si256();
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit.steps + step * unit.step_bytes));
}

// 4 x 4 of 32 bits in each half: v[j] has column j in its low half, j + 4 in its high one.
QGEMM_AVX2 void Transpose4(__m256i (&v)[4]) {
  const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
  const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm256_unpacklo_epi64(a, c);
  v[1] = _mm256_unpackhi_epi64(a, c);
  v[2] = _mm256_unpacklo_epi64(b, d);
  v[3] = _mm256_unpackhi_epi64(b, d);
}

// 8 x 8 of 32 bits.
QGEMM_AVX2 void Transpose8(__m256i (&v)[8]) {
  __m256i low[4] = {v[0], v[1], v[2], v[3]}, high[4] = {v[4], v[5], v[6], v[7]};
  Transpose4(low);
  Transpose4(high);
  for (int j = 0; j < 4; ++j) {
    v[j] = _mm256_permute2x128_si256(low[j], high[j], 0x20);
    v[j + 4] = _mm256_permute2x128_si256(low[j], high[j], 0x31);
  }
}

QGEMM_AVX2 void Store(const TransposeUnit& unit, int column, int half, __m256 values) {
  if (column < unit.columns) {
    _mm256_storeu_ps(unit.to + column * unit.to_stride + half * 8, values);
  }
}

// Per column scale and, unless null, minimum, of 8 columns.
struct BlockColumns {
  float scale[8], minimum[8];
};

QGEMM_AVX2 __m256 LoadScales(ScaleType type, const std::uint8_t* from, std::int64_t count) {
  alignas(32) std::uint8_t bytes[32] = {};
  std::memcpy(bytes, from, std::size_t(count * (type == ScaleType::kF32 ? 4 : 2)));
  const auto halves = _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
  switch (type) {
    case ScaleType::kF16:
      return _mm256_cvtph_ps(halves);
    case ScaleType::kBf16:
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    case ScaleType::kF32:
      break;
  }
  return _mm256_load_ps(reinterpret_cast<const float*>(bytes));
}

QGEMM_AVX2 BlockColumns ColumnsOf(const TransposeUnit& unit, int offset) {
  const auto load = [&unit](std::int64_t bytes) QGEMM_AVX2 {
    return LoadScales(unit.form.scale, unit.block_scales + bytes, unit.columns);
  };
  const __m256 scale = load(0);
  const __m256 minimum = unit.form.minimum ? load(unit.minimum_offset)
                                           : _mm256_mul_ps(scale, _mm256_set1_ps(float(-offset)));
  BlockColumns columns;
  _mm256_storeu_ps(columns.scale, scale);
  _mm256_storeu_ps(columns.minimum, minimum);
  return columns;
}

// `v`: bytes of K, four of each column. `values(bytes, column)` makes f32 of eight of them.
template <class Values>
QGEMM_AVX2 void StoreBytes(const TransposeUnit& unit, __m256i (&v)[4], const Values& values) {
  Transpose4(v);
  for (int j = 0; j < 8; ++j) {
    const __m128i bytes =
        j < 4 ? _mm256_castsi256_si128(v[j]) : _mm256_extracti128_si256(v[j - 4], 1);
    Store(unit, j, 0, values(bytes, j));
    Store(unit, j, 1, values(_mm_unpackhi_epi64(bytes, bytes), j));
  }
}

QGEMM_AVX2 void OfBytes(const TransposeUnit& unit) {
  __m256i v[4];
  for (int i = 0; i < 4; ++i) v[i] = LoadStep(unit, i);
  StoreBytes(unit, v, [&unit](__m128i bytes, int j) QGEMM_AVX2 {
    if (j >= unit.columns) return _mm256_setzero_ps();
    __m256i q = _mm256_cvtepi8_epi32(bytes);
    if (unit.zero != nullptr) q = _mm256_sub_epi32(q, _mm256_set1_epi32(unit.zero[j]));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(q), _mm256_set1_ps(unit.scale[j]));
  });
}

template <WType kType>
QGEMM_AVX2 void OfBlocks(const TransposeUnit& unit) {
  __m256i v[4];
  if (kType == WType::kU4) {
    const __m256i low = _mm256_set1_epi8(0xf);
    for (int i = 0; i < 2; ++i) {
      const __m256i step = LoadStep(unit, i);
      v[2 * i] = _mm256_and_si256(step, low);
      v[2 * i + 1] = _mm256_and_si256(_mm256_srli_epi32(step, 4), low);
    }
  } else {
    for (int i = 0; i < 4; ++i) v[i] = LoadStep(unit, i);
  }
  const BlockColumns columns = ColumnsOf(unit, Offset(kType));
  StoreBytes(unit, v, [&columns](__m128i bytes, int j) QGEMM_AVX2 {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
                           _mm256_set1_ps(columns.scale[j]), _mm256_set1_ps(columns.minimum[j]));
  });
}

QGEMM_AVX2 void OfBf16(const TransposeUnit& unit) {
  __m256i v[8];
  for (int i = 0; i < 8; ++i) v[i] = LoadStep(unit, i);
  Transpose8(v);
  for (int j = 0; j < 8; ++j) {
    for (int half = 0; half < 2; ++half) {
      const __m128i bits =
          half == 0 ? _mm256_castsi256_si128(v[j]) : _mm256_extracti128_si256(v[j], 1);
      const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
      Store(unit, j, half, _mm256_castsi256_ps(wide));
    }
  }
}

QGEMM_AVX2 void OfF16(const TransposeUnit& unit) {
  for (int half = 0; half < 2; ++half) {
    __m256i v[8];
    for (int i = 0; i < 8; ++i) {
      const int step = half * 4 + i / 2;
      v[i] = _mm256_setzero_si256();
      if (step >= unit.valid_steps) continue;
      const std::uint8_t* from = unit.steps + step * unit.step_bytes + i % 2 * kColumnUnit * 2;
      v[i] = _mm256_castps_si256(
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
    }
    Transpose8(v);
    for (int j = 0; j < 8; ++j) Store(unit, j, half, _mm256_castsi256_ps(v[j]));
  }
}

}  // namespace

void Avx2Transpose(const TransposeSource& source, std::int64_t panel, float* to) {
  switch (source.layout.w) {
    case WType::kS8:
      return ForUnits(source, panel, to, OfBytes);
    case WType::kF16:
      return ForUnits(source, panel, to, OfF16);
    case WType::kBf16:
      return ForUnits(source, panel, to, OfBf16);
    case WType::kU4:
      return ForUnits(source, panel, to, OfBlocks<WType::kU4>);
    case WType::kU8:
      return ForUnits(source, panel, to, OfBlocks<WType::kU8>);
    case WType::kF32:
      break;  // never packed
  }
}

}  // namespace qgemm
