// The kernel table: one line per family. Dispatch, tests and benchmarks derive from it.
#include <iterator>

#include "gemm/kernel.h"
#include "portable/portable.h"
#ifdef JAX_QGEMM_JIT
#include "codegen/families.h"
#endif

namespace qgemm {
namespace {

const KernelFamily kFamilies[] = {
    {Isa::kPortable, AFormat::kU8, 6, 2, PortableMaxColumns, PortableTile, PortableRows, nullptr},
    {Isa::kPortable, AFormat::kF32, 6, 0.5, PortableMaxColumns, PortableFloatTile, PortableRows,
     nullptr},
    {Isa::kPortable, AFormat::kS8Groups, 6, 2, PortableMaxColumns, PortableBlockTile, PortableRows,
     nullptr},
#ifdef JAX_QGEMM_JIT
    {Isa::kAvx2, AFormat::kS16, 6, 28, Avx2MaxColumns, Avx2Tile, Avx2Rows, Avx2Peak, nullptr,
     nullptr, nullptr, nullptr, kPanelColumns},
    {Isa::kAvx512Bw, AFormat::kS16, 6, 32, Avx512BwMaxColumns, Avx512BwTile, Avx512BwRows,
     Avx512BwPeak},
    {Isa::kAvx2, AFormat::kU8, 5, 42, Avx2Acc16MaxColumns, Avx2Acc16Tile, Avx2Rows, nullptr,
     nullptr, nullptr, MakeAcc16Splitter},
    {Isa::kAvx512Bw, AFormat::kU8, 6, 42, Avx512BwAcc16MaxColumns, Avx512BwAcc16Tile, Avx512BwRows,
     nullptr, nullptr, nullptr, MakeAcc16Splitter},
    {Isa::kAvxVnni, AFormat::kU8, 6, 64, AvxVnniMaxColumns, AvxVnniTile, AvxVnniRows, AvxVnniPeak},
    {Isa::kAvx512Vnni, AFormat::kU8, 6, 64, Avx512VnniMaxColumns, Avx512VnniTile, Avx512VnniRows,
     Avx512VnniPeak},
    {Isa::kAmxInt8, AFormat::kU8, 32, 1024, AmxMaxColumns, AmxInt8Tile, Avx512VnniRows, AmxInt8Peak,
     AmxInt8SetUp, AmxFinish},
    {Isa::kAvx2, AFormat::kF32, 6, 16, Avx2FloatMaxColumns, Avx2FloatTile, Avx2FloatRows,
     Avx2FloatPeak},
    {Isa::kAvx512Bw, AFormat::kF32, 6, 16, Avx512FloatMaxColumns, Avx512FloatTile, Avx512FloatRows,
     Avx512FloatPeak},
    {Isa::kAvxVnni, AFormat::kF32, 6, 16, Avx2FloatMaxColumns, Avx2FloatTile, Avx2FloatRows,
     Avx2FloatPeak},
    {Isa::kAvx512Vnni, AFormat::kF32, 6, 16, Avx512FloatMaxColumns, Avx512FloatTile,
     Avx512FloatRows, Avx512FloatPeak},
    {Isa::kAmxInt8, AFormat::kF32, 6, 16, Avx512FloatMaxColumns, Avx512FloatTile, Avx512FloatRows,
     Avx512FloatPeak},
    {Isa::kAvx2, AFormat::kS8Groups, 3, 40, Avx2BlockMaxColumns, Avx2BlockTile, Avx2BlockRows,
     nullptr},
    {Isa::kAvx512Bw, AFormat::kS8Groups, 2, 24, Avx512BwBlockMaxColumns, Avx512BwBlockTile,
     Avx512BlockRows, nullptr},
    {Isa::kAvxVnni, AFormat::kS8Groups, 2, 40, AvxVnniBlockMaxColumns, AvxVnniBlockTile,
     Avx2BlockRows, nullptr},
    {Isa::kAvx512Vnni, AFormat::kS8Groups, 6, 48, Avx512VnniBlockMaxColumns, Avx512VnniBlockTile,
     Avx512BlockRows, nullptr},
    {Isa::kAvx512Vnni, AFormat::kBf16, 6, 32, Avx512VnniMaxColumns, Avx512VnniTile, Avx512FloatRows,
     Avx512Bf16Peak, nullptr, nullptr, nullptr, &CpuInfo::avx512_bf16},
    {Isa::kAmxInt8, AFormat::kBf16, 32, 512, AmxMaxColumns, AmxFloatTile, Avx512FloatRows,
     AmxBf16Peak, AmxFloatSetUp, AmxFinish, nullptr, &CpuInfo::amx_bf16},
    {Isa::kAmxInt8, AFormat::kF16, 32, 512, AmxMaxColumns, AmxFloatTile, Avx512FloatRows,
     AmxFp16Peak, AmxFloatSetUp, AmxFinish, nullptr, &CpuInfo::amx_fp16},
    {Isa::kAmxInt8, AFormat::kS8Groups, 6, 48, Avx512VnniBlockMaxColumns, Avx512VnniBlockTile,
     Avx512BlockRows, nullptr},
#endif
};

// Null where the ISA has none, or this CPU lacks what it needs.
const KernelFamily* FindFamily(Isa isa, AFormat format) {
  for (const KernelFamily& family : kFamilies) {
    if (family.isa != isa || family.a_format != format) continue;
    if (family.needs == nullptr || Cpu().*family.needs) return &family;
  }
  return nullptr;
}

const KernelFamily& FamilyOf(Isa isa, AFormat format) {
  const KernelFamily* const found = FindFamily(isa, format);
  return found != nullptr ? *found : *FindFamily(Isa::kPortable, format);
}

}  // namespace

const KernelFamily& FamilyOf(Isa isa) {
  for (const KernelFamily& family : kFamilies) {
    const bool bytes = family.a_format == AFormat::kU8 || family.a_format == AFormat::kS16;
    if (family.isa == isa && bytes && family.make_splitter == nullptr) return family;
  }
  return kFamilies[0];
}

const KernelFamily& FloatFamilyOf(Isa isa) { return FamilyOf(isa, AFormat::kF32); }
const KernelFamily& BlockFamilyOf(Isa isa) { return FamilyOf(isa, AFormat::kS8Groups); }

const KernelFamily* PairsFamilyOf(Isa isa, XType x, WType w) {
  if (x == XType::kBf16 && w == WType::kBf16) return FindFamily(isa, AFormat::kBf16);
  if (x == XType::kF16 && w == WType::kF16) return FindFamily(isa, AFormat::kF16);
  return nullptr;
}

TransposeFn TransposeOf(Isa isa) {
#ifdef JAX_QGEMM_JIT
  if (isa != Isa::kPortable) return Avx2Transpose;
#endif
  static_cast<void>(isa);
  return PortableTranspose;
}

const KernelFamily* Acc16FamilyOf(Isa isa) {
  for (const KernelFamily& family : kFamilies) {
    if (family.isa == isa && family.make_splitter != nullptr) return &family;
  }
  return nullptr;
}

}  // namespace qgemm
