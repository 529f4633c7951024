// The families with VNNI, whose vpdpbusd adds four products of unsigned by signed bytes to an
// int32: AVX-512 VNNI, with up to 6 x 64 sums in 24 of 32 registers, and AVX-VNNI, with 12 of 16.
// The same of bfloat16 on both sides: vdpbf16ps adds two products to an f32.
//
// A quad of the weights is loaded once for all rows, a quad of x is broadcast for all columns.
#include "codegen/encoding.h"
#include "codegen/families.h"
#include "codegen/row_emitter.h"
#include "codegen/stream.h"
#include "codegen/tile_cache.h"
#include "codegen/tile_emitter.h"

namespace qgemm {
namespace {

class VnniTileEmitter : public TileEmitter {
 protected:
  VnniTileEmitter(VectorWidth width, const TileKey& key)
      : TileEmitter(width, key),
        bf16_(key.w == WType::kBf16),
        tile_(rows() * vectors()),
        sets_(tile_ <= FewSums() && !bf16_ ? 2 : 1) {
    if (key.from_sums) {
      LoadSums();
      AddZeroPointTerms();
    } else {
      StartFromZeroPointTerms();
    }
    for (int i = tile_; i < sets_ * tile_; ++i) Zero(V(i));
    Begin();
    LoopOverQuads(kQuadBytes);
    for (int i = 0; sets_ == 2 && i < tile_; ++i) vpaddd(V(i), V(i), V(i + tile_));
    End();
  }

 private:
  static constexpr int kQuadBytes = 4;

  // vpdpbusd takes 4 to 5 cycles: tiles of so few sums add quads of even and odd index apart. Sums
  // of floats keep their order.
  int FewSums() const { return wide() ? 8 : 6; }
  Vec Sum(int set, int row, int vector) const { return V(set * tile_ + row * vectors() + vector); }
  Vec Accumulator(int row, int vector) const override { return Sum(0, row, vector); }
  Vec Weights(int vector) const { return V((wide() ? 24 : sets_ * tile_) + vector); }
  Vec Broadcast(int row) const { return wide() ? V(28 + row % 4) : V(14 + row % 2); }
  Vec Temporary(int i) const override { return V((wide() ? 24 : 12) + i); }

  void Quad(int quad) override {
    const int set = quad % sets_;
    for (int vector = 0; vector < vectors(); ++vector) {
      const int offset = quad * panel_bytes() + vector * vector_bytes();
      if (rows() > 1) vmovups(Weights(vector), ptr[reg_b + offset]);
      if (streams() && offset % 64 == 0) FetchStream(*this, reg_b + offset);
    }
    for (int row = 0; row < rows(); ++row) {
      vpbroadcastd(Broadcast(row), dword[Row(reg_a, reg_a3, row, quad * kQuadBytes)]);
      for (int vector = 0; vector < vectors(); ++vector) {
        const RegExp weights = reg_b + (quad * panel_bytes() + vector * vector_bytes());
        if (rows() > 1) {
          MultiplyAdd(Sum(set, row, vector), Broadcast(row), Weights(vector));
        } else {
          MultiplyAdd(Sum(set, row, vector), Broadcast(row), ptr[weights]);
        }
      }
    }
  }

  bool ends_by_rows() const override {
    return wide() && sets_ == 1 && many_rows() && may_end_by_rows();
  }

  void LastQuads(int row) override {
    const Vec broadcast = Broadcast(0);
    for (int quad = 0; quad < kUnroll; ++quad) {
      vpbroadcastd(broadcast, dword[Row(reg_a, reg_a3, row, quad * kQuadBytes)]);
      for (int vector = 0; vector < vectors(); ++vector) {
        MultiplyAdd(Sum(0, row, vector), broadcast,
                    ptr[reg_b + (quad * panel_bytes() + vector * vector_bytes())]);
      }
    }
  }

  void MultiplyAdd(const Vec& sum, const Vec& x, const Xbyak::Operand& weights) {
    if (bf16_) {
      vdpbf16ps(sum, x, weights);
      return;
    }
    vpdpbusd(sum, x, weights, wide() ? Xbyak::EvexEncoding : DotEncoding256());
  }

  const bool bf16_;
  const int tile_;  // sums, in registers
  const int sets_;
};

struct Avx512VnniTileEmitter final : VnniTileEmitter {
  explicit Avx512VnniTileEmitter(const TileKey& key) : VnniTileEmitter(VectorWidth::k512, key) {}
};

struct AvxVnniTileEmitter final : VnniTileEmitter {
  explicit AvxVnniTileEmitter(const TileKey& key) : VnniTileEmitter(VectorWidth::k256, key) {}
};

}  // namespace

int Avx512VnniMaxColumns(int) { return 64; }

TileFn Avx512VnniTile(const TileKey& key) {
  static auto& cache = *new TileCache<Avx512VnniTileEmitter>(Isa::kAvx512Vnni);
  return cache.Get(key);
}

RowKernels Avx512VnniRows(XType x) { return GeneratedRows(VectorWidth::k512, x); }

// Beside the sums stand the weights of a tile, but for one row, and two broadcasts.
int AvxVnniMaxColumns(int rows) { return rows == 1 ? 64 : rows == 2 ? 32 : 16; }

TileFn AvxVnniTile(const TileKey& key) {
  static auto& cache = *new TileCache<AvxVnniTileEmitter>(Isa::kAvxVnni);
  return cache.Get(key);
}

RowKernels AvxVnniRows(XType x) { return GeneratedRows(VectorWidth::k256, x); }

}  // namespace qgemm
