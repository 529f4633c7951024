// The AMX families. tdpbusd multiplies a tile of x, up to 16 rows x 64 bytes, by one of weights, 16
// quads x 16 columns as they lie in the packed layout, and adds to a tile of int32. tdpbf16ps and
// tdpfp16ps do so with pairs of 16-bit floats, added to f32.
//
// Four tiles hold sums, of 32 rows x 32 columns, or 16 x 64. K goes through the tiles 64 bytes at a
// time. The sums then go through memory to kernels of AVX-512, a few rows at a
// time, for the epilogue: there is one. These run between the products of the tile that comes next,
// which the CPU multiplies meanwhile. What is left of K, at most 15 quads, they add to sums of
// int32; of floats it goes through the tiles, in copies filled up with zeros, so that the order of
// a sum depends on K alone. So nothing is read beyond x or the weights. Tiles of very few rows of
// bytes are AVX-512 VNNI's altogether.
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
    // The function of the tile: RunTile(args, this).
    mov(rsi, std::size_t(this));
    mov(rax, std::size_t(&RunTile));
    jmp(rax);
    const int tiles = key.columns / int(kColumnUnit);
    for (int first = 0; first < tiles; first += registers_.max_column_tiles()) {
      const int count = std::min(tiles - first, registers_.max_column_tiles());
      if (passes_.empty() || passes_.back().column_tiles != count) {
        passes_.push_back({count, Function<ZeroFn>([&] { EmitZero(count); }),
                           Function<MultiplyFn>([&] { EmitMultiply(count); }),
                           Function<StoreFn>([&] { EmitStore(count); })});
      } else {
        passes_.push_back(passes_.back());
      }
    }
    setProtectModeRE();

    TileKey finish = key;
    finish.streams = false;
    finish.from_sums = finish.ends = true;
    int left = key.rows;
    for (std::int64_t parts = CeilDiv(left, kFinishRows); parts > 0; --parts) {
      finish.rows = int(CeilDiv(left, parts));
      finish_.push_back(IsFloat(key.w) ? Avx512FloatTile(finish) : Avx512VnniTile(finish));
      finish.first_row += finish.rows;
      left -= finish.rows;
    }
  }

  TileFn function() const { return getCode<TileFn>(); }

  // What is left of the deferred tile.
  static void Finish(DeferredTile& deferred) {
    Ending ending(deferred);
    while (ending.parts() > 0) ending.Next();
  }

 private:
  using ZeroFn = void (*)();
  // Of so many steps of K. `scratch` takes two tiles of weights.
  using MultiplyFn = void (*)(const void* a, std::int64_t a_stride, const std::int8_t* b,
                              std::int64_t steps, std::uint8_t* scratch);
  using StoreFn = void (*)(std::int32_t* sums);
  // Across the columns of the tile, as many as there are registers for at once.
  struct Pass {
    int column_tiles;
    ZeroFn zero;
    MultiplyFn multiply;
    StoreFn store;
  };
  static constexpr std::size_t kCapacity = 8192;

  // Of the deferred tile, if there is one: the kernels after its products, one by one.
  class Ending {
   public:
    explicit Ending(DeferredTile& deferred) : args_(deferred.args) {
      const auto* kernel = static_cast<const AmxTileEmitter*>(deferred.kernel);
      if (kernel == nullptr) return;
      next_ = kernel->finish_.data();
      end_ = next_ + kernel->finish_.size();
      deferred.kernel = nullptr;
    }

    std::int64_t parts() const { return end_ - next_; }
    void Next() { (*next_++)(args_); }

   private:
    TileArgs* const args_;
    const TileFn *next_ = nullptr, *end_ = nullptr;
  };

  // Of what the tile fetches a part after each part of its steps.
  class Fetch {
   public:
    Fetch(const TileArgs& args, std::int64_t steps)
        : next_(static_cast<const char*>(args.next)), bytes_(args.next_bytes), steps_(steps) {}

    void Next(std::int64_t steps_left) {
      const std::int64_t end = bytes_ - bytes_ * steps_left / steps_;
      for (; at_ < end; at_ += 64) __builtin_prefetch(next_ + at_, 0, 2);
    }

   private:
    const char* const next_;
    const std::int64_t bytes_, steps_;
    std::int64_t at_ = 0;
  };

  static void RunTile(TileArgs* args, const AmxTileEmitter* kernel) { kernel->Run(*args); }

  void Run(TileArgs& args) const {
    DeferredTile& deferred = *args.deferred;
    std::int32_t* const sums = deferred.sums[deferred.turn];
    deferred.turn = 1 - deferred.turn;
    alignas(64) std::uint8_t scratch[2 * kRegisterQuads * kRegisterBytes];
    const std::int64_t steps = args.quads / kRegisterQuads;
    const std::int64_t rest = args.quads - steps * kRegisterQuads;
    std::int64_t left = steps * std::int64_t(passes_.size());
    Ending ending(deferred);
    Fetch fetch(args, left);
    std::int64_t column = 0;
    for (const Pass& pass : passes_) {
      const auto* a = static_cast<const std::uint8_t*>(args.a);
      const std::int8_t* b = args.b + column * kQuad;
      pass.zero();
      for (std::int64_t of_pass = steps; of_pass > 0;) {
        const std::int64_t some = std::min(of_pass, CeilDiv(left, ending.parts() + 1));
        pass.multiply(a, args.a_stride, b, some, scratch);
        a += some * kRegisterBytes;
        b += some * kRegisterQuads * panel_bytes();
        of_pass -= some;
        left -= some;
        if (ending.parts() > 0) ending.Next();
        fetch.Next(left);
      }
      if (IsFloat(key_.w) && rest > 0) MultiplyRest(pass, a, args.a_stride, b, rest, scratch);
      pass.store(sums + column);
      column += pass.column_tiles * kColumnUnit;
    }
    while (ending.parts() > 0) ending.Next();

    args.a = static_cast<const std::uint8_t*>(args.a) + steps * kRegisterBytes;
    args.b += steps * kRegisterQuads * panel_bytes();
    args.quads = IsFloat(key_.w) ? 0 : rest;
    args.sums = sums;
    deferred.args = &args;
    deferred.kernel = this;
    // The sums of the parts of K before are where the next tile would put its own.
    if (key_.part != KPart::kWhole) Finish(deferred);
  }

  void MultiplyRest(const Pass& pass, const std::uint8_t* a, std::int64_t a_stride,
                    const std::int8_t* b, std::int64_t quads, std::uint8_t* scratch) const {
    alignas(64) std::uint8_t rows[kMostTileRows * kRegisterBytes] = {};
    alignas(64) std::int8_t weights[kRegisterQuads * kPanelColumns * kQuad] = {};
    for (int row = 0; row < key_.rows; ++row) {
      std::copy_n(a + row * a_stride, quads * kQuad, rows + row * kRegisterBytes);
    }
    for (std::int64_t quad = 0; quad < quads; ++quad) {
      const std::int64_t offset = quad * panel_bytes();
      std::copy_n(b + offset, pass.column_tiles * kRegisterBytes, weights + offset);
    }
    pass.multiply(rows, kRegisterBytes, weights, 1, scratch);
  }

  template <class Fn, class Emit>
  Fn Function(const Emit& emit) {
    align(32);
    const auto function = getCurr<Fn>();
    emit();
    ret();
    return function;
  }

  void EmitZero(int column_tiles) {
    for (int i = 0; i < registers_.row_tiles() * column_tiles; ++i) tilezero(Tmm(i));
  }

  // Adds the products of `steps`.
  void EmitMultiply(int column_tiles) {
    const int row_tiles = registers_.row_tiles();
    const auto a = [&](int row_tile) { return row_tile == 0 ? reg_a : reg_a_second; };
    if (interleaves()) {
      mov(rax, std::size_t(kInterleave.data()));
      vmovups(zmm0, ptr[rax]);
    }
    if (row_tiles == 2) {
      imul(reg_a_second, reg_a_stride, registers_.first_rows());
      add(reg_a_second, reg_a);
    }
    mov(reg_b_stride, interleaves() ? kRegisterBytes : panel_bytes());

    Xbyak::Label loop;
    align(32);
    L(loop);
    for (int row_tile = 0; row_tile < row_tiles; ++row_tile) {
      tileloadd(registers_.X(row_tile), ptr[a(row_tile) + reg_a_stride]);
      for (int j = 0; j < column_tiles; ++j) {
        // Back from where the row before ended: that one has just been loaded.
        const int i = row_tile == 0 ? j : column_tiles - 1 - j;
        if (row_tile == 0) LoadWeights(i);
        Multiply(registers_.Sums(row_tile, i), registers_.X(row_tile), registers_.Weights(i));
      }
    }
    for (int i = 0; key_.streams && i < column_tiles; ++i) {
      for (int quad = 0; quad < kRegisterQuads; ++quad) {
        FetchStream(*this, reg_b + (quad * panel_bytes() + i * kRegisterBytes));
      }
    }
    for (int row_tile = 0; row_tile < row_tiles; ++row_tile) add(a(row_tile), kRegisterBytes);
    add(reg_b, kRegisterQuads * panel_bytes());
    sub(reg_steps, 1);
    jnz(loop, T_NEAR);
    if (interleaves()) vzeroupper();
  }

  // sums[rows][kPanelColumns] of int32 or f32.
  void EmitStore(int column_tiles) {
    const Xbyak::Reg64 &reg_sums = rdi, &reg_stride = rax;
    mov(reg_stride, kSumsStride);
    for (int row_tile = 0; row_tile < registers_.row_tiles(); ++row_tile) {
      const int first = row_tile * registers_.first_rows() * kSumsStride;
      for (int i = 0; i < column_tiles; ++i) {
        tilestored(ptr[reg_sums + reg_stride + (first + i * kRegisterBytes)],
                   registers_.Sums(row_tile, i));
      }
    }
  }

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

  // Of EmitMultiply: the arguments, then what is worked out.
  const Xbyak::Reg64 reg_a{rdi}, reg_a_stride{rsi}, reg_b{rdx}, reg_steps{rcx}, reg_scratch{r8},
      reg_b_stride{r9}, reg_a_second{r10};
  const TileKey key_;
  const Registers registers_{key_.rows};
  std::vector<Pass> passes_;
  std::vector<TileFn> finish_;
};

TileFn AmxTile(const TileKey& key) {
  static auto& cache = *new TileCache<AmxTileEmitter>(Isa::kAmxInt8);
  return cache.Get(key);
}

}  // namespace

int AmxMaxColumns(int) { return 64; }

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

void AmxFinish(DeferredTile& deferred) { AmxTileEmitter::Finish(deferred); }

}  // namespace qgemm
