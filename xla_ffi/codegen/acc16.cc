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
  Vec Broadcast(int quad) const { return V((wide() ? 24 : 10) + quad); }
  Vec Product(int quad) const { return V((wide() ? 26 : 12) + quad); }
  Vec Ones() const { return V(wide() ? 28 : 14); }
  Vec FirstWeights() const { return V(wide() ? 29 : 15); }

  void Quads(int count) override {
    for (int quad = 0; quad < count; quad += kQuadsInInt16) {
      Multiply(quad, std::min(kQuadsInInt16, count - quad));
    }
  }
  void Quad(int quad) override { Multiply(quad, 1); }

  // A row at a time: a broadcast serves all vectors, and the last one's products take its place.
  // Two loads a cycle keep up with what multiplies, so that weights need no registers.
  void Multiply(int first, int count) {
    const auto weights = [&](int quad, int vector) {
      return ptr[reg_b + ((first + quad) * panel_bytes() + vector * vector_bytes())];
    };
    LoadInt(FirstWeights(), weights(0, 0));
    for (int row = 0; row < rows(); ++row) {
      for (int i = 0; i < count; ++i) {
        vpbroadcastd(Broadcast(i), dword[Row(reg_a, reg_a3, row, (first + i) * kQuadBytes)]);
      }
      for (int vector = 0; vector < vectors(); ++vector) {
        const auto product = [&](int i) {
          return vector + 1 < vectors() ? Product(i) : Broadcast(i);
        };
        for (int i = 0; i < count; ++i) {
          if (i == 0 && vector == 0) {
            vpmaddubsw(product(i), Broadcast(i), FirstWeights());
          } else {
            vpmaddubsw(product(i), Broadcast(i), weights(i, vector));
          }
        }
        if (count == 2) vpaddw(product(0), product(0), product(1));
        vpmaddwd(product(0), product(0), Ones());
        vpaddd(Accumulator(row, vector), Accumulator(row, vector), product(0));
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

// For tiles of any number of rows: they read the same copy of a panel (PanelSplitter::Split).
int Avx512BwAcc16MaxColumns(int) { return 64; }

TileFn Avx512BwAcc16Tile(const TileKey& key) {
  static auto& cache = *new TileCache<Avx512BwAcc16TileEmitter>(Isa::kAvx512Bw, "_acc16");
  return cache.Get(key);
}

int Avx2Acc16MaxColumns(int) { return 16; }

TileFn Avx2Acc16Tile(const TileKey& key) {
  static auto& cache = *new TileCache<Avx2Acc16TileEmitter>(Isa::kAvx2, "_acc16");
  return cache.Get(key);
}

}  // namespace qgemm
