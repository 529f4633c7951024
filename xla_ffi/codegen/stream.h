// How kernels fetch ahead what comes from memory and is used once. What lies in a cache comes
// faster without.
#pragma once

#include <xbyak/xbyak.h>

#include "runtime/cpu.h"

namespace qgemm {

// Beyond the page that the hardware's prefetcher is in.
inline constexpr int kStreamDistance = 4096;  // bytes

// Fetches the line that the loop will reach at `from`. A row of 4096x4096 bytes on two cores, each
// with the hint that is the better one there: Zen 4 (NTA) 15 % faster than without a fetch, Ice
// Lake (T0) as fast as the memory is, 22 GB/s, where NTA, which passes its L2 by, leaves 10.
inline void FetchStream(Xbyak::CodeGenerator& code, const Xbyak::RegExp& from) {
  const Xbyak::Address line = code.ptr[from + kStreamDistance];
  if (Cpu().streams_past_l2) {
    code.prefetchnta(line);
  } else {
    code.prefetcht0(line);
  }
}

// Fetches a line of what comes after a tile: into the L2, which on Zen 4 does nothing, there so
// near that tiles of 512 bits are 1 to 3 % faster (int8, float16, bfloat16; with AVX2 1 % slower).
inline void FetchNext(Xbyak::CodeGenerator& code, const Xbyak::RegExp& from, bool wide) {
  if (Cpu().streams_past_l2 && wide) {
    code.prefetcht0(code.ptr[from]);
  } else {
    code.prefetcht1(code.ptr[from]);
  }
}

}  // namespace qgemm
