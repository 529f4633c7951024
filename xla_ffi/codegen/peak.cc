// Register-only loops of the arithmetic of each family: the speed that no kernel can exceed.
#include <xbyak/xbyak.h>

#include "codegen/encoding.h"
#include "codegen/families.h"
#include "runtime/kernel_log.h"

namespace qgemm {
namespace {

constexpr int kSums = 12;    // independent, which hides the latency
constexpr int kRepeats = 8;  // of all sums in one iteration

class PeakEmitter final : public Xbyak::CodeGenerator {
 public:
  explicit PeakEmitter(Isa isa) : CodeGenerator(4096, Xbyak::DontSetProtectRWE) {
    Xbyak::Label loop;
    L(loop);
    for (int i = 0; i < kRepeats * kSums; ++i) {
      const int sum = i % kSums;
      if (isa == Isa::kAvx512Vnni) {
        vpdpbusd(Xbyak::Zmm(sum), Xbyak::Zmm(30), Xbyak::Zmm(31));
      } else if (isa == Isa::kAvxVnni) {
        vpdpbusd(Xbyak::Ymm(sum), Xbyak::Ymm(13), Xbyak::Ymm(14), DotEncoding256());
      } else {
        vpmaddwd(Xbyak::Ymm(15), Xbyak::Ymm(13), Xbyak::Ymm(14));
        vpaddd(Xbyak::Ymm(sum), Xbyak::Ymm(sum), Xbyak::Ymm(15));
      }
    }
    sub(rdi, 1);
    jnz(loop, T_NEAR);
    vzeroupper();
    ret();
    setProtectModeRE();
  }
};

PeakLoop Generate(Isa isa, double macs_per_instruction) {
  const auto* emitter =  // lives as long as the process
      GenerateKernel<PeakEmitter>(IsaName(isa), "peak", isa).release();
  return {emitter->getCode<void (*)(std::int64_t)>(), kRepeats * kSums * macs_per_instruction};
}

}  // namespace

PeakLoop Avx2Peak() {
  static const PeakLoop loop = Generate(Isa::kAvx2, 16);
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

}  // namespace qgemm
