// The AVX2 family. Micro-kernel: bytes widened to int16, vpmaddwd, vpaddd: exact, where the byte
// product vpmaddubsw would saturate. x comes as int16; weights are widened as they are loaded, once
// for all rows.
//
// A register of sums holds two partial sums (k 0,1 and k 2,3 of each quad) of four columns, so
// eight columns take two registers, which one horizontal addition joins at the end.
#include "codegen/families.h"
#include "codegen/row_emitter.h"
#include "codegen/tile_cache.h"
#include "codegen/tile_emitter.h"

namespace qgemm {
namespace {

constexpr int kPrefetchDistance = 4096;  // bytes ahead, as in vnni.cc

class Avx2TileEmitter final : public TileEmitter {
 public:
  explicit Avx2TileEmitter(const TileKey& key) : TileEmitter(VectorWidth::k256, key) {
    Begin();
    for (int i = 0; i < 2 * rows() * vectors(); ++i) Zero(V(i));
    LoopOverQuads(kQuadBytes);
    for (int row = 0; row < rows(); ++row) {
      for (int vector = 0; vector < vectors(); ++vector) JoinHalves(row, vector);
    }
    AddZeroPointTerms();
    End();
  }

 private:
  static constexpr int kQuadBytes = 8;  // of x, as int16

  Vec Half(int row, int vector, int half) const { return V((row * vectors() + vector) * 2 + half); }
  Vec Accumulator(int row, int vector) const override { return Half(row, vector, 0); }
  Vec Weights(int half) const { return V(12 + half); }
  Vec Broadcast() const { return V(14); }
  Vec Product() const { return V(15); }
  Vec Temporary(int i) const override { return V(12 + i); }

  void Quad(int quad) override {
    for (int vector = 0; vector < vectors(); ++vector) {
      const RegExp weights = reg_b + (quad * panel_bytes() + vector * 32);
      vpmovsxbw(Weights(0), xword[weights]);
      vpmovsxbw(Weights(1), xword[weights + 16]);
      if (streams() && vector % 2 == 0) prefetchnta(ptr[weights + kPrefetchDistance]);
      for (int row = 0; row < rows(); ++row) {
        vpbroadcastq(Broadcast(), qword[Row(reg_a, reg_a3, row, quad * kQuadBytes)]);
        vpmaddwd(Product(), Broadcast(), Weights(0));
        vpmaddwd(Broadcast(), Broadcast(), Weights(1));
        vpaddd(Half(row, vector, 0), Half(row, vector, 0), Product());
        vpaddd(Half(row, vector, 1), Half(row, vector, 1), Broadcast());
      }
    }
  }

  // vphaddd works within 128-bit lanes: columns 0 1 4 5 | 2 3 6 7, put in order by vpermq.
  void JoinHalves(int row, int vector) {
    const Xbyak::Ymm sum(Half(row, vector, 0).getIdx());
    vphaddd(sum, sum, Half(row, vector, 1));
    vpermq(sum, sum, 0xd8);
  }
};

}  // namespace

// Twelve registers of sums; a tile of few rows takes whole cache lines of the weights.
int Avx2MaxColumns(int rows) { return rows == 1 ? 32 : rows <= 3 ? 16 : 8; }

TileFn Avx2Tile(const TileKey& key) {
  static auto& cache = *new TileCache<Avx2TileEmitter>(Isa::kAvx2);
  return cache.Get(key);
}

RowKernels Avx2Rows(XType x) { return GeneratedRows(VectorWidth::k256, x); }

}  // namespace qgemm
