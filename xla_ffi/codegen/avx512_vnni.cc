// The AVX-512 VNNI family. Micro-kernel: vpdpbusd, up to 6 x 64 outputs in 24 registers, 4 for a
// quad of the weights of 64 columns, the rest for broadcast quads of x.
#include "codegen/families.h"
#include "codegen/row_emitter.h"
#include "codegen/tile_cache.h"
#include "codegen/tile_emitter.h"

namespace qgemm {
namespace {

// Tiles of few rows are bound by the latency of vpdpbusd (4 to 5 cycles) unless they sum the quads
// of even and odd index apart.
constexpr int kFewAccumulators = 8;
// Tiles of few rows stream the weights: so many rows, so far ahead in bytes.
constexpr int kStreamingRows = 4;
constexpr int kPrefetchDistance = 2048;

class Avx512VnniTileEmitter final : public TileEmitter {
 public:
  explicit Avx512VnniTileEmitter(const TileKey& key)
      : TileEmitter(VectorWidth::k512, key), sets_(rows() * vectors() <= kFewAccumulators ? 2 : 1) {
    Begin();
    for (int i = 0; i < sets_ * rows() * vectors(); ++i) Zero(V(i));
    LoopOverQuads(kQuadBytes);
    for (int i = 0; sets_ == 2 && i < rows() * vectors(); ++i) {
      vpaddd(V(i), V(i), V(i + rows() * vectors()));
    }
    End();
  }

 private:
  static constexpr int kQuadBytes = 4;

  Vec Sum(int set, int row, int vector) const {
    return V((set * rows() + row) * vectors() + vector);
  }
  Vec Accumulator(int row, int vector) const override { return Sum(0, row, vector); }
  Vec Weights(int vector) const { return V(24 + vector); }
  Vec Broadcast(int row) const { return V(28 + row % 4); }
  Vec Temporary(int i) const override { return V(28 + i); }

  // One quad of K: weights are loaded once for all rows.
  void Quad(int quad) override {
    const int set = quad % sets_;
    for (int vector = 0; vector < vectors(); ++vector) {
      const RegExp weights = reg_b + (quad * panel_bytes() + vector * 64);
      vmovups(Weights(vector), ptr[weights]);
      if (rows() <= kStreamingRows) prefetcht0(ptr[weights + kPrefetchDistance]);
    }
    for (int row = 0; row < rows(); ++row) {
      vpbroadcastd(Broadcast(row), dword[Row(reg_a, reg_a3, row, quad * kQuadBytes)]);
      for (int vector = 0; vector < vectors(); ++vector) {
        vpdpbusd(Sum(set, row, vector), Broadcast(row), Weights(vector));
      }
    }
  }

  const int sets_;
};

}  // namespace

int Avx512VnniMaxColumns(int) { return 64; }

TileFn Avx512VnniTile(const TileKey& key) {
  static auto& cache = *new TileCache<Avx512VnniTileEmitter>;
  return cache.Get(key);
}

RowKernels Avx512VnniRows(XType x) { return GeneratedRows(VectorWidth::k512, x); }

}  // namespace qgemm
