// The AMX family. tdpbusd multiplies a tile of x, up to 16 rows x 64 bytes, by one of weights, 16
// quads x 16 columns as they lie in the packed layout, and adds to a tile of int32.
//
// A micro-kernel holds four tiles of sums: 32 rows x 32 columns, or 16 x 64. K goes through tdpbusd
// in whole tiles. The sums then go through memory to kernels of AVX-512 VNNI, a few rows at a time:
// they add what is left of K, at most 15 quads, and run the epilogue. So nothing is read beyond x
// or the weights, and there is one epilogue. Tiles of very few rows are AVX-512 VNNI's altogether.
#include <xbyak/xbyak.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "codegen/families.h"
#include "codegen/tile_cache.h"

namespace qgemm {
namespace {

using Xbyak::Tmm;

// Of one tile register.
constexpr int kRegisterRows = 16;
constexpr int kRegisterBytes = 64;  // a row
constexpr int kRegisterQuads = 16;

constexpr int kSumsStride = 4 * int(kPanelColumns);  // bytes
constexpr int kFewRows = 4;                          // AVX-512 VNNI's altogether
constexpr int kVnniRows = 6;                         // its largest tile
constexpr int kPrefetchDistance = 4096;              // bytes ahead, as in vnni.cc

// The registers of a tile of `rows`: above 16 it is cut in two, evenly.
struct Registers {
  int rows;

  int row_tiles() const { return rows > kRegisterRows ? 2 : 1; }
  int first_rows() const { return int(CeilDiv(rows, row_tiles())); }
  int RowsOf(int row_tile) const { return row_tile == 0 ? first_rows() : rows - first_rows(); }
  int max_column_tiles() const { return 4 / row_tiles(); }

  Tmm Sums(int row_tile, int column_tile) const {
    return Tmm(column_tile * row_tiles() + row_tile);
  }
  Tmm X(int row_tile) const { return Tmm(4 + row_tile); }
  Tmm Weights(int column_tile) const { return Tmm(6 + column_tile % 2); }
};

// What ldtilecfg loads.
struct TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};

  explicit TileConfig(const Registers& registers) {
    const auto set = [this](const Tmm& tile, int count) {
      row_bytes[tile.getIdx()] = kRegisterBytes;
      rows[tile.getIdx()] = std::uint8_t(count);
    };
    for (int row_tile = 0; row_tile < registers.row_tiles(); ++row_tile) {
      const int count = registers.RowsOf(row_tile);
      set(registers.X(row_tile), count);
      for (int i = 0; i < registers.max_column_tiles(); ++i)
        set(registers.Sums(row_tile, i), count);
    }
    for (const int i : {0, 1}) set(registers.Weights(i), kRegisterQuads);
  }
};
static_assert(sizeof(TileConfig) == 64, "the layout is the CPU's");

// One function per number of rows, and one, for 0, that gives the registers back: other code on
// this thread may use them too, and what holds nothing costs a context switch nothing.
class SetUpEmitter final : public Xbyak::CodeGenerator {
 public:
  SetUpEmitter() : CodeGenerator(kCapacity, Xbyak::DontSetProtectRWE) {
    for (int rows = 0; rows <= kMostTileRows; ++rows) {
      align(16);
      functions_[rows] = getCurr<SetUpFn>();
      Xbyak::Label config;
      if (rows == 0) tilerelease();
      if (rows > kFewRows) ldtilecfg(ptr[rip + config]);
      ret();
      if (rows <= kFewRows) continue;
      const TileConfig bytes(Registers{rows});
      align(16);
      L(config);
      db(reinterpret_cast<const std::uint8_t*>(&bytes), sizeof bytes);
    }
    setProtectModeRE();
  }

  SetUpFn function(int rows) const { return functions_[rows]; }

 private:
  static constexpr std::size_t kCapacity = 4096;
  SetUpFn functions_[kMostTileRows + 1];
};

class AmxTileEmitter final : public Xbyak::CodeGenerator {
 public:
  explicit AmxTileEmitter(const TileKey& key)
      : CodeGenerator(kCapacity, Xbyak::DontSetProtectRWE), key_(key) {
    // The function of the tile: Run(args, this).
    mov(rsi, std::size_t(this));
    mov(rax, std::size_t(&Run));
    jmp(rax);
    align(32);
    multiply_ = getCurr<MultiplyFn>();
    EmitMultiply();
    setProtectModeRE();

    TileKey finish = key;
    finish.streams = false;
    finish.from_sums = true;
    int left = key.rows;
    for (std::int64_t parts = CeilDiv(left, kVnniRows); parts > 0; --parts) {
      finish.rows = int(CeilDiv(left, parts));
      finish_.push_back({finish.rows, Avx512VnniTile(finish)});
      left -= finish.rows;
    }
  }

