// The families of float sums: AVX-512, with up to 6 x 64 of them in 24 of 32 registers, and AVX2,
// with 12 of 16. Weights become f32 as they are loaded, once for all rows of a tile, or ahead, a
// panel at a time, where that is faster (gemm/f32_panels.h). x is f32, one element of it is
// broadcast for all columns.
#include <cstddef>

#include "codegen/families.h"
#include "codegen/row_emitter.h"
#include "codegen/stream.h"
#include "codegen/tile_cache.h"
#include "codegen/tile_emitter.h"

namespace qgemm {
namespace {

constexpr std::uint32_t kHighHalf = 0xffff0000;
constexpr float kNibbles[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

class FloatTileEmitter : public TileEmitter {
 protected:
  FloatTileEmitter(VectorWidth width, const TileKey& key)
      : TileEmitter(width, key),
        w_(key.f32_panel ? WType::kF32 : key.w),
        elements_(int(ElementsOfStep(w_))),
        w_zero_(key.epilogue.w_zero && !key.f32_panel) {
    if (rows() == 0) {
      Widen(key);
      return;
    }
    if (key.f32_panel && has_partial()) {
      LoadPartial();
    } else if (key.from_sums) {
      LoadSums();
    } else {
      StartFromZeroPointTerms();
    }
    Begin();
    LoopOverWeights(key, elements_ * kXBytes);
    End();
  }

 private:
  static constexpr int kXBytes = 4;

  // No tile, but the weights themselves: what takes the place of x is where they go.
  void Widen(const TileKey& key) {
    mov(reg_a, ptr[reg_args + offsetof(TileArgs, out)]);
    mov(reg_b, ptr[reg_args + offsetof(TileArgs, b)]);
    mov(reg_quads, ptr[reg_args + offsetof(TileArgs, quads)]);
    LoopOverWeights(key, elements_ * panel_bytes());
    Finish();
  }

  void LoopOverWeights(const TileKey& key, int a_bytes) {
    if (w_ == WType::kBf16) LoadConstant(HighHalf(), kHighHalf);
    if (w_zero_) mov(reg_zeros, ptr[reg_args + offsetof(TileArgs, column_zeros)]);
    if (w_ == WType::kU4 && wide()) LoadTable(Nibbles(), kNibbles);
    if (IsBlocks(w_)) {
      LoopOverGroups(a_bytes, 1, [&](int) { WidenBlockScales(key); }, [](int) {});
    } else {
      LoopOverQuads(a_bytes);
    }
  }

  Vec Accumulator(int row, int vector) const override { return V(row * vectors() + vector); }
  Vec Temporary(int i) const override { return V((wide() ? 24 : 12) + i); }
  // Of the K loop. Of one row, the weights are used at once: two registers take turns.
  Vec Weights(int vector) const {
    if (wide()) return V(24 + vector);
    return V(rows() == 1 ? 12 + vector % 2 : rows() * vectors() + vector);
  }
  Vec Broadcast(int row) const { return wide() ? V(28 + row % 3) : V(14); }
  Vec HighHalf() const { return V(wide() ? 31 : 15); }
  // Beside weights as they are loaded.
  Vec Minimum() const { return rows() == 1 ? V(11) : V(wide() ? 28 : 14); }

  void Quad(int step) override {
    for (int line = 0; streams() && line < vectors() * vector_bytes(); line += 64) {
      FetchStream(*this, reg_b + (step * panel_bytes() + line));
    }
    for (int i = 0; i < elements_; ++i) Element(step, i);
  }

  // One element of K, of a step.
  void Element(int step, int i) {
    const auto x = [&](int row) {
      return dword[Row(reg_a, reg_a3, row, (step * elements_ + i) * kXBytes)];
    };
    if (rows() == 0) {
      for (int vector = 0; vector < vectors(); ++vector) {
        LoadWeights(step, i, vector);
        const int offset = (step * elements_ + i) * panel_bytes() + vector * vector_bytes();
        vmovups(ptr[reg_a + offset], Weights(vector));
      }
      return;
    }
    if (rows() == 1) {
      vbroadcastss(Broadcast(0), x(0));
      for (int vector = 0; vector < vectors(); ++vector) {
        LoadWeights(step, i, vector);
        vfmadd231ps(Accumulator(0, vector), Broadcast(0), Weights(vector));
      }
      return;
    }
    for (int vector = 0; vector < vectors(); ++vector) LoadWeights(step, i, vector);
    for (int row = 0; row < rows(); ++row) {
      vbroadcastss(Broadcast(row), x(row));
      for (int vector = 0; vector < vectors(); ++vector) {
        vfmadd231ps(Accumulator(row, vector), Broadcast(row), Weights(vector));
      }
    }
  }

  void LoadWeights(int step, int i, int vector) {
    const Vec w = Weights(vector);
    const int column = vector * lanes();
    const RegExp from = reg_b + (step * panel_bytes() + column * int(kStepBytes));
    if (IsBlocks(w_)) {
      LoadFromBlock(w, from, i, vector);
    } else if (w_ == WType::kF32) {
      vmovups(w, ptr[from]);
    } else if (w_ == WType::kS8) {
      LoadByte(w, from, i);
      if (w_zero_) vpsubd(w, w, ptr[reg_zeros + vector * vector_bytes()]);
      vcvtdq2ps(w, w);
    } else if (w_ == WType::kF16) {
      // Units of 16 columns, for one element of K after the other.
      const int unit = column / int(kColumnUnit) * 64 + i * 32 + column % int(kColumnUnit) * 2;
      LoadF16(w, reg_b + (step * panel_bytes() + unit));
    } else if (i == 1) {
      And(w, HighHalf(), ptr[from]);
    } else if (wide()) {
      vpslld(w, ptr[from], 16);
    } else {
      vmovups(w, ptr[from]);
      vpslld(w, w, 16);
    }
  }

  // scale * q + minimum.
  void LoadFromBlock(const Vec& w, const RegExp& from, int i, int vector) {
    const auto shift = std::uint8_t(i % 4 * 8 + i / 4 * 4);
    if (shift > 0 && wide()) {
      vpsrld(w, ptr[from], shift);
    } else {
      vmovups(w, ptr[from]);
      if (shift > 0) vpsrld(w, w, shift);
    }
    if (w_ == WType::kU4 && wide()) {
      vpermps(Xbyak::Zmm(w.getIdx()), Xbyak::Zmm(w.getIdx()), Xbyak::Zmm(Nibbles().getIdx()));
    } else {
      And(w, w, Constant(w_ == WType::kU4 ? 0xf : 0xff));
      vcvtdq2ps(w, w);
    }
    if (scales_in_registers()) {
      vfmadd132ps(w, Minimum(vector), Scale(vector));
      return;
    }
    const RegExp scale = reg_widened + vector * vector_bytes();
    vmovups(Minimum(), ptr[scale + kPartialStride]);
    vfmadd132ps(w, Minimum(), ptr[scale]);
  }

  // Up to four rows leave room for what a group has for each column; else it is in memory, a row of
  // scales, then one of minima.
  bool scales_in_registers() const { return wide() && rows() <= 4; }
  Vec Scale(int vector) const { return V(16 + vector); }
  Vec Minimum(int vector) const { return V(20 + vector); }
  Vec Nibbles() const { return V(31); }

  void WidenBlockScales(const TileKey& key) {
    const int bytes = int(key.blocks.ScaleBytes());
    mov(reg_widened, ptr[reg_args + offsetof(TileArgs, partial)]);
    for (int vector = 0; vector < vectors(); ++vector) {
      const RegExp from = reg_block_scales + vector * lanes() * bytes;
      const RegExp to = reg_widened + vector * vector_bytes();
      const Vec scale = scales_in_registers() ? Scale(vector) : Weights(0);
      const Vec minimum = scales_in_registers() ? Minimum(vector) : Minimum();
      LoadBlockScale(scale, from);
      if (key.blocks.minimum) {
        LoadBlockScale(minimum, from + key.panel_columns * bytes);
      } else {
        vmulps(minimum, scale, FloatConstant(float(-Offset(w_))));
      }
      if (scales_in_registers()) continue;
      vmovups(ptr[to], scale);
      vmovups(ptr[to + kPartialStride], minimum);
    }
  }

  // Byte i of each int32, as int32.
  void LoadByte(const Vec& to, const RegExp& from, int i) {
    const auto left = std::uint8_t(24 - 8 * i);
    if (wide() && left == 0) {
      vpsrad(to, ptr[from], 24);
      return;
    }
    if (wide()) {
      vpslld(to, ptr[from], left);
    } else {
      vmovups(to, ptr[from]);
      if (left > 0) vpslld(to, to, left);
    }
    vpsrad(to, to, 24);
  }

  const Xbyak::Reg64 reg_zeros{r10}, reg_widened{r10};
  const WType w_;
  const int elements_;  // of K in a step
  const bool w_zero_;
};

struct Avx512FloatTileEmitter final : FloatTileEmitter {
  explicit Avx512FloatTileEmitter(const TileKey& key) : FloatTileEmitter(VectorWidth::k512, key) {}
};

struct Avx2FloatTileEmitter final : FloatTileEmitter {
  explicit Avx2FloatTileEmitter(const TileKey& key) : FloatTileEmitter(VectorWidth::k256, key) {}
};

}  // namespace

int Avx512FloatMaxColumns(int) { return 64; }

TileFn Avx512FloatTile(const TileKey& key) {
  static auto& cache = *new TileCache<Avx512FloatTileEmitter>(Isa::kAvx512Bw, "_float");
  return cache.Get(key);
}

RowKernels Avx512FloatRows(XType x) { return GeneratedFloatRows(VectorWidth::k512, x); }

int Avx2FloatMaxColumns(int rows) { return rows == 1 ? 64 : rows == 2 ? 32 : 16; }

TileFn Avx2FloatTile(const TileKey& key) {
  static auto& cache = *new TileCache<Avx2FloatTileEmitter>(Isa::kAvx2, "_float");
  return cache.Get(key);
}

RowKernels Avx2FloatRows(XType x) { return GeneratedFloatRows(VectorWidth::k256, x); }

}  // namespace qgemm
