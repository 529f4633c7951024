// Runs the AMX instructions of our kernels on a CPU that has none: each raises SIGILL, whose
// handler does what the instruction does and goes on behind it. Whatever the CPU would refuse, and
// what our kernels have no use for, ends the program. x86-64 Linux.
#pragma once

#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "pair_sums.h"
#include "portable/half.h"
#include "runtime/float_env.h"

namespace amx_emulator {

constexpr int kTiles = 8, kMaxRows = 16, kMaxRowBytes = 64;

// As ldtilecfg loads it.
struct Config {
  std::uint8_t palette, start_row, reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};
static_assert(sizeof(Config) == 64, "the layout is the CPU's");

struct Tile {
  std::uint8_t bytes[kMaxRows][kMaxRowBytes];
};

struct State {
  Config config;
  Tile tiles[kTiles];
};

// Of each thread, zero at its start.
inline State& ThreadState() {
  static thread_local State state;
  return state;
}

inline std::atomic<std::int64_t> products{0};        // executed
inline std::atomic<std::int64_t> threads_in_use{0};  // that hold a configuration

inline void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "AMX emulator: %s\n", what);
  std::abort();
}

inline int Rows(int tile) { return ThreadState().config.rows[tile]; }
inline int RowBytes(int tile) { return ThreadState().config.row_bytes[tile]; }

// ---------------------------------------------------------------- the instructions

inline void Release() {
  State& state = ThreadState();
  if (state.config.palette != 0) --threads_in_use;
  std::memset(&state, 0, sizeof state);
}

inline void LoadConfig(const std::uint8_t* from) {
  Release();
  Config config;
  std::memcpy(&config, from, sizeof config);
  Require(config.palette == 1, "the palette is not 1");
  Require(config.start_row == 0, "a start row");
  for (const std::uint8_t byte : config.reserved) Require(byte == 0, "a reserved byte is set");
  for (int i = 0; i < 16; ++i) {
    const int rows = config.rows[i], bytes = config.row_bytes[i];
    Require(rows <= (i < kTiles ? kMaxRows : 0), "too many rows");
    Require(bytes <= (i < kTiles ? kMaxRowBytes : 0), "too many bytes in a row");
    Require((rows == 0) == (bytes == 0), "rows without bytes, or bytes without rows");
  }
  ThreadState().config = config;
  ++threads_in_use;
}

inline void StoreConfig(std::uint8_t* to) {
  std::memcpy(to, &ThreadState().config, sizeof(Config));
}

inline void Zero(int tile) {
  Require(Rows(tile) > 0, "tilezero of a tile that is not configured");
  std::memset(&ThreadState().tiles[tile], 0, sizeof(Tile));
}

inline void Load(int tile, const std::uint8_t* from, std::int64_t stride) {
  Zero(tile);
  for (int row = 0; row < Rows(tile); ++row) {
    std::memcpy(ThreadState().tiles[tile].bytes[row], from + row * stride,
                std::size_t(RowBytes(tile)));
  }
}

inline void Store(int tile, std::uint8_t* to, std::int64_t stride) {
  Require(Rows(tile) > 0, "tilestored of a tile that is not configured");
  for (int row = 0; row < Rows(tile); ++row) {
    std::memcpy(to + row * stride, ThreadState().tiles[tile].bytes[row],
                std::size_t(RowBytes(tile)));
  }
}

inline void RequireOperands(int sums, int a, int b) {
  Require(sums != a && sums != b && a != b, "a product of a tile by itself");
  Require(Rows(sums) > 0 && Rows(sums) == Rows(a), "rows of sums and x differ");
  Require(RowBytes(a) == 4 * Rows(b) && Rows(b) > 0, "K of x and weights differ");
  Require(RowBytes(sums) == RowBytes(b), "columns of sums and weights differ");
}

// sums[m][n] += sum_k a[m][k] * b[k / 4][4 n + k % 4], a of unsigned and b of signed bytes.
inline void MultiplyBytes(int sums, int a, int b) {
  RequireOperands(sums, a, b);
  Tile* const tiles = ThreadState().tiles;
  for (int m = 0; m < Rows(sums); ++m) {
    std::uint32_t row[kMaxRowBytes / 4];
    std::memcpy(row, tiles[sums].bytes[m], sizeof row);
    for (int k = 0; k < RowBytes(a); ++k) {
      const std::uint8_t* weights = tiles[b].bytes[k / 4] + k % 4;
      const int x = tiles[a].bytes[m][k];
      for (int n = 0; n < RowBytes(sums) / 4; ++n) {
        row[n] += std::uint32_t(x * std::int8_t(weights[4 * n]));
      }
    }
    std::memcpy(tiles[sums].bytes[m], row, sizeof row);
  }
  ++products;
}

// sums[m][n] += sum_k a[m][k] * b[k / 2][2 n + k % 2], of 16-bit floats.
template <class Half>
void MultiplyPairs(int sums, int a, int b) {
  RequireOperands(sums, a, b);
  const qgemm::FloatEnvironment ieee;
  Tile* const tiles = ThreadState().tiles;
  const auto at = [](const std::uint8_t* row, int i) {
    Half half;
    std::memcpy(&half, row + 2 * i, sizeof half);
    return qgemm::ToFloat(half);
  };
  const int pairs = RowBytes(a) / 4;
  for (int m = 0; m < Rows(sums); ++m) {
    for (int n = 0; n < RowBytes(sums) / 4; ++n) {
      float sum;
      std::uint8_t* const to = tiles[sums].bytes[m] + 4 * n;
      std::memcpy(&sum, to, 4);
      sum = qgemm::test::TileSum(
          sum, pairs, [&](int k) { return at(tiles[a].bytes[m], k); },
          [&](int k) { return at(tiles[b].bytes[k / 2], 2 * n + k % 2); });
      std::memcpy(to, &sum, 4);
    }
  }
  ++products;
}

