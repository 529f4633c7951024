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
#ifdef JAX_QGEMM_JIT
    {Isa::kAvx2, AFormat::kS16, 6, 28, Avx2MaxColumns, Avx2Tile, Avx2Rows, Avx2Peak},
    {Isa::kAvx512Bw, AFormat::kS16, 6, 32, Avx512BwMaxColumns, Avx512BwTile, Avx512BwRows,
     Avx512BwPeak},
    {Isa::kAvx2, AFormat::kU8, 5, 42, Avx2Acc16MaxColumns, Avx2Acc16Tile, Avx2Rows, nullptr,
     nullptr, MakeAcc16Splitter},
    {Isa::kAvx512Bw, AFormat::kU8, 6, 42, Avx512BwAcc16MaxColumns, Avx512BwAcc16Tile, Avx512BwRows,
     nullptr, nullptr, MakeAcc16Splitter},
    {Isa::kAvxVnni, AFormat::kU8, 6, 64, AvxVnniMaxColumns, AvxVnniTile, AvxVnniRows, AvxVnniPeak},
    {Isa::kAvx512Vnni, AFormat::kU8, 6, 64, Avx512VnniMaxColumns, Avx512VnniTile, Avx512VnniRows,
     Avx512VnniPeak},
    {Isa::kAmxInt8, AFormat::kU8, 32, 1024, AmxInt8MaxColumns, AmxInt8Tile, Avx512VnniRows,
     AmxInt8Peak, AmxInt8SetUp},
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
#endif
};

}  // namespace

const KernelFamily& FamilyOf(Isa isa) {
  for (const KernelFamily& family : kFamilies) {
    const bool second = family.make_splitter != nullptr || family.a_format == AFormat::kF32;
    if (family.isa == isa && !second) return family;
  }
  return kFamilies[0];
}

const KernelFamily& FloatFamilyOf(Isa isa) {
  for (const KernelFamily& family : kFamilies) {
    if (family.isa == isa && family.a_format == AFormat::kF32) return family;
  }
  return kFamilies[1];
}

const KernelFamily* Acc16FamilyOf(Isa isa) {
  for (const KernelFamily& family : kFamilies) {
    if (family.isa == isa && family.make_splitter != nullptr) return &family;
  }
  return nullptr;
}

}  // namespace qgemm
