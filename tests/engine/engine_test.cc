// Tests of the engine without Python or XLA: every kernel family this CPU runs, bit for bit against
// a reference in int64, over all forms of zero points, scales and outputs and sizes around every
// tile edge. It runs under sanitizers and CPU emulators too; AMX is emulated here where the CPU has
// all else that its kernels need. Arguments: [threads] [ISA ...]; default: all that run. `threads`
// leaves out what one thread does alone, of which a sanitizer of threads learns nothing.
//   engine_test code ISA ROWS COLUMNS [bfloat16|float16]
// writes the code of a kernel to the standard output, for a disassembler: 128 bytes each of what
// sets up tiles of so many rows and of what ends it, if there are such, then the tile's; of bytes,
// or of x and weights of the type.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "allocations.h"
#include "attention.h"
#include "call.h"
#include "gemm/names.h"
#include "loops.h"
#include "numerics.h"
#include "packing.h"
#include "sweep.h"

namespace {

using namespace qgemm;
using namespace qgemm::test;

// Every key of a tile has a name of its own.
bool NamesDiffer() {
  std::vector<TileKey> keys = {{}};
  const auto vary = [&keys](const auto& set, std::initializer_list<int> values) {
    std::vector<TileKey> varied;
    for (const TileKey& key : keys) {
      for (const int value : values) set(varied.emplace_back(key), value);
    }
    keys = std::move(varied);
  };
  const auto differ = [&keys] {
    std::set<std::string> names;
    for (const TileKey& key : keys) names.insert(Name(key));
    std::printf("%d keys, %d names\n", int(keys.size()), int(names.size()));
    return names.size() == keys.size();
  };
  vary([](TileKey& key, int v) { key.epilogue.out = OutType(v); }, {0, 1, 2, 3, 4, 5});
  const std::vector<TileKey> outs = keys;
  vary([](TileKey& key, int v) { key.rows = v; }, {0, 1, 16});
  vary([](TileKey& key, int v) { key.columns = v; }, {8, 64});
  vary([](TileKey& key, int v) { key.panel_columns = v; }, {16, 64});
  vary([](TileKey& key, int v) { key.part = KPart(v); }, {0, 1, 2, 3});
  vary([](TileKey& key, int v) { key.streams = v; }, {0, 1});
  vary([](TileKey& key, int v) { key.from_sums = v; }, {0, 1});
  vary([](TileKey& key, int v) { key.f32_panel = v; }, {0, 1});
  vary([](TileKey& key, int v) { key.short_k = v; }, {0, 1});
  vary([](TileKey& key, int v) { key.ends = v >= 0, key.first_row = std::max(v, 0); }, {-1, 0, 5});
  vary([](TileKey& key, int v) { key.w = WType(v); }, {0, 1, 2, 3, 4, 5});
  const auto none = [](const TileKey& key) { return !IsBlocks(key.w); };
  std::vector<TileKey> blocks = keys;
  blocks.erase(std::remove_if(blocks.begin(), blocks.end(), none), blocks.end());
  const bool of_weights = differ();
  keys = blocks;
  vary([](TileKey& key, int v) { key.blocks.scale = ScaleType(v); }, {0, 1, 2});
  vary([](TileKey& key, int v) { key.blocks.minimum = v; }, {0, 1});
  const bool of_tiles = differ() && of_weights;
  keys = outs;
  vary([](TileKey& key, int v) { key.epilogue.activation = Activation(v); }, {0, 1, 2, 3, 4});
  vary([](TileKey& key, int v) { key.epilogue.x_zero = Granularity(v); }, {0, 1, 2});
  vary([](TileKey& key, int v) { key.epilogue.x_scale = Granularity(v); }, {1, 2});
  vary([](TileKey& key, int v) { key.epilogue.w_zero = v; }, {0, 1});
  vary([](TileKey& key, int v) { key.epilogue.w_groups = v; }, {0, 1});
  vary([](TileKey& key, int v) { key.epilogue.bias = v; }, {0, 1});
  vary([](TileKey& key, int v) { key.epilogue.residual = ResidualType(v); }, {0, 1, 2, 3});
  vary([](TileKey& key, int v) { key.epilogue.out_scale_per_column = v; }, {0, 1});
  vary([](TileKey& key, int v) { key.epilogue.float_sums = v; }, {0, 1});
  return differ() && of_tiles;
}

// As if the CPU had them, for what emulates or only writes code.
void AllowPairsInTiles() {
  auto& cpu = const_cast<CpuInfo&>(Cpu());
  cpu.amx_bf16 = cpu.amx_fp16 = true;
}

#ifdef EMULATES_AMX
bool EmulatesAmx() { return Cpu().available.back() == Isa::kAvx512Vnni; }

// The peak loop is one that the CPU accepts; all products of the emulated kernels were AMX's.
bool RunAmx(const KernelFamily& family) {
  const std::int64_t before = amx_emulator::products;
  const PeakLoop peak = family.peak();
  peak.run(2);
  const std::int64_t products = amx_emulator::products - before;
  const double macs = 16.0 * 16 * 64 / double(SizeOf(family.a_format));
  const bool good = double(products) * macs == 2 * peak.macs_per_iteration && before > 0 &&
                    amx_emulator::threads_in_use == 0;
  if (!good)
    std::printf("FAILED AMX: %ld products before its peak loop, %ld in it\n", long(before),
                long(products));
  return good;
}
#endif

int WriteCode(const std::string& isa_name, int rows, int columns, const std::string& type) {
  AllowPairsInTiles();
  for (const Isa isa : kAllIsas) {
    TileKey key;
    key.rows = rows;
    key.columns = columns;
    const KernelFamily* found = &FamilyOf(isa);
    if (type == "bfloat16") {
      key.w = WType::kBf16;
      found = PairsFamilyOf(isa, XType::kBf16, key.w);
    } else if (type == "float16") {
      key.w = WType::kF16;
      found = PairsFamilyOf(isa, XType::kF16, key.w);
    }
    key.epilogue.float_sums = IsFloat(key.w);
    if (found == nullptr || found->isa != isa || isa_name != IsaName(isa)) continue;
    const KernelFamily& family = *found;
    const auto write = [](auto function, std::size_t bytes) {
      return std::fwrite(reinterpret_cast<const void*>(function), 1, bytes, stdout) == bytes;
    };
    bool good = true;
    for (const int setting : {rows, 0}) {
      if (family.set_up != nullptr) good = good && write(family.set_up(setting), 128);
    }
    return good && write(family.tile(key), 1024) ? 0 : 1;
  }
  std::fprintf(stderr, "no kernels of '%s'\n", isa_name.c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc >= 5 && std::string(argv[1]) == "code") {
    return WriteCode(argv[2], std::atoi(argv[3]), std::atoi(argv[4]), argc > 5 ? argv[5] : "");
  }
  std::vector<Isa> runnable = Cpu().available;
#ifdef EMULATES_AMX
  if (EmulatesAmx()) {
    amx_emulator::Install();
    runnable.push_back(Isa::kAmxInt8);
    AllowPairsInTiles();
  }
#endif
  const bool threads = argc > 1 && std::string(argv[1]) == "threads";
  const int named = threads ? 2 : 1;
  std::vector<Isa> isas;
  for (const Isa isa : runnable) {
    bool wanted = argc == named;
    for (int i = named; i < argc; ++i) wanted = wanted || std::string(argv[i]) == IsaName(isa);
    if (wanted) isas.push_back(isa);
  }
  const std::vector<std::int64_t> edges = {0,  1,  2,  3,  4,  5,  7,  8,  9,   15,  16, 17,
                                           31, 33, 47, 48, 63, 64, 65, 80, 127, 128, 129};
  int passed = 0, failed = 0;
  for (int i = 0; i < 200; ++i) {
    const std::int64_t items = Random(0, 40);
    const std::int64_t thrower = items > 0 && Random(0, 1) ? Random(0, items - 1) : -1;
    ++(RunParallel(items, int(Random(1, 5)), thrower) ? passed : failed);
  }
  ++(RunTogether() ? passed : failed);
  if (!threads) {
    ++(RunActivations() ? passed : failed);
    ++(RunHalf() ? passed : failed);
    ++(NamesDiffer() ? passed : failed);
    ++(RunPacking() ? passed : failed);
  }
  const auto check = [&](const Case& c) {
    if (!threads || c.threads > 1) ++(Run(c) ? passed : failed);
  };
  for (const Isa isa : isas) {
    const int max_rows = FamilyOf(isa).max_rows;
    std::printf("%s\n", IsaName(isa));
    if (!threads) ++(RunAllocations(isa) ? passed : failed);
    for (int i = 0; i < 40; ++i) ++(RunAttentionCase(isa) ? passed : failed);
    Sweep(isa, check);
    // Anything with anything, with empty products among them.
    for (int i = 0; i < 500; ++i) {
      check({{Random(0, 2 * max_rows + 2), Pick(edges), Pick(edges)}, RandomSpec(), isa, 1});
    }
    // Every height of a tile, with whatever is left of K.
    for (int rows = 1; rows <= max_rows + 1; ++rows) {
      for (int i = 0; i < 12; ++i)
        check({{rows, Pick(edges), Random(1, 300)}, RandomSpec(), isa, 1});
    }
    // Work enough for two threads of any family, split over M and over N.
    if (isa != Isa::kPortable) {
      check({{130, 576, 2800}, RandomSpec(), isa, 2});
      check({{20, 1024, 4200}, RandomSpec(), isa, 2});
      // Whose last panels are cut into items of fewer rows.
      for (int i = 0; i < 8; ++i) {
        check({{Random(48, 160), Random(128, 257), Random(500, 900)},
               RandomSpec(),
               isa,
               int(Random(2, 3))});
      }
      // Few rows, weights beyond the caches.
      for (const std::int64_t rows : {1, 1, 1, 2, 3, 4, 6}) {
        check({{rows, 1100, 4200}, RandomSpec(), isa, 2});
      }
    }
    // Long K: several blocks, also with 255 * 255 sums.
    for (const std::int64_t k : {32768, 65536, 131073, 200000}) {
      for (int i = 0; i < 2; ++i) check({{Random(1, 7), Random(1, 20), k}, RandomSpec(), isa, 2});
    }
  }
#ifdef EMULATES_AMX
  if (EmulatesAmx() && !isas.empty() && isas.back() == Isa::kAmxInt8) {
    ++(RunAmx(FamilyOf(Isa::kAmxInt8)) ? passed : failed);
    ++(RunAmx(*PairsFamilyOf(Isa::kAmxInt8, XType::kBf16, WType::kBf16)) ? passed : failed);
    ++(RunAmx(*PairsFamilyOf(Isa::kAmxInt8, XType::kF16, WType::kF16)) ? passed : failed);
  }
#endif
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
