// The families of weights in blocks and x quantized by groups: sums of a group in int32, scaled and
// added up in f32. Weights are the unsigned operand of a product of bytes and x is the signed one,
// so that 4 bits need no more than a mask and 8 bits nothing.
//
// Beside the sums in int32 stand those in f32: 3 x 64 of each with AVX-512 VNNI, 2 x 64 without
// VNNI, 2 x 16 on AVX2. On Zen 4 weights from memory come sooner without prefetches (a row of
// 4096 x 4096 with minima: 1.6 to 2 times as fast), on Ice Lake with them (1 row 1.1 times, 4 rows
// 1.3 times).
#include <cstddef>

#include "codegen/encoding.h"
#include "codegen/families.h"
#include "codegen/group_emitter.h"
#include "codegen/row_emitter.h"
#include "codegen/stream.h"
#include "codegen/tile_cache.h"
#include "codegen/tile_emitter.h"

namespace qgemm {
namespace {

constexpr std::uint32_t kLowHalves = 0x0f0f0f0f, kHighHalves = 0xf0f0f0f0;

class BlockTileEmitter : public TileEmitter {
 protected:
  BlockTileEmitter(VectorWidth width, bool vnni, const TileKey& key)
      : TileEmitter(width, key),
        vnni_(vnni),
        nibbles_(key.w == WType::kU4),
        fetches_(key.streams && !Cpu().streams_past_l2),
        form_(key.blocks),
        panel_columns_(key.panel_columns),
        apart_(nibbles_ && vnni && wide() && rows() == 1) {
    StartFromZeroPointTerms();
    LoadConstant(Mask(), kLowHalves);
    if (apart_) LoadConstant(HighMask(), kHighHalves);
    if (!vnni_) LoadConstant(Ones(), 0x00010001);
    Begin();
    LoopOverGroups(int(ElementsOfStep(key.w)), [&] { BeginGroup(); }, [&] { EndGroup(); });
    End();
  }

 private:
  Vec Accumulator(int row, int vector) const override { return V(row * vectors() + vector); }
  // In int32.
  Vec Sum(int row, int vector) const { return V((wide() ? 12 : 4) + row * vectors() + vector); }
  // Of one row, the products of high halves as they are, 16 times too large.
  Vec HighSum(int vector) const { return V(16 + vector); }
  Vec Weights(int vector) const { return V((wide() ? 24 : 8) + vector); }
  Vec Broadcast(int i) const { return V((wide() ? 28 : 10) + i % 2); }
  Vec Product() const { return V(wide() ? 22 : 12); }
  Vec Ones() const { return V(wide() ? 23 : 13); }
  Vec Mask() const { return V(wide() ? 30 : 14); }
  Vec HighMask() const { return V(31); }
  Vec Temporary(int i) const override { return V((wide() ? 24 : 12) + i); }

  void BeginGroup() {
    for (int row = 0; row < rows(); ++row) {
      for (int vector = 0; vector < vectors(); ++vector) {
        const Vec sum = Sum(row, vector);
        if (form_.minimum) {
          Zero(sum);
        } else {
          vpbroadcastd(sum, dword[RowTerm(row)]);
        }
        if (apart_) Zero(HighSum(vector));
      }
    }
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
  Vec HalfOfByte() const { return V(wide() ? 31 : 15); }

  void EndGroup() {
    const int bytes = int(form_.ScaleBytes());
    const Vec scales = Weights(0), minima = Weights(1), scalar = Broadcast(0);
    for (int vector = 0; vector < vectors(); ++vector) {
      const RegExp from = reg_block_scales + vector * lanes() * bytes;
      LoadBlockScale(scales, from);
      if (form_.minimum) LoadBlockScale(minima, from + panel_columns_ * bytes);
      for (int row = 0; row < rows(); ++row) {
        const Vec sum = Sum(row, vector), y = Accumulator(row, vector);
        if (apart_) {
          vpsrad(HighSum(vector), HighSum(vector), 4);
          vpaddd(sum, sum, HighSum(vector));
        }
        vcvtdq2ps(sum, sum);
        WithScalar(&CodeGenerator::vmulps, sum, RowScale(row), scalar);
        vfmadd231ps(y, sum, scales);
        if (!form_.minimum) continue;
        if (wide()) {
          vfmadd231ps(y, minima, ptr_b[RowTerm(row)]);
        } else {
          vbroadcastss(scalar, dword[RowTerm(row)]);
          vfmadd231ps(y, minima, scalar);
        }
      }
    }
  }

  RegExp RowScale(int row) const {
    return reg_row_groups + (row * int(sizeof(RowGroup)) + int(offsetof(RowGroup, scale)));
  }
  RegExp RowTerm(int row) const {
    return reg_row_groups + (row * int(sizeof(RowGroup)) + int(offsetof(RowGroup, term)));
  }

  static constexpr int kBytes = 4;  // of x at a time
  const bool vnni_, nibbles_;
  const bool fetches_;  // weights from memory
  const BlockForm form_;
  const int panel_columns_;
  const bool apart_;  // the sums of low and high halves
};

struct Avx2BlockTileEmitter final : BlockTileEmitter {
  explicit Avx2BlockTileEmitter(const TileKey& key)
      : BlockTileEmitter(VectorWidth::k256, false, key) {}
};

struct AvxVnniBlockTileEmitter final : BlockTileEmitter {
  explicit AvxVnniBlockTileEmitter(const TileKey& key)
      : BlockTileEmitter(VectorWidth::k256, true, key) {}
};

struct Avx512BwBlockTileEmitter final : BlockTileEmitter {
  explicit Avx512BwBlockTileEmitter(const TileKey& key)
      : BlockTileEmitter(VectorWidth::k512, false, key) {}
};

struct Avx512VnniBlockTileEmitter final : BlockTileEmitter {
  explicit Avx512VnniBlockTileEmitter(const TileKey& key)
      : BlockTileEmitter(VectorWidth::k512, true, key) {}
};

template <class Emitter>
TileFn Generate(Isa isa, const TileKey& key) {
  static auto& cache = *new TileCache<Emitter>(isa);
  return cache.Get(key);
}

}  // namespace

RowKernels Avx2BlockRows(XType x) {
  RowKernels rows = GeneratedRows(VectorWidth::k256, x);
  rows.to_groups = GeneratedGroups(VectorWidth::k256, x);
  return rows;
}

RowKernels Avx512BlockRows(XType x) {
  RowKernels rows = GeneratedRows(VectorWidth::k512, x);
  rows.to_groups = GeneratedGroups(VectorWidth::k512, x);
  return rows;
}

int Avx2BlockMaxColumns(int) { return 16; }
int Avx512BwBlockMaxColumns(int) { return 64; }
int Avx512VnniBlockMaxColumns(int rows) { return rows <= 3 ? 64 : 32; }

TileFn Avx2BlockTile(const TileKey& key) { return Generate<Avx2BlockTileEmitter>(Isa::kAvx2, key); }
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