// ---------------------------------------------------------------- their encoding

// One instruction: C4, two bytes of prefix, the opcode, ModRM, then what addresses memory.
class Instruction {
 public:
  Instruction(const std::uint8_t* code, const greg_t* registers)
      : code_(code), registers_(registers) {
    Require(code[0] == 0xc4 && (code[1] & 0x1f) == 2 && (code[2] & 0x84) == 0,
            "an illegal instruction that is not of AMX");
    if (!is_register()) FindAddress();
  }

  // The opcode and its mandatory prefix: 0 none, 1 66, 2 F3, 3 F2.
  int opcode() const { return code_[3] << 4 | (code_[2] & 3); }
  bool is_register() const { return code_[4] >> 6 == 3; }
  int reg() const { return (code_[4] >> 3 & 7) | (code_[1] & 0x80 ? 0 : 8); }
  int rm() const { return (code_[4] & 7) | (code_[1] & 0x20 ? 0 : 8); }
  int vvvv() const { return ~code_[2] >> 3 & 15; }

  std::uint8_t* address() const { return reinterpret_cast<std::uint8_t*>(address_); }
  bool has_stride() const { return has_stride_; }
  std::int64_t stride() const { return stride_; }  // the index register by its scale
  int length() const { return length_; }

 private:
  void FindAddress() {
    const int mod = code_[4] >> 6;
    const bool has_sib = (code_[4] & 7) == 4;
    const std::uint8_t* displacement = code_ + (has_sib ? 6 : 5);
    const int base_bits = has_sib ? code_[5] & 7 : code_[4] & 7;
    const bool no_base = mod == 0 && base_bits == 5;  // with SIB; else relative to rip
    const int displacement_bytes = mod == 1 ? 1 : mod == 2 || no_base ? 4 : 0;
    length_ = int(displacement - code_) + displacement_bytes;
    address_ = 0;
    if (!no_base) {
      address_ = Register(base_bits | (code_[1] & 0x20 ? 0 : 8));
    } else if (!has_sib) {
      address_ = std::int64_t(reinterpret_cast<std::uintptr_t>(code_)) + length_;
    }
    if (displacement_bytes == 1) address_ += std::int8_t(displacement[0]);
    if (displacement_bytes == 4) {
      std::int32_t value;
      std::memcpy(&value, displacement, 4);
      address_ += value;
    }
    if (!has_sib) return;
    has_stride_ = true;
    const int index = (code_[5] >> 3 & 7) | (code_[1] & 0x40 ? 0 : 8);
    stride_ = index == 4 ? 0 : Register(index) << (code_[5] >> 6);
  }

  std::int64_t Register(int number) const {
    static constexpr int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                       REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                       REG_R12, REG_R13, REG_R14, REG_R15};
    return registers_[kOrder[number]];
  }

  const std::uint8_t* const code_;
  const greg_t* const registers_;
  std::int64_t address_ = 0, stride_ = 0;
  bool has_stride_ = false;
  int length_ = 5;
};

inline void Execute(const Instruction& i) {
  constexpr int k49 = 0x490, k4b = 0x4b0, k5c = 0x5c0, k5e = 0x5e0, k66 = 1, kF3 = 2, kF2 = 3;
  if (i.opcode() < k5c) Require(i.vvvv() == 0, "a register too many");
  if (!i.is_register() && i.opcode() >= k4b) Require(i.has_stride(), "a tile without a stride");
  Require(i.reg() < kTiles && i.vvvv() < kTiles && (!i.is_register() || i.rm() < kTiles),
          "not a tile register");
  switch (i.opcode() << 1 | (i.is_register() ? 1 : 0)) {
    case k49 << 1:
      Require(i.reg() == 0, "ldtilecfg with a register");
      return LoadConfig(i.address());
    case k49 << 1 | 1:
      Require(i.reg() == 0 && i.rm() == 0, "tilerelease with a register");
      return Release();
    case (k49 | k66) << 1:
      Require(i.reg() == 0, "sttilecfg with a register");
      return StoreConfig(i.address());
    case (k49 | kF2) << 1 | 1:
      Require(i.rm() == 0, "tilezero of two tiles");
      return Zero(i.reg());
    case (k4b | kF2) << 1:
    case (k4b | k66) << 1:  // tileloaddt1: the same but for the caches
      return Load(i.reg(), i.address(), i.stride());
    case (k4b | kF3) << 1:
      return Store(i.reg(), i.address(), i.stride());
    case (k5e | k66) << 1 | 1:
      return MultiplyBytes(i.reg(), i.rm(), i.vvvv());
    case (k5c | kF3) << 1 | 1:
      return MultiplyPairs<qgemm::Bf16>(i.reg(), i.rm(), i.vvvv());
    case (k5c | kF2) << 1 | 1:
      return MultiplyPairs<qgemm::F16>(i.reg(), i.rm(), i.vvvv());
    default:
      Require(false, "an instruction that it does not know");
  }
}

inline void OnIllegalInstruction(int, siginfo_t*, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const Instruction instruction(reinterpret_cast<const std::uint8_t*>(registers[REG_RIP]),
                                registers);
  Execute(instruction);
  registers[REG_RIP] += instruction.length();
}

// For the whole process, from now on.
inline void Install() {
  struct sigaction action = {};
  action.sa_sigaction = OnIllegalInstruction;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  Require(sigaction(SIGILL, &action, nullptr) == 0, "no handler for SIGILL");
}

}  // namespace amx_emulator
