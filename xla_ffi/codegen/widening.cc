// The families without VNNI: AVX-512 BW, with up to 6 x 32 sums in 24 of 32 registers, and AVX2,
// with 12 of 16. Bytes widened to int16, vpmaddwd, vpaddd: exact, where the byte product vpmaddubsw
// would saturate. x comes as int16; weights are widened as they are loaded, once for all rows.
//
// A register of sums holds two partial sums (k 0,1 and k 2,3 of each quad) of half a vector of
// columns; its two registers are joined at the end.
#include "codegen/families.h"
#include "codegen/row_emitter.h"
#include "codegen/stream.h"
#include "codegen/tile_cache.h"
#include "codegen/tile_emitter.h"

namespace qgemm {
namespace {

class WideningTileEmitter : public TileEmitter {
 protected:
  WideningTileEmitter(VectorWidth width, const TileKey& key)
      : TileEmitter(width, key), words_(!wide() && rows() == 1 && streams()) {
    Begin();
    for (int i = 0; i < (words_ ? 1 : 2) * rows() * vectors(); ++i) Zero(V(i));
    LoopOverQuads(kQuadBytes);
    for (int row = 0; row < rows() && !words_; ++row) {
      for (int vector = 0; vector < vectors(); ++vector) JoinHalves(row, vector);
    }
    if (key.from_sums) AddSums();
    AddZeroPointTerms();
    End();
  }

 private:
  static constexpr int kQuadBytes = 8;  // of x, as int16

  Vec Half(int row, int vector, int half) const { return V((row * vectors() + vector) * 2 + half); }
  Vec Accumulator(int row, int vector) const override {
    return words_ ? V(vector) : Half(row, vector, 0);
  }
  Vec Temporary(int i) const override { return V((wide() ? 24 : 12) + i); }
  Vec Weights(int half) const { return Temporary(half); }
  Vec Broadcast() const { return Temporary(2); }
  Vec Product() const { return Temporary(3); }

  // Of one row from memory: even bytes meet k 0 2 of x, odd ones k 1 3, so a column has one sum,
  // and a whole panel is read in order (Zen 3, 1x4096x4096: 1.5 times as fast; in the L2 a fifth
  // slower).
  void QuadByWords(int quad) {
    const Vec x_even = V(8), x_odd = V(9), even = V(10), odd = V(11);
    vpbroadcastq(x_odd, qword[reg_a + quad * kQuadBytes]);
    vpshufb(x_even, x_odd, Constant(0x05040100));
    vpshufb(x_odd, x_odd, Constant(0x07060302));
    for (int vector = 0; vector < vectors(); ++vector) {
      const int offset = quad * panel_bytes() + vector * vector_bytes();
      if (offset % 64 == 0) FetchStream(*this, reg_b + offset);
      vmovups(even, ptr[reg_b + offset]);
      vpsraw(odd, even, 8);
      vpsllw(even, even, 8);
      vpsraw(even, even, 8);
      vpmaddwd(odd, odd, x_odd);
      vpmaddwd(even, even, x_even);
      vpaddd(V(vector), V(vector), odd);
      vpaddd(V(vector), V(vector), even);
    }
  }

  void Quad(int quad) override {
    if (words_) {
      QuadByWords(quad);
      return;
    }
    for (int vector = 0; vector < vectors(); ++vector) {
      const int offset = quad * panel_bytes() + vector * vector_bytes();
      for (int half = 0; half < 2; ++half) {
        const RegExp weights = reg_b + (offset + half * vector_bytes() / 2);
        vpmovsxbw(Weights(half), wide() ? yword[weights] : xword[weights]);
      }
      if (streams() && offset % 64 == 0) FetchStream(*this, reg_b + offset);
      for (int row = 0; row < rows(); ++row) {
        vpbroadcastq(Broadcast(), qword[Row(reg_a, reg_a3, row, quad * kQuadBytes)]);
        vpmaddwd(Product(), Broadcast(), Weights(0));
        vpmaddwd(Broadcast(), Broadcast(), Weights(1));
        vpaddd(Half(row, vector, 0), Half(row, vector, 0), Product());
        vpaddd(Half(row, vector, 1), Half(row, vector, 1), Broadcast());
      }
    }
  }

  // Neighbours are added within 128-bit lanes, which leaves columns 0 1 of half 0, 0 1 of half 1,
  // then 2 3 of either; on 512 bits up to 6 7. Pairs of columns are put in order.
  void JoinHalves(int row, int vector) {
    const Vec first = Half(row, vector, 0), second = Half(row, vector, 1);
    if (!wide()) {
      const Xbyak::Ymm sum(first.getIdx());
      vphaddd(sum, sum, second);
      vpermq(sum, sum, 0xd8);
      return;
    }
    const Xbyak::Zmm sum(first.getIdx()), odd(Product().getIdx());
    vshufps(odd, sum, second, 0xdd);
    vshufps(sum, sum, second, 0x88);
    vpaddd(sum, sum, odd);
    vpermq(sum, sum, 0xd8);
    vshufi64x2(sum, sum, sum, 0xd8);
  }

  const bool words_;
};

struct Avx512BwTileEmitter final : WideningTileEmitter {
  explicit Avx512BwTileEmitter(const TileKey& key) : WideningTileEmitter(VectorWidth::k512, key) {}
};

struct Avx2TileEmitter final : WideningTileEmitter {
  explicit Avx2TileEmitter(const TileKey& key) : WideningTileEmitter(VectorWidth::k256, key) {}
};

}  // namespace

int Avx512BwMaxColumns(int rows) { return rows <= 3 ? 64 : 32; }

TileFn Avx512BwTile(const TileKey& key) {
  static auto& cache = *new TileCache<Avx512BwTileEmitter>(Isa::kAvx512Bw);
  return cache.Get(key);
}

RowKernels Avx512BwRows(XType x) { return GeneratedRows(VectorWidth::k512, x); }

// A tile of few rows takes whole cache lines of the weights.
int Avx2MaxColumns(int rows) { return rows == 1 ? 32 : rows <= 3 ? 16 : 8; }

TileFn Avx2Tile(const TileKey& key) {
  static auto& cache = *new TileCache<Avx2TileEmitter>(Isa::kAvx2);
  return cache.Get(key);
}

RowKernels Avx2Rows(XType x) { return GeneratedRows(VectorWidth::k256, x); }

}  // namespace qgemm
