// The families of weights in blocks and x quantized by groups: sums of a group in int32, scaled and
// added up in f32. Weights are the unsigned operand of a product of bytes and x is the signed one,
// so that 4 bits need no more than a mask and 8 bits nothing. AVX2 alone: see block_pairs.cc.
//
// Beside the sums in int32 stand those in f32: 3 x 64 of each with AVX-512 VNNI, 2 x 64 without
// VNNI, 2 x 16 with AVX-VNNI. On Zen 4 weights from memory come sooner without prefetches (a row of
// 4096 x 4096 with minima: 1.6 to 2 times as fast), on Ice Lake with them (1 row 1.1 times, 4 rows
// 1.3 times).
#include "codegen/block_emitter.h"
#include "codegen/encoding.h"
#include "codegen/families.h"
#include "codegen/group_emitter.h"
#include "codegen/stream.h"
#include "codegen/tile_cache.h"

namespace qgemm {
namespace {

constexpr std::uint32_t kLowHalves = 0x0f0f0f0f, kHighHalves = 0xf0f0f0f0;
constexpr std::uint32_t kOnes = 0x00010001;

class DotBlockTileEmitter : public BlockTileEmitter {
 protected:
  DotBlockTileEmitter(VectorWidth width, bool vnni, const TileKey& key)
      : BlockTileEmitter(width, key),
        vnni_(vnni),
        fetches_(streams() && !Cpu().streams_past_l2),
        apart_(nibbles_ && vnni && wide() && rows() == 1) {
    StartFromZeroPointTerms();
    LoadConstant(Mask(), kLowHalves);
    if (apart_) LoadConstant(HighMask(), kHighHalves);
    if (!vnni_) LoadConstant(Ones(), kOnes);
    Begin();
    LoopOverGroups(
        int(ElementsOfStep(key.w)), 1, [&](int) { BeginGroup(); }, [&](int) { EndGroup(); });
    End();
  }

 private:
  Vec Sum(int row, int vector) const override {
    return V((wide() ? 12 : 4) + row * vectors() + vector);
  }
  // Of one row, the products of high halves as they are, 16 times too large.
  Vec HighSum(int vector) const { return V(16 + vector); }
  Vec Weights(int vector) const { return V((wide() ? 24 : 8) + vector); }
  Vec Broadcast(int i) const { return V((wide() ? 28 : 10) + i % 2); }
  Vec Product() const { return V(22); }
  Vec Ones() const { return V(23); }
  Vec Mask() const { return V(wide() ? 30 : 14); }
  Vec HighMask() const { return V(31); }
  Vec Temporary(int i) const override { return V((wide() ? 24 : 12) + i); }
  GroupRegisters OfGroup() const override { return {Weights(0), Weights(1), Broadcast(0)}; }

  void BeginGroup() {
    StartSums(0, vectors());
    for (int vector = 0; apart_ && vector < vectors(); ++vector) Zero(HighSum(vector));
  }

  void Quad(int step) override {
    const int offset = step * panel_bytes();
    for (int line = 0; fetches_ && line < vectors() * vector_bytes(); line += 64) {
      FetchStream(*this, reg_b + (offset + line));
    }
    if (apart_) {
      QuadApart(step);
      return;
    }
    const int halves = nibbles_ ? 2 : 1;
    for (int half = 0; half < halves; ++half) {
      for (int vector = 0; vector < vectors(); ++vector) {
        LoadHalf(Weights(vector), reg_b + (offset + vector * vector_bytes()), half);
      }
      for (int row = 0; row < rows(); ++row) {
        vpbroadcastd(Broadcast(row),
                     dword[Row(reg_a, reg_a3, row, (step * halves + half) * kBytes)]);
        for (int vector = 0; vector < vectors(); ++vector) {
          MultiplyAdd(Sum(row, vector), Weights(vector), Broadcast(row));
        }
      }
    }
  }

  void LoadHalf(const Vec& w, const RegExp& from, int half) {
    if (!nibbles_) {
      vmovups(w, ptr[from]);
    } else if (half == 0) {
      And(w, Mask(), ptr[from]);
    } else {
      if (wide()) {
        vpsrld(w, ptr[from], 4);
      } else {
        vmovups(w, ptr[from]);
        vpsrld(w, w, 4);
      }
      And(w, w, Mask());
    }
  }

