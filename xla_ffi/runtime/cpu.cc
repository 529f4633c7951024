#include "runtime/cpu.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <fstream>

#ifdef JAX_QGEMM_JIT
#include <cpuid.h>
#include <xbyak/xbyak.h>
#include <xbyak/xbyak_util.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace qgemm {
namespace {

std::atomic<Isa> max_isa{kAllIsas[std::size(kAllIsas) - 1]};

#ifdef JAX_QGEMM_JIT

using XCpu = Xbyak::util::Cpu;

struct Feature {
  const char* name;
  bool present;
};

std::vector<Feature> Features(const XCpu& cpu) {
  return {
      {"avx2", cpu.has(XCpu::tAVX2)},
      {"fma", cpu.has(XCpu::tFMA)},
      {"f16c", cpu.has(XCpu::tF16C)},
      {"bmi1", cpu.has(XCpu::tBMI1)},
      {"avx_vnni", cpu.has(XCpu::tAVX_VNNI)},
      {"avx512f", cpu.has(XCpu::tAVX512F)},
      {"avx512bw", cpu.has(XCpu::tAVX512BW)},
      {"avx512vl", cpu.has(XCpu::tAVX512VL)},
      {"avx512dq", cpu.has(XCpu::tAVX512DQ)},
      {"avx512_vnni", cpu.has(XCpu::tAVX512_VNNI)},
      {"avx512_bf16", cpu.has(XCpu::tAVX512_BF16)},
      {"avx512_fp16", cpu.has(XCpu::tAVX512_FP16)},
      {"amx_tile", cpu.has(XCpu::tAMX_TILE)},
      {"amx_int8", cpu.has(XCpu::tAMX_INT8)},
      {"amx_bf16", cpu.has(XCpu::tAMX_BF16)},
      {"amx_fp16", cpu.has(XCpu::tAMX_FP16)},
  };
}

std::string Vendor() {
  std::uint32_t a = 0, words[3] = {};
  __get_cpuid(0, &a, &words[0], &words[2], &words[1]);
  return {reinterpret_cast<const char*>(words), sizeof words};
}

std::string Brand() {
  std::uint32_t words[12] = {};
  for (std::uint32_t leaf = 0; leaf < 3; ++leaf) {
    std::uint32_t* w = words + 4 * leaf;
    if (!__get_cpuid(0x80000002 + leaf, &w[0], &w[1], &w[2], &w[3])) return {};
  }
  std::string text(reinterpret_cast<const char*>(words), sizeof words);
  text.resize(std::strlen(text.c_str()));
  text.erase(text.find_last_not_of(' ') + 1);
  return text;
}

// A hardened system may forbid pages that were written to become executable.
bool CanRunGeneratedCode() {
  try {
    struct Probe : Xbyak::CodeGenerator {
      Probe() : CodeGenerator(4096, Xbyak::DontSetProtectRWE) {
        mov(eax, 42);
        ret();
        setProtectModeRE();
      }
    } probe;
    return probe.getCode<int (*)()>()() == 42;
  } catch (const Xbyak::Error&) {
    return false;
  }
}

// The tile registers are large: the operating system has to save them, and Linux gives them to a
// process that asks.
bool MayUseTiles() {
  constexpr std::uint64_t kTileConfigAndData = 3ULL << 17;
  if ((XCpu::getXfeature() & kTileConfigAndData) != kTileConfigAndData) return false;
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of asm/prctl.h
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuInfo Detect() {
  const XCpu cpu;
  CpuInfo info;
  info.vendor = Vendor();
  info.brand = Brand();
  for (const Feature& f : Features(cpu)) {
    if (f.present) info.features.emplace_back(f.name);
  }

  info.available = {Isa::kPortable};
  if (!CanRunGeneratedCode()) {
    info.limited_by = "the operating system does not let a process run code it has generated";
    return info;
  }
  const bool avx2 =
      cpu.has(XCpu::tAVX2) && cpu.has(XCpu::tFMA) && cpu.has(XCpu::tF16C) && cpu.has(XCpu::tBMI1);
  if (avx2) {
    info.available.push_back(Isa::kAvx2);
  } else {
    info.limited_by = "the CPU has no AVX2, or it has no FMA, F16C or BMI1";
  }
  const bool avx512bw =
      avx2 && cpu.has(XCpu::tAVX512F) && cpu.has(XCpu::tAVX512BW) && cpu.has(XCpu::tAVX512VL);
  if (avx512bw) info.available.push_back(Isa::kAvx512Bw);
  const bool avx512_vnni = avx512bw && cpu.has(XCpu::tAVX512_VNNI);
  // AVX-512 has the 256-bit instruction too, in an encoding of its own.
  if ((avx2 && cpu.has(XCpu::tAVX_VNNI)) || avx512_vnni) {
    info.available.push_back(Isa::kAvxVnni);
  }
  if (avx512_vnni) info.available.push_back(Isa::kAvx512Vnni);
  const bool amd = info.vendor == "AuthenticAMD" || info.vendor == "HygonGenuine";
  info.wants_fetches = !cpu.has(XCpu::tAMX_TILE);
  info.streams_past_l2 = info.converts_beside = amd;
  info.fast_l3 = amd && avx512bw;
  info.avx512_bf16 = avx512_vnni && cpu.has(XCpu::tAVX512_BF16);
  // Its kernels finish what the tiles leave with AVX-512 VNNI.
  const bool amx_int8 = avx512_vnni && cpu.has(XCpu::tAMX_TILE) && cpu.has(XCpu::tAMX_INT8);
  if (amx_int8 && MayUseTiles()) {
    info.available.push_back(Isa::kAmxInt8);
    info.amx_bf16 = cpu.has(XCpu::tAMX_BF16);
    info.amx_fp16 = cpu.has(XCpu::tAMX_FP16);
  } else if (amx_int8) {
    info.limited_by = "the operating system does not let this process use AMX";
  }
  return info;
}

#else  // JAX_QGEMM_JIT

CpuInfo Detect() {
  CpuInfo info;
  info.available = {Isa::kPortable};
  info.limited_by = "this build has no code generator (JAX_QGEMM_JIT=OFF)";
  return info;
}

#endif  // JAX_QGEMM_JIT

// The part of a cache that one core shares, as Linux has it; sysconf may count a whole socket's. 0
// if it is not known.
std::size_t CacheBytes(int level) {
  for (int index = 0; index < 8; ++index) {
    const std::string folder =
        "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    int found = 0;
    std::size_t kib = 0;
    std::string type;
    std::ifstream(folder + "level") >> found;
    std::ifstream(folder + "type") >> type;
    std::ifstream(folder + "size") >> kib;  // as in "32K"
    if (found == level && type != "Instruction") return kib << 10;
  }
  return 0;
}

CpuInfo DetectWithCaches() {
  CpuInfo info = Detect();
  const auto set = [](std::size_t& bytes, std::size_t value) {
    if (value > 0) bytes = value;  // else the default stays
  };
  set(info.l1d_bytes, CacheBytes(1));
  set(info.l2_bytes, CacheBytes(2));
  set(info.l3_bytes, CacheBytes(3));
  return info;
}

}  // namespace

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512Bw:
      return "avx512bw";
    case Isa::kAvxVnni:
      return "avx_vnni";
    case Isa::kAvx512Vnni:
      return "avx512_vnni";
    case Isa::kAmxInt8:
      return "amx_int8";
    case Isa::kPortable:
      break;
  }
  return "portable";
}

const CpuInfo& Cpu() {
  // Never destroyed: a program may still run on another thread while the process exits.
  static const CpuInfo& info = *new CpuInfo(DetectWithCaches());
  return info;
}

Isa SelectedIsa() {
  static const std::vector<Isa>& available = Cpu().available;
  const Isa ceiling = max_isa.load(std::memory_order_relaxed);
  Isa best = Isa::kPortable;
  for (Isa isa : available) {
    if (isa <= ceiling) best = isa;
  }
  return best;
}

bool SetMaxIsa(std::string_view name) {
  for (Isa isa : kAllIsas) {
    if (name == IsaName(isa)) {
      max_isa.store(isa, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace qgemm
