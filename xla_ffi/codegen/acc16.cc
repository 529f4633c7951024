// The second families of CPUs without VNNI, for large products: vpmaddubsw multiplies bytes and
// adds pairs of products in int16, at half the instructions of widening.cc. It saturates, so the
// weights it gets are those that SplitPanel leaves: no sum of two quads passes the range of int16.
// What was taken from them comes as sums to start from.
#include <algorithm>

#include "codegen/families.h"
#include "codegen/tile_cache.h"
#include "codegen/tile_emitter.h"
#include "gemm/acc16.h"

namespace qgemm {
namespace {

class Acc16TileEmitter : public TileEmitter {
 protected:
  Acc16TileEmitter(VectorWidth width, const TileKey& key) : TileEmitter(width, key) {
    LoadSums();
    AddZeroPointTerms();
    Begin();
    LoadConstant(Ones(), 0x00010001);
    LoopOverQuads(kQuadBytes);
    End();
  }

 private:
  static constexpr int kQuadBytes = 4;
  Vec Accumulator(int row, int vector) const override { return V(row * vectors() + vector); }
  Vec Temporary(int i) const override { return V((wide() ? 24 : 12) + i); }
  // Of the K loop.
  Vec Weights(int quad) const { return V((wide() ? 24 : 10) + quad); }
  Vec Product(int quad) const { return V((wide() ? 26 : 12) + quad); }
  Vec Ones() const { return V(wide() ? 28 : 14); }

  void Quads(int count) override {
    for (int quad = 0; quad < count; quad += kQuadsInInt16) {
      Multiply(quad, std::min(kQuadsInInt16, count - quad));
    }
  }
  void Quad(int quad) override { Multiply(quad, 1); }

  void Multiply(int first, int count) {
    for (int vector = 0; vector < vectors(); ++vector) {
      for (int i = 0; i < count; ++i) {
        const int offset = (first + i) * panel_bytes() + vector * vector_bytes();
        LoadInt(Weights(i), ptr[reg_b + offset]);
      }
      for (int row = 0; row < rows(); ++row) {
        for (int i = 0; i < count; ++i) {
          vpbroadcastd(Product(i), dword[Row(reg_a, reg_a3, row, (first + i) * kQuadBytes)]);
          vpmaddubsw(Product(i), Product(i), Weights(i));
        }
        if (count == 2) vpaddw(Product(0), Product(0), Product(1));
        vpmaddwd(Product(0), Product(0), Ones());
        vpaddd(Accumulator(row, vector), Accumulator(row, vector), Product(0));
      }
    }
  }
};

struct Avx512BwAcc16TileEmitter final : Acc16TileEmitter {
  explicit Avx512BwAcc16TileEmitter(const TileKey& key)
      : Acc16TileEmitter(VectorWidth::k512, key) {}
};

struct Avx2Acc16TileEmitter final : Acc16TileEmitter {
  explicit Avx2Acc16TileEmitter(const TileKey& key) : Acc16TileEmitter(VectorWidth::k256, key) {}
};

}  // namespace

int Avx512BwAcc16MaxColumns(int) { return 64; }

TileFn Avx512BwAcc16Tile(const TileKey& key) {
  static auto& cache = *new TileCache<Avx512BwAcc16TileEmitter>(Isa::kAvx512Bw);
  return cache.Get(key);
}

int Avx2Acc16MaxColumns(int rows) { return rows == 1 ? 64 : rows == 2 ? 32 : 16; }

TileFn Avx2Acc16Tile(const TileKey& key) {
  static auto& cache = *new TileCache<Avx2Acc16TileEmitter>(Isa::kAvx2);
  return cache.Get(key);
}

}  // namespace qgemm
