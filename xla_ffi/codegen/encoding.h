// The encoding of vpdpbusd on 256 bits: AVX-VNNI and AVX-512 VNNI have one each.
#pragma once

#include <xbyak/xbyak.h>
#include <xbyak/xbyak_util.h>

namespace qgemm {

inline Xbyak::PreferredEncoding DotEncoding256() {
  using XCpu = Xbyak::util::Cpu;
  static const bool avx_vnni = XCpu().has(XCpu::tAVX_VNNI);
  return avx_vnni ? Xbyak::VexEncoding : Xbyak::EvexEncoding;
}

}  // namespace qgemm
