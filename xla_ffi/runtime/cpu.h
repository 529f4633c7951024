// Which instruction sets this CPU (and operating system) can run, and which one the engine uses.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace qgemm {

// The instruction sets with a kernel family, ascending: a ceiling admits itself and all below.
enum class Isa { kPortable, kAvx2, kAvx512Bw, kAvxVnni, kAvx512Vnni, kAmxInt8 };

inline constexpr Isa kAllIsas[] = {Isa::kPortable, Isa::kAvx2,       Isa::kAvx512Bw,
                                   Isa::kAvxVnni,  Isa::kAvx512Vnni, Isa::kAmxInt8};

const char* IsaName(Isa isa);

struct CpuInfo {
  std::string vendor;
  std::string brand;
  std::vector<std::string> features;  // those that matter to products, as far as present
  std::vector<Isa> available;         // ascending, never empty: portable always runs
  // Pairs of 16-bit floats multiplied: beside Isa::kAvx512Vnni, beside Isa::kAmxInt8.
  bool avx512_bf16 = false, amx_bf16 = false, amx_fp16 = false;
  // What prefetchnta fetches from memory passes the L2 by, as everywhere, but no slower than other
  // prefetches: see codegen/stream.h.
  bool streams_past_l2 = false;
  // Numbers become f32 beside multiplications, not in their place: see gemm/f32_panels.cc.
  bool converts_beside = false;
  // A core reads its L3 as fast as tiles of few rows take weights (Zen 4: 95 GB/s; Ice Lake: 28;
  // not Zen 3, either).
  bool fast_l3 = false;
  // What comes from memory is there sooner if kernels fetch it, too, than by the hardware alone
  // (not on Xeons with AMX: 1x4096x4096 alone 1.1 times as fast; else see codegen/stream.h).
  bool wants_fetches = true;
  std::string limited_by;  // why something better does not run, else empty
  std::size_t l1d_bytes = 32 << 10;
  std::size_t l2_bytes = 512 << 10;
  std::size_t l3_bytes = 8 << 20;
};

// Detected once, at first use.
const CpuInfo& Cpu();

// The best available ISA under the ceiling. Plans carry it in their key, so a change takes effect
// at the next call, also of programs compiled before.
Isa SelectedIsa();

// Sets the ceiling; false if `name` is not one of IsaName.
bool SetMaxIsa(std::string_view name);

}  // namespace qgemm
