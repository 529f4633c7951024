// The families of weights in blocks and x quantized by groups: sums of a group in int32, scaled and
// added up in f32. Weights are the unsigned operand of a product of bytes and x is the signed one,
// so that 4 bits need no more than a mask and 8 bits nothing.
//
// Beside the sums in int32 stand those in f32: 3 x 64 of each with AVX-512 VNNI, 2 x 64 without
// VNNI, 2 x 16 with AVX-VNNI. AVX2 has sums of pairs in int16, too: 1 x 64, read in order (Zen 3, a
// row of 4096 x 4096 from memory: 1.17 times as fast as 1 x 16), 2 x 16 and 4 x 8. On Zen 4 weights
// from memory come sooner without prefetches (a row of 4096 x 4096 with minima: 1.6 to 2 times as
// fast), on Ice Lake with them (1 row 1.1 times, 4 rows 1.3 times).
#include <algorithm>
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
constexpr std::uint32_t kOnes = 0x00010001, kSixteens = 0x00100010;

class BlockTileEmitter : public TileEmitter {
 protected:
  BlockTileEmitter(VectorWidth width, bool vnni, const TileKey& key)
      : TileEmitter(width, key),
        vnni_(vnni),
        nibbles_(key.w == WType::kU4),
        fetches_(key.streams && !Cpu().streams_past_l2),
        form_(key.blocks),
        panel_columns_(key.panel_columns),
        apart_(nibbles_ && vnni && wide() && rows() == 1),
        pairs_(!vnni && !wide()) {
    StartFromZeroPointTerms();
    if (!pairs_) LoadConstant(Mask(), kLowHalves);
    if (apart_) LoadConstant(HighMask(), kHighHalves);
    if (!vnni_ && !pairs_) LoadConstant(Ones(), kOnes);
    Begin();
    const int of_pass = pairs_ && rows() == 1 ? kPassVectors : vectors();
    LoopOverGroups(
        int(ElementsOfStep(key.w)), int(CeilDiv(vectors(), of_pass)),
        [&](int pass) {
          first_ = pass * of_pass;
          end_ = std::min(vectors(), first_ + of_pass);
          BeginGroup();
        },
        [&](int) { EndGroup(); });
    End();
  }

 private:
  Vec Accumulator(int row, int vector) const override { return V(row * vectors() + vector); }
  // In int32.
  Vec Sum(int row, int vector) const {
    if (pairs_ && rows() == 1) return V(8 + vector % kPassVectors);
    const int before = wide() ? 12 : pairs_ ? rows() * vectors() : 4;
    return V(before + row * vectors() + vector);
  }
  // In int16, of one vector.
  Vec PairSum(int row) const { return V(rows() == 1 ? 12 : 2 * rows() * vectors() + row); }
  // Of one row, the products of high halves as they are, 16 times too large.
  Vec HighSum(int vector) const { return V(16 + vector); }
  Vec Weights(int vector) const { return V((wide() ? 24 : pairs_ ? 13 : 8) + vector); }
  Vec Broadcast(int i) const { return pairs_ ? V(15) : V((wide() ? 28 : 10) + i % 2); }
  Vec Product() const { return V(pairs_ ? 14 : 22); }
  Vec Ones() const { return V(23); }
  Vec Mask() const { return V(wide() ? 30 : 14); }
  Vec HighMask() const { return V(31); }
  Vec Temporary(int i) const override { return V((wide() ? 24 : 12) + i); }

  void BeginGroup() {
    for (int row = 0; row < rows(); ++row) {
      for (int vector = first_; vector < end_; ++vector) {
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

  void Quads(int count) override {
    if (!pairs_) {
      TileEmitter::Quads(count);
      return;
    }
    // In order, which the loads of a pass are not.
    for (int line = 0; rows() == 1 && first_ == 0 && line < count * panel_bytes(); line += 64) {
      prefetcht0(ptr[reg_b + kAhead + line]);
    }
    for (int vector = first_; vector < end_; ++vector) AddPairs(count, vector);
  }

  // Pairs of products add up in int16 over four steps: 8 * 2 * 15 * 127 fits. Bytes go by halves.
  void AddPairs(int steps, int vector) {
    const Vec w = Weights(0);
    for (const int half : {0, 1}) {
      for (int step = 0; step < steps; ++step) {
        const Address from = ptr[reg_b + (step * panel_bytes() + vector * vector_bytes())];
        vmovups(w, from);
        if (half == 1) vpsrld(w, w, 4);
        And(w, w, Constant(kLowHalves));
        const int of_x = nibbles_ ? step * 2 + half : step;
        const bool first = step == 0 && (half == 0 || !nibbles_);
        for (int row = 0; row < rows(); ++row) {
          const Vec product = first ? PairSum(row) : Product();
          vpbroadcastd(Broadcast(row), dword[Row(reg_a, reg_a3, row, of_x * kBytes)]);
          vpmaddubsw(product, w, Broadcast(row));
          if (!first) vpaddw(PairSum(row), PairSum(row), product);
        }
      }
      if (nibbles_ && half == 0) continue;
      for (int row = 0; row < rows(); ++row) {
        vpmaddwd(PairSum(row), PairSum(row), Constant(nibbles_ || half == 0 ? kOnes : kSixteens));
        vpaddd(Sum(row, vector), Sum(row, vector), PairSum(row));
      }
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
    const int bytes = int(form_.ScaleBytes());
    const Vec scales = Weights(0), minima = Weights(1), scalar = Broadcast(0);
    for (int vector = first_; vector < end_; ++vector) {
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
  static constexpr int kPassVectors = 4;
  static constexpr int kAhead = 1152;  // bytes
  const bool vnni_, nibbles_;
  const bool fetches_;  // weights from memory
  const BlockForm form_;
  const int panel_columns_;
  const bool apart_;  // the sums of low and high halves
  // The sums of pairs are in int16, and of one row a group is read in passes over some columns.
  const bool pairs_;
  int first_ = 0, end_ = 0;  // vectors of the pass
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

// A tile of one row takes whole panels, in the order they lie in memory.
int Avx2BlockMaxColumns(int rows) { return rows == 1 ? 64 : rows == 2 ? 16 : 8; }
int AvxVnniBlockMaxColumns(int) { return 16; }
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
