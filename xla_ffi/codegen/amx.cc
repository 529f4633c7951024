// The AMX families. tdpbusd multiplies a tile of x, up to 16 rows x 64 bytes, by one of weights, 16
// quads x 16 columns as they lie in the packed layout, and adds to a tile of int32. tdpbf16ps and
// tdpfp16ps do so with pairs of 16-bit floats, added to f32.
//
// A micro-kernel holds four tiles of sums: 32 rows x 32 columns, or 16 x 64. K goes through the
// tiles 64 bytes at a time. The sums then go through memory to kernels of AVX-512, a few rows at a
// time, for the epilogue: there is one. What is left of K, at most 15 quads, these kernels add to
// sums of int32; of floats it goes through the tiles, in copies filled up with zeros, so that the
// order of a sum depends on K alone. So nothing is read beyond x or the weights. Tiles of very few
// rows of bytes are AVX-512 VNNI's altogether.
#include <xbyak/xbyak.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "codegen/families.h"
#include "codegen/stream.h"
#include "codegen/tile_cache.h"

namespace qgemm {
namespace {

using Xbyak::Tmm;

// Of one tile register.
constexpr int kRegisterRows = 16;
constexpr int kRegisterBytes = 64;  // a row
constexpr int kRegisterQuads = 16;

constexpr int kSumsStride = 4 * int(kPanelColumns);  // bytes
constexpr int kFewRows = 4;                          // of bytes: AVX-512 VNNI's altogether
constexpr int kFinishRows = 6;                       // the largest tile of AVX-512

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

// Elements of two times 16, to take turns.
constexpr std::array<std::uint16_t, 32> kInterleave = [] {
  std::array<std::uint16_t, 32> order{};
  for (std::uint16_t i = 0; i < 32; ++i) order[i] = std::uint16_t(i % 2 * 16 + i / 2);
  return order;
}();

// One function per number of rows, and one, for 0, that gives the registers back: other code on
// this thread may use them too, and what holds nothing costs a context switch nothing.
class SetUpEmitter final : public Xbyak::CodeGenerator {
 public:
  explicit SetUpEmitter(int few_rows) : CodeGenerator(kCapacity, Xbyak::DontSetProtectRWE) {
    for (int rows = 0; rows <= kMostTileRows; ++rows) {
      align(16);
      functions_[rows] = getCurr<SetUpFn>();
      Xbyak::Label config;
      if (rows == 0) tilerelease();
      if (rows > few_rows) ldtilecfg(ptr[rip + config]);
      ret();
      if (rows <= few_rows) continue;
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
    mov(rax, IsFloat(key.w) ? std::size_t(&RunFloats) : std::size_t(&RunBytes));
    jmp(rax);
    align(32);
    multiply_ = getCurr<MultiplyFn>();
    EmitMultiply();
    setProtectModeRE();

    TileKey finish = key;
    finish.streams = false;
    finish.from_sums = true;
    int left = key.rows;
    for (std::int64_t parts = CeilDiv(left, kFinishRows); parts > 0; --parts) {
      finish.rows = int(CeilDiv(left, parts));
      const TileFn run = IsFloat(key.w) ? Avx512FloatTile(finish) : Avx512VnniTile(finish);
      finish_.push_back({finish.rows, run});
      left -= finish.rows;
    }
  }

  TileFn function() const { return getCode<TileFn>(); }

 private:
  // `scratch` takes two tiles of weights.
  using MultiplyFn = void (*)(const TileArgs*, std::int32_t* sums, std::uint8_t* scratch);
  struct Finish {
    int rows;
    TileFn run;
  };
  static constexpr std::size_t kCapacity = 8192;

  static void RunBytes(const TileArgs* args, const AmxTileEmitter* kernel) {
    alignas(64) std::int32_t sums[kMostTileRows * kPanelColumns];
    kernel->multiply_(args, sums, nullptr);
    kernel->RunFinish(kernel->Rest(*args), sums);
  }

  static void RunFloats(const TileArgs* args, const AmxTileEmitter* kernel) {
    alignas(64) std::int32_t sums[kMostTileRows * kPanelColumns] = {};
    alignas(64) std::uint8_t scratch[2 * kRegisterQuads * kRegisterBytes];
    kernel->multiply_(args, sums, scratch);
    TileArgs rest = kernel->Rest(*args);
    if (rest.quads > 0) {
      alignas(64) std::uint8_t a[kMostTileRows * kRegisterBytes] = {};
      alignas(64) std::int8_t b[kRegisterQuads * kPanelColumns * kQuad] = {};
      const TileKey& key = kernel->key_;
      for (int row = 0; row < key.rows; ++row) {
        const auto* from = static_cast<const std::uint8_t*>(rest.a) + row * rest.a_stride;
        std::copy_n(from, rest.quads * kQuad, a + row * kRegisterBytes);
      }
      for (std::int64_t quad = 0; quad < rest.quads; ++quad) {
        const std::int64_t offset = quad * key.panel_columns * kQuad;
        std::copy_n(rest.b + offset, key.columns * kQuad, b + offset);
      }
      rest.a = a;
      rest.a_stride = kRegisterBytes;
      rest.b = b;
      rest.quads = kRegisterQuads;
      kernel->multiply_(&rest, sums, scratch);
      rest.quads = 0;
    }
    kernel->RunFinish(rest, sums);
  }

  // What is left behind the last whole tile of K.
  TileArgs Rest(const TileArgs& args) const {
    const std::int64_t quads = args.quads / kRegisterQuads * kRegisterQuads;
    TileArgs rest = args;
    rest.a = static_cast<const std::uint8_t*>(rest.a) + quads * kQuad;
    rest.b += quads * kQuad * key_.panel_columns;
    rest.quads -= quads;
    return rest;
  }

  void RunFinish(TileArgs rest, const std::int32_t* sums) const {
    rest.sums = sums;
    for (const Finish& finish : finish_) {
      finish.run(&rest);
      SkipRows(rest, finish.rows);
    }
  }

  // sums[rows][kPanelColumns], of int32, = the products of K up to the last whole tile of it; of
  // f32, += them.
  void EmitMultiply() {
    const int row_tiles = registers_.row_tiles();
    const auto a = [&](int row_tile) { return row_tile == 0 ? reg_a : reg_a_second; };
    if (interleaves()) {
      mov(reg_scratch, rdx);
      mov(rax, std::size_t(kInterleave.data()));
      vmovups(zmm0, ptr[rax]);
    }
    if (IsFloat(key_.w)) {
      ForSums([this](const Tmm& tile, const Xbyak::Address& sums) { tileloadd(tile, sums); });
    } else {
      for (int i = 0; i < row_tiles * column_tiles(); ++i) tilezero(Tmm(i));
    }
    mov(reg_a, ptr[reg_args + offsetof(TileArgs, a)]);
    mov(reg_a_stride, ptr[reg_args + offsetof(TileArgs, a_stride)]);
    if (row_tiles == 2) {
      imul(reg_a_second, reg_a_stride, registers_.first_rows());
      add(reg_a_second, reg_a);
    }
    mov(reg_b, ptr[reg_args + offsetof(TileArgs, b)]);
    mov(reg_b_stride, interleaves() ? kRegisterBytes : panel_bytes());
    mov(reg_quads, ptr[reg_args + offsetof(TileArgs, quads)]);

    Xbyak::Label loop, done;
    sub(reg_quads, kRegisterQuads);
    jl(done, T_NEAR);
    align(32);
    L(loop);
    for (int row_tile = 0; row_tile < row_tiles; ++row_tile) {
      tileloadd(registers_.X(row_tile), ptr[a(row_tile) + reg_a_stride]);
    }
    for (int i = 0; i < column_tiles(); ++i) {
      LoadWeights(i);
      for (int row_tile = 0; row_tile < row_tiles; ++row_tile) {
        Multiply(registers_.Sums(row_tile, i), registers_.X(row_tile), registers_.Weights(i));
      }
      for (int quad = 0; key_.streams && quad < kRegisterQuads; ++quad) {
        FetchStream(*this, reg_b + (quad * panel_bytes() + i * kRegisterBytes));
      }
    }
    for (int row_tile = 0; row_tile < row_tiles; ++row_tile) add(a(row_tile), kRegisterBytes);
    add(reg_b, kRegisterQuads * panel_bytes());
    sub(reg_quads, kRegisterQuads);
    jge(loop, T_NEAR);
    L(done);
    ForSums([this](const Tmm& tile, const Xbyak::Address& sums) { tilestored(sums, tile); });
    if (interleaves()) vzeroupper();
    ret();
  }

  int column_tiles() const { return key_.columns / int(kColumnUnit); }
  int panel_bytes() const { return key_.panel_columns * int(kQuad); }  // from quad to quad
  // float16 lies with 16 columns of one row of K together, tdpfp16ps takes two rows by turns.
  bool interleaves() const { return key_.w == WType::kF16; }

  void LoadWeights(int i) {
    const Tmm weights = registers_.Weights(i);
    const Xbyak::RegExp from = reg_b + i * kRegisterBytes;
    if (!interleaves()) {
      tileloadd(weights, ptr[from + reg_b_stride]);
      return;
    }
    const Xbyak::RegExp to = reg_scratch + i % 2 * kRegisterQuads * kRegisterBytes;
    for (int quad = 0; quad < kRegisterQuads; ++quad) {
      vpermw(zmm1, zmm0, ptr[from + quad * panel_bytes()]);
      vmovups(ptr[to + quad * kRegisterBytes], zmm1);
    }
    tileloadd(weights, ptr[to + reg_b_stride]);
  }

  void Multiply(const Tmm& sums, const Tmm& x, const Tmm& weights) {
    if (key_.w == WType::kBf16) {
      tdpbf16ps(sums, x, weights);
    } else if (key_.w == WType::kF16) {
      tdpfp16ps(sums, x, weights);
    } else {
      tdpbusd(sums, x, weights);
    }
  }

  // Every tile of sums and where they are in memory.
  template <class Use>
  void ForSums(const Use& use) {
    const Xbyak::Reg64& reg_sums_stride = reg_b_stride;
    mov(reg_sums_stride, kSumsStride);
    for (int row_tile = 0; row_tile < registers_.row_tiles(); ++row_tile) {
      const int first = row_tile * registers_.first_rows() * kSumsStride;
      for (int i = 0; i < column_tiles(); ++i) {
        use(registers_.Sums(row_tile, i),
            ptr[reg_sums + reg_sums_stride + (first + i * kRegisterBytes)]);
      }
    }
  }

  const Xbyak::Reg64 reg_args{rdi}, reg_sums{rsi}, reg_a{rax}, reg_a_second{rdx}, reg_a_stride{rcx},
      reg_b{r8}, reg_b_stride{r9}, reg_quads{r10}, reg_scratch{r11};
  const TileKey key_;
  const Registers registers_{key_.rows};
  MultiplyFn multiply_ = nullptr;
  std::vector<Finish> finish_;
};

TileFn AmxTile(const TileKey& key) {
  static auto& cache = *new TileCache<AmxTileEmitter>(Isa::kAmxInt8);
  return cache.Get(key);
}

}  // namespace

int AmxMaxColumns(int rows) { return rows <= kRegisterRows ? 64 : 32; }

TileFn AmxInt8Tile(const TileKey& key) {
  return key.rows <= kFewRows ? Avx512VnniTile(key) : AmxTile(key);
}

SetUpFn AmxInt8SetUp(int rows) {
  static const auto& emitter = *new SetUpEmitter(kFewRows);
  return emitter.function(rows);
}

TileFn AmxFloatTile(const TileKey& key) { return AmxTile(key); }

SetUpFn AmxFloatSetUp(int rows) {
  static const auto& emitter = *new SetUpEmitter(0);
  return emitter.function(rows);
}

}  // namespace qgemm
