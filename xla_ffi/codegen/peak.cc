// Register-only loops of the arithmetic of each family: the speed that no kernel can exceed.
#include <xbyak/xbyak.h>

#include "codegen/encoding.h"
#include "codegen/families.h"
#include "runtime/kernel_log.h"

namespace qgemm {
namespace {

enum class Of { kBytes, kFloat, kBf16, kFp16 };

constexpr int kSums = 12;    // independent, which hides the latency
constexpr int kRepeats = 8;  // of all sums in one iteration

class PeakEmitter final : public Xbyak::CodeGenerator {
 public:
  PeakEmitter(Isa isa, Of of) : CodeGenerator(4096, Xbyak::DontSetProtectRWE) {
    Xbyak::Label loop;
    L(loop);
    for (int i = 0; i < kRepeats * kSums; i += 2) {
      const int sum = i % kSums;
      if (isa == Isa::kAmxInt8) {
        for (const int t : {sum % 4, sum % 4 + 1}) Tiles(of, t);
      } else if (of == Of::kBf16) {
        for (const int j : {0, 1}) vdpbf16ps(Xbyak::Zmm(sum + j), Xbyak::Zmm(14), Xbyak::Zmm(15));
      } else if (of == Of::kFloat && isa == Isa::kAvx512Bw) {
        FusedMultiplyAdd<Xbyak::Zmm>(sum);
      } else if (of == Of::kFloat) {
        FusedMultiplyAdd<Xbyak::Ymm>(sum);
      } else if (isa == Isa::kAvx512Vnni) {
        Dot<Xbyak::Zmm>(sum, Xbyak::EvexEncoding);
      } else if (isa == Isa::kAvxVnni) {
        Dot<Xbyak::Ymm>(sum, DotEncoding256());
      } else if (isa == Isa::kAvx512Bw) {
        MultiplyAdd<Xbyak::Zmm>(sum);
      } else {
        MultiplyAdd<Xbyak::Ymm>(sum);
      }
    }
    sub(rdi, 1);
    jnz(loop, T_NEAR);
    vzeroupper();
    ret();
    setProtectModeRE();
  }

 private:
  void Tiles(Of of, int i) {
    const Xbyak::Tmm sums(i), x(4 + i / 2), weights(6 + i % 2);
    if (of == Of::kBf16) {
      tdpbf16ps(sums, x, weights);
    } else if (of == Of::kFp16) {
      tdpfp16ps(sums, x, weights);
    } else {
      tdpbusd(sums, x, weights);
    }
  }

  // Two sums each: products by pairs, as in a tile, are up to a fifth faster.
  template <class Vec>
  void Dot(int sum, Xbyak::PreferredEncoding encoding) {
    for (const int i : {0, 1}) vpdpbusd(Vec(sum + i), Vec(14), Vec(15), encoding);
  }

  template <class Vec>
  void FusedMultiplyAdd(int sum) {
    for (const int i : {0, 1}) vfmadd231ps(Vec(sum + i), Vec(14), Vec(15));
  }

  template <class Vec>
  void MultiplyAdd(int sum) {
    for (const int i : {0, 1}) vpmaddwd(Vec(12 + i), Vec(14), Vec(15));
    for (const int i : {0, 1}) vpaddd(Vec(sum + i), Vec(sum + i), Vec(12 + i));
  }
};

PeakLoop Generate(Isa isa, double macs_per_instruction, Of of = Of::kBytes) {
  const char* name = of == Of::kBytes   ? "peak"
                     : of == Of::kFloat ? "peak_float"
                     : of == Of::kBf16  ? "peak_bf16"
                                        : "peak_fp16";
  const auto* emitter =  // lives as long as the process
      GenerateKernel<PeakEmitter>(IsaName(isa), name, isa, of).release();
  return {emitter->getCode<void (*)(std::int64_t)>(), kRepeats * kSums * macs_per_instruction};
}

// Of 16 x 16 sums in each tile.
template <Of of>
PeakLoop AmxPeak(double macs_per_instruction) {
  static const PeakLoop loop = Generate(Isa::kAmxInt8, macs_per_instruction, of);
  const auto run = [](std::int64_t iterations) {
    AmxInt8SetUp(32)();
    loop.run(iterations);
    AmxInt8SetUp(0)();
  };
  return {run, loop.macs_per_iteration};
}

}  // namespace

PeakLoop Avx2Peak() {
  static const PeakLoop loop = Generate(Isa::kAvx2, 16);
  return loop;
}

PeakLoop Avx512BwPeak() {
  static const PeakLoop loop = Generate(Isa::kAvx512Bw, 32);
  return loop;
}

PeakLoop Avx2FloatPeak() {
  static const PeakLoop loop = Generate(Isa::kAvx2, 8, Of::kFloat);
  return loop;
}

PeakLoop Avx512FloatPeak() {
  static const PeakLoop loop = Generate(Isa::kAvx512Bw, 16, Of::kFloat);
  return loop;
}

PeakLoop Avx512Bf16Peak() {
  static const PeakLoop loop = Generate(Isa::kAvx512Vnni, 32, Of::kBf16);
  return loop;
}

PeakLoop AvxVnniPeak() {
  static const PeakLoop loop = Generate(Isa::kAvxVnni, 32);
  return loop;
}

PeakLoop Avx512VnniPeak() {
  static const PeakLoop loop = Generate(Isa::kAvx512Vnni, 64);
  return loop;
}

PeakLoop AmxInt8Peak() { return AmxPeak<Of::kBytes>(16 * 16 * 64); }
PeakLoop AmxBf16Peak() { return AmxPeak<Of::kBf16>(16 * 16 * 32); }
PeakLoop AmxFp16Peak() { return AmxPeak<Of::kFp16>(16 * 16 * 32); }

}  // namespace qgemm