  // Without a shift for each step.
  void QuadApart(int step) {
    for (const int half : {0, 1}) {
      vpbroadcastd(Broadcast(half), dword[reg_a + (step * 2 + half) * kBytes]);
    }
    for (int vector = 0; vector < vectors(); ++vector) {
      const Vec low = Weights(vector % 2), high = Weights(2 + vector % 2);
      vmovups(high, ptr[reg_b + (step * panel_bytes() + vector * vector_bytes())]);
      And(low, high, Mask());
      And(high, high, HighMask());
      MultiplyAdd(Sum(0, vector), low, Broadcast(0));
      MultiplyAdd(HighSum(vector), high, Broadcast(1));
    }
  }

  // Without VNNI pairs of products add up to int16: 2 * 15 * 127 fits, bytes go by halves.
  void MultiplyAdd(const Vec& sum, const Vec& w, const Vec& x) {
    if (vnni_) {
      vpdpbusd(sum, w, x, wide() ? Xbyak::EvexEncoding : DotEncoding256());
      return;
    }
    const Vec product = Product();
    if (nibbles_) {
      vpmaddubsw(product, w, x);
      vpmaddwd(product, product, Ones());
      vpaddd(sum, sum, product);
      return;
    }
    const Vec half = HalfOfByte();
    And(half, w, Mask());
    vpmaddubsw(product, half, x);
    vpmaddwd(product, product, Ones());
    vpaddd(sum, sum, product);
    vpsrld(half, w, 4);
    And(half, half, Mask());
    vpmaddubsw(product, half, x);
    vpmaddwd(product, product, Ones());
    vpslld(product, product, 4);
    vpaddd(sum, sum, product);
  }
  Vec HalfOfByte() const { return V(31); }

  void EndGroup() {
    for (int vector = 0; apart_ && vector < vectors(); ++vector) {
      vpsrad(HighSum(vector), HighSum(vector), 4);
      vpaddd(Sum(0, vector), Sum(0, vector), HighSum(vector));
    }
    AddGroup(0, vectors());
  }

  const bool vnni_;
  const bool fetches_;  // weights from memory
  const bool apart_;    // the sums of low and high halves
};

struct AvxVnniBlockTileEmitter final : DotBlockTileEmitter {
  explicit AvxVnniBlockTileEmitter(const TileKey& key)
      : DotBlockTileEmitter(VectorWidth::k256, true, key) {}
};

struct Avx512BwBlockTileEmitter final : DotBlockTileEmitter {
  explicit Avx512BwBlockTileEmitter(const TileKey& key)
      : DotBlockTileEmitter(VectorWidth::k512, false, key) {}
};

struct Avx512VnniBlockTileEmitter final : DotBlockTileEmitter {
  explicit Avx512VnniBlockTileEmitter(const TileKey& key)
      : DotBlockTileEmitter(VectorWidth::k512, true, key) {}
};

template <class Emitter>
TileFn Generate(Isa isa, const TileKey& key) {
  static auto& cache = *new TileCache<Emitter>(isa, "_blocks");
  return cache.Get(key);
}

}  // namespace

RowKernels Avx512BlockRows(XType x) { return GeneratedBlockRows(VectorWidth::k512, x); }

int AvxVnniBlockMaxColumns(int) { return 16; }
int Avx512BwBlockMaxColumns(int) { return 64; }
int Avx512VnniBlockMaxColumns(int rows) { return rows <= 3 ? 64 : 32; }

TileFn AvxVnniBlockTile(const TileKey& key) {
  return Generate<AvxVnniBlockTileEmitter>(Isa::kAvxVnni, key);
}
TileFn Avx512BwBlockTile(const TileKey& key) {
  return Generate<Avx512BwBlockTileEmitter>(Isa::kAvx512Bw, key);
}
TileFn Avx512VnniBlockTile(const TileKey& key) {
  return Generate<Avx512VnniBlockTileEmitter>(Isa::kAvx512Vnni, key);
}

}  // namespace qgemm
