// The families of float weights: AVX-512, with up to 6 x 64 sums in 24 of 32 registers, and AVX2,
// with 12 of 16. A tile widens float16 and bfloat16 to f32 as it loads them; many rows meet panels
// that Unpack has widened before. x is f32, one of its elements is broadcast for all columns.
#include "codegen/families.h"
#include "codegen/tile_cache.h"
#include "codegen/tile_emitter.h"
#include "gemm/names.h"
#include "runtime/kernel_log.h"

namespace qgemm {
namespace {

constexpr int kPrefetchDistance = 4096;  // bytes ahead, as in vnni.cc
constexpr std::uint32_t kHighHalf = 0xffff0000;

class FloatTileEmitter : public TileEmitter {
 protected:
  FloatTileEmitter(VectorWidth width, const TileKey& key)
      : TileEmitter(width, key), w_(key.w), elements_(int(ElementsOfStep(key.w))) {
    StartFromZeroPointTerms();
    if (w_ == WType::kBf16) LoadConstant(HighHalf(), kHighHalf);
    Begin();
    LoopOverQuads(elements_ * kXBytes);
    End();
  }

 private:
  static constexpr int kXBytes = 4;

  Vec Accumulator(int row, int vector) const override { return V(row * vectors() + vector); }
  Vec Temporary(int i) const override { return V((wide() ? 24 : 12) + i); }
  // Of the K loop. Of one row, the weights are used at once: two registers take turns.
  Vec Weights(int vector) const {
    if (wide()) return V(24 + vector);
    return V(rows() == 1 ? 12 + vector % 2 : rows() * vectors() + vector);
  }
  Vec Broadcast(int row) const { return wide() ? V(28 + row % 3) : V(14); }
  Vec HighHalf() const { return V(wide() ? 31 : 15); }

  void Quad(int step) override {
    for (int line = 0; streams() && line < vectors() * vector_bytes(); line += 64) {
      prefetchnta(ptr[reg_b + (step * panel_bytes() + line + kPrefetchDistance)]);
    }
    for (int i = 0; i < elements_; ++i) Element(step, i);
  }

  // One element of K, of a step.
  void Element(int step, int i) {
    const auto x = [&](int row) {
      return dword[Row(reg_a, reg_a3, row, (step * elements_ + i) * kXBytes)];
    };
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
    if (w_ == WType::kF32) {
      vmovups(w, ptr[from]);
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

  const WType w_;
  const int elements_;  // of K in a step
};

struct Avx512FloatTileEmitter final : FloatTileEmitter {
  explicit Avx512FloatTileEmitter(const TileKey& key) : FloatTileEmitter(VectorWidth::k512, key) {}
};

struct Avx2FloatTileEmitter final : FloatTileEmitter {
  explicit Avx2FloatTileEmitter(const TileKey& key) : FloatTileEmitter(VectorWidth::k256, key) {}
};

// An UnpackFn, for 16 columns at a time.
class UnpackEmitter final : public VectorEmitter {
 public:
  UnpackEmitter(VectorWidth width, WType w) : VectorEmitter(width) {
    const Xbyak::Reg64 reg_panel{rdi}, reg_steps{rsi}, reg_width{rdx}, reg_out{rcx}, reg_units{rax},
        reg_row{r8};
    Xbyak::Label step, unit, done;
    if (w == WType::kBf16) LoadConstant(HighHalf(), kHighHalf);
    test(reg_steps, reg_steps);
    jz(done, T_NEAR);
    L(step);
    mov(reg_units, reg_width);
    shr(reg_units, 4);
    mov(reg_row, reg_out);
    L(unit);
    for (int part = 0; part < int(kColumnUnit); part += lanes()) {
      const Vec low = V(0), high = V(1);
      if (w == WType::kF16) {
        LoadF16(low, reg_panel + part * 2);
        LoadF16(high, reg_panel + (32 + part * 2));
      } else {
        vmovups(low, ptr[reg_panel + part * 4]);
        And(high, low, HighHalf());
        vpslld(low, low, 16);
      }
      vmovups(ptr[reg_row + part * 4], low);
      vmovups(ptr[reg_row + reg_width * 4 + part * 4], high);
    }
    add(reg_panel, 64);
    add(reg_row, 64);
    sub(reg_units, 1);
    jnz(unit);
    lea(reg_out, ptr[reg_out + reg_width * 8]);
    sub(reg_steps, 1);
    jnz(step);
    L(done);
    Finish();
  }

  UnpackFn function() const { return getCode<UnpackFn>(); }

 private:
  Vec HighHalf() const { return V(2); }
};

UnpackFn MakeUnpack(VectorWidth width, WType w) {
  const char* isa = IsaName(width == VectorWidth::k512 ? Isa::kAvx512Bw : Isa::kAvx2);
  const std::string name = std::string("unpack_") + Name(w);
  return GenerateKernel<UnpackEmitter>(isa, name, width, w).release()->function();
}

// They live as long as the process.
UnpackFn Unpack(VectorWidth width, WType w) {
  if (width == VectorWidth::k512) {
    static const UnpackFn f16 = MakeUnpack(width, WType::kF16);
    static const UnpackFn bf16 = MakeUnpack(width, WType::kBf16);
    return w == WType::kF16 ? f16 : bf16;
  }
  static const UnpackFn f16 = MakeUnpack(width, WType::kF16);
  static const UnpackFn bf16 = MakeUnpack(width, WType::kBf16);
  return w == WType::kF16 ? f16 : bf16;
}

}  // namespace

int Avx512FloatMaxColumns(int) { return 64; }

TileFn Avx512FloatTile(const TileKey& key) {
  static auto& cache = *new TileCache<Avx512FloatTileEmitter>(Isa::kAvx512Bw);
  return cache.Get(key);
}

UnpackFn Avx512Unpack(WType w) { return Unpack(VectorWidth::k512, w); }

int Avx2FloatMaxColumns(int rows) { return rows == 1 ? 64 : rows == 2 ? 32 : 16; }

TileFn Avx2FloatTile(const TileKey& key) {
  static auto& cache = *new TileCache<Avx2FloatTileEmitter>(Isa::kAvx2);
  return cache.Get(key);
}

UnpackFn Avx2Unpack(WType w) { return Unpack(VectorWidth::k256, w); }

}  // namespace qgemm