  TileFn function() const { return getCode<TileFn>(); }

 private:
  using MultiplyFn = void (*)(const TileArgs*, std::int32_t* sums);
  struct Finish {
    int rows;
    TileFn run;
  };
  static constexpr std::size_t kCapacity = 4096;

  static void Run(const TileArgs* args, const AmxTileEmitter* kernel) {
    alignas(64) std::int32_t sums[kMostTileRows * kPanelColumns];
    kernel->multiply_(args, sums);
    const std::int64_t quads = args->quads / kRegisterQuads * kRegisterQuads;
    TileArgs rest = *args;
    rest.sums = sums;
    rest.a = static_cast<const std::uint8_t*>(rest.a) + quads * kQuad;
    rest.b += quads * kQuad * kernel->key_.panel_columns;
    rest.quads -= quads;
    for (const Finish& finish : kernel->finish_) {
      finish.run(&rest);
      SkipRows(rest, finish.rows);
    }
  }

  // sums[rows][kPanelColumns] = the products of K up to the last whole tile of it.
  void EmitMultiply() {
    const Registers registers{key_.rows};
    const int row_tiles = registers.row_tiles(), column_tiles = key_.columns / int(kColumnUnit);
    const int panel_bytes = key_.panel_columns * int(kQuad);  // from quad to quad
    const Xbyak::Reg64 reg_args{rdi}, reg_sums{rsi}, reg_a{rax}, reg_a_second{rdx},
        reg_a_stride{rcx}, reg_b{r8}, reg_b_stride{r9}, reg_quads{r10};
    const auto a = [&](int row_tile) { return row_tile == 0 ? reg_a : reg_a_second; };
    mov(reg_a, ptr[reg_args + offsetof(TileArgs, a)]);
    mov(reg_a_stride, ptr[reg_args + offsetof(TileArgs, a_stride)]);
    if (row_tiles == 2) {
      imul(reg_a_second, reg_a_stride, registers.first_rows());
      add(reg_a_second, reg_a);
    }
    mov(reg_b, ptr[reg_args + offsetof(TileArgs, b)]);
    mov(reg_b_stride, panel_bytes);
    mov(reg_quads, ptr[reg_args + offsetof(TileArgs, quads)]);
    for (int i = 0; i < row_tiles * column_tiles; ++i) tilezero(Tmm(i));

    Xbyak::Label loop, done;
    sub(reg_quads, kRegisterQuads);
    jl(done, T_NEAR);
    align(32);
    L(loop);
    for (int row_tile = 0; row_tile < row_tiles; ++row_tile) {
      tileloadd(registers.X(row_tile), ptr[a(row_tile) + reg_a_stride]);
    }
    for (int i = 0; i < column_tiles; ++i) {
      tileloadd(registers.Weights(i), ptr[reg_b + reg_b_stride + i * kRegisterBytes]);
      for (int row_tile = 0; row_tile < row_tiles; ++row_tile) {
        tdpbusd(registers.Sums(row_tile, i), registers.X(row_tile), registers.Weights(i));
      }
      for (int quad = 0; key_.streams && quad < kRegisterQuads; ++quad) {
        prefetchnta(ptr[reg_b + (quad * panel_bytes + i * kRegisterBytes + kPrefetchDistance)]);
      }
    }
    for (int row_tile = 0; row_tile < row_tiles; ++row_tile) add(a(row_tile), kRegisterBytes);
    add(reg_b, kRegisterQuads * panel_bytes);
    sub(reg_quads, kRegisterQuads);
    jge(loop, T_NEAR);
    L(done);

    const Xbyak::Reg64& reg_sums_stride = reg_b_stride;
    mov(reg_sums_stride, kSumsStride);
    for (int row_tile = 0; row_tile < row_tiles; ++row_tile) {
      const int first = row_tile * registers.first_rows() * kSumsStride;
      for (int i = 0; i < column_tiles; ++i) {
        tilestored(ptr[reg_sums + reg_sums_stride + (first + i * kRegisterBytes)],
                   registers.Sums(row_tile, i));
      }
    }
    ret();
  }

  const TileKey key_;
  MultiplyFn multiply_ = nullptr;
  std::vector<Finish> finish_;
};

}  // namespace

int AmxInt8MaxColumns(int rows) { return rows <= kRegisterRows ? 64 : 32; }

TileFn AmxInt8Tile(const TileKey& key) {
  if (key.rows <= kFewRows) return Avx512VnniTile(key);
  static auto& cache = *new TileCache<AmxTileEmitter>(Isa::kAmxInt8);
  return cache.Get(key);
}

SetUpFn AmxInt8SetUp(int rows) {
  static const auto& emitter = *new SetUpEmitter;
  return emitter.function(rows);
}

}  // namespace qgemm
