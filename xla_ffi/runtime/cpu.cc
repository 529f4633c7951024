#include "runtime/cpu.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#ifdef JAX_QGEMM_JIT
#include <cpuid.h>
#include <xbyak/xbyak.h>
#include <xbyak/xbyak_util.h>
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
      {"avx_vnni", cpu.has(XCpu::tAVX_VNNI)},
      {"avx512f", cpu.has(XCpu::tAVX512F)},
      {"avx512bw", cpu.has(XCpu::tAVX512BW)},
      {"avx512vl", cpu.has(XCpu::tAVX512VL)},
      {"avx512dq", cpu.has(XCpu::tAVX512DQ)},
      {"avx512_vnni", cpu.has(XCpu::tAVX512_VNNI)},
      {"avx512_bf16", cpu.has(XCpu::tAVX512_BF16)},
      {"avx512_fp16", cpu.has(XCpu::tAVX512_FP16)},
      {"amx_int8", cpu.has(XCpu::tAMX_INT8)},
      {"amx_bf16", cpu.has(XCpu::tAMX_BF16)},
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
  if (cpu.has(XCpu::tAVX2)) {
    info.available.push_back(Isa::kAvx2);
  } else {
    info.limited_by = "the CPU has no AVX2";
  }
  if (cpu.has(XCpu::tAVX2) && cpu.has(XCpu::tAVX_VNNI)) info.available.push_back(Isa::kAvxVnni);
  if (cpu.has(XCpu::tAVX512F) && cpu.has(XCpu::tAVX512BW) && cpu.has(XCpu::tAVX512VL) &&
      cpu.has(XCpu::tAVX512_VNNI)) {
    info.available.push_back(Isa::kAvx512Vnni);
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

CpuInfo DetectWithCaches() {
  CpuInfo info = Detect();
#ifdef _SC_LEVEL1_DCACHE_SIZE
  // 0 or -1 where the system does not know: the defaults stay.
  const auto read = [](int name, std::size_t& bytes) {
    const long value = sysconf(name);
    if (value > 0) bytes = std::size_t(value);
  };
  read(_SC_LEVEL1_DCACHE_SIZE, info.l1d_bytes);
  read(_SC_LEVEL2_CACHE_SIZE, info.l2_bytes);
  read(_SC_LEVEL3_CACHE_SIZE, info.l3_bytes);
#endif
  return info;
}

}  // namespace

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvxVnni:
      return "avx_vnni";
    case Isa::kAvx512Vnni:
      return "avx512_vnni";
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
