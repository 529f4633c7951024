// The family of weights in blocks without VNNI and AVX-512: vpmaddubsw adds pairs of products in
// int16, where four steps of 4 bits, or of halves of 8, fit: 8 * 2 * 15 * 127 < 32768.
//
// Of groups as long as that (4 bits, 32 of K) the sums become int32 at the end of a group, in
// place; of others they join sums in int32, from vector to vector. Tiles are up to 3 x 16; of one
// row 1 x 64, a pass over the group for some columns after the other, read in order (Zen 3, a row
// of 4096 x 4096 from memory: 1.17 times as fast as 1 x 16).
#include <algorithm>
#include <cstddef>

#include "codegen/block_emitter.h"
#include "codegen/families.h"
#include "codegen/group_emitter.h"
#include "codegen/tile_cache.h"

namespace qgemm {
namespace {

constexpr std::uint32_t kLowHalves = 0x0f0f0f0f;
constexpr std::uint32_t kOnes = 0x00010001, kSixteens = 0x00100010;

struct PairBlockTileEmitter final : BlockTileEmitter {
  explicit PairBlockTileEmitter(const TileKey& key) : BlockTileEmitter(VectorWidth::k256, key) {
    StartFromZeroPointTerms();
    Begin();
    Xbyak::Label longer, done;
    if (nibbles_) {
      cmp(qword[reg_args + offsetof(TileArgs, group_steps)], kStepsInInt16);
      jne(longer, T_NEAR);
      EmitGroups(true);
      jmp(done, T_NEAR);
    }
    L(longer);
    EmitGroups(false);
    L(done);
    End();
  }

 private:
  static constexpr int kStepsInInt16 = 4;
  static constexpr int kMostOfPass = 4;
  static constexpr int kAhead = 1152;  // bytes

  // Registers: the accumulators, the sums of a pass, those in int16, then these.
  Vec Sum(int row, int vector) const override {
    return V(rows() * vectors() + row * of_pass_ + vector - first_);
  }
  // Where groups are longer, of one vector.
  Vec PairSum(int row, int vector) const {
    return in_int16_ ? Sum(row, vector) : V(rows() * (vectors() + of_pass_) + row);
  }
  Vec Weights(int vector) const { return V(in_int16_ && vector % 2 == 1 ? 12 : 13); }
  Vec Product() const { return V(14); }
  Vec X() const { return V(15); }
  Vec Temporary(int i) const override { return V(12 + i); }
  GroupRegisters OfGroup() const override { return {V(13), V(14), V(15)}; }
  bool many_rows() const override { return rows() == 3; }

  void EmitGroups(bool in_int16) {
    in_int16_ = in_int16;
    of_pass_ = std::min(vectors(), rows() == 3 && !in_int16 ? 1 : kMostOfPass);
    const auto passes = int(CeilDiv(vectors(), of_pass_));
    const auto begin = [&](int pass) {
      first_ = pass * of_pass_;
      end_ = std::min(vectors(), first_ + of_pass_);
      if (!in_int16_) StartSums(first_, end_);
    };
    const auto end = [&](int) {
      if (in_int16_) AddRowTerms(first_, end_);
      AddGroup(first_, end_);
    };
    LoopOverGroups(nibbles_ ? 2 * kBytes : kBytes, passes, begin, end);
  }

  void Quads(int count) override {
    // In order, which the loads of a pass are not.
    for (int line = 0; rows() == 1 && first_ == 0 && line < count * panel_bytes(); line += 64) {
      prefetcht0(ptr[reg_b + kAhead + line]);
    }
    const int at_once = in_int16_ ? end_ - first_ : 1;
    for (int vector = first_; vector < end_; vector += at_once) {
      AddHalves(count, vector, vector + at_once);
    }
  }
  void Quad(int) override {}  // a step alone is none of Quads: halves go over several

  void AddHalves(int steps, int first, int end) {
    for (const int half : {0, 1}) {
      for (int step = 0; step < steps; ++step) {
        const bool starts = step == 0 && (half == 0 || !nibbles_);
        AddPairs(step, half, starts, first, end);
      }
      if (!nibbles_ || half == 1) Join(nibbles_ || half == 0 ? kOnes : kSixteens, first, end);
    }
  }

  void AddPairs(int step, int half, bool starts, int first, int end) {
    const auto load = [&](int vector) {
      const Vec w = Weights(vector);
      vmovups(w, ptr[reg_b + (step * panel_bytes() + vector * vector_bytes())]);
      if (half == 1) vpsrld(w, w, 4);
      vpand(w, w, Constant(kLowHalves));
    };
    for (int vector = first; rows() > 1 && vector < end; ++vector) load(vector);
    const int of_x = nibbles_ ? 2 * step + half : step;
    for (int row = 0; row < rows(); ++row) {
      vpbroadcastd(X(), dword[Row(reg_a, reg_a3, row, of_x * kBytes)]);
      for (int vector = first; vector < end; ++vector) {
        if (rows() == 1) load(vector);
        const Vec sum = PairSum(row, vector), product = starts ? sum : Product();
        vpmaddubsw(product, Weights(vector), X());
        if (!starts) vpaddw(sum, sum, product);
      }
    }
  }

  // Neighbours of the sums in int16, times a factor, are int32.
  void Join(std::uint32_t factors, int first, int end) {
    LoadConstant(Product(), factors);
    for (int row = 0; row < rows(); ++row) {
      for (int vector = first; vector < end; ++vector) {
        const Vec sum = PairSum(row, vector);
        vpmaddwd(sum, sum, Product());
        if (!in_int16_) vpaddd(Sum(row, vector), Sum(row, vector), sum);
      }
    }
  }

  bool in_int16_ = false;                  // the sums of a group, as the code is emitted
  int first_ = 0, end_ = 0, of_pass_ = 0;  // vectors of the pass
};

}  // namespace

RowKernels Avx2BlockRows(XType x) { return GeneratedBlockRows(VectorWidth::k256, x); }

int Avx2BlockMaxColumns(int rows) { return rows == 1 ? 64 : 16; }

TileFn Avx2BlockTile(const TileKey& key) {
  static auto& cache = *new TileCache<PairBlockTileEmitter>(Isa::kAvx2, "_blocks");
  return cache.Get(key);
}

}  // namespace qgemm
