#include "codegen/vector_emitter.h"

#include "portable/bits.h"

namespace qgemm {

using Xbyak::Xmm;
using Xbyak::Ymm;
using Xbyak::Zmm;

namespace {
constexpr int kUnordered = 3;  // predicates of vcmpps
constexpr int kOrdered = 7;
constexpr std::uint32_t kSignBits = 0x80808080;  // of bytes
}  // namespace

void VectorEmitter::Zero(const Vec& v) { Xor(v, v, v); }

void VectorEmitter::Xor(const Vec& to, const Vec& a, const Xbyak::Operand& b) {
  if (wide_) {
    vpxord(to, a, b);
  } else {
    vpxor(to, a, b);
  }
}

void VectorEmitter::And(const Vec& to, const Vec& a, const Xbyak::Operand& b) {
  if (wide_) {
    vpandd(to, a, b);
  } else {
    vpand(to, a, b);
  }
}

void VectorEmitter::Or(const Vec& to, const Vec& a, const Xbyak::Operand& b) {
  if (wide_) {
    vpord(to, a, b);
  } else {
    vpor(to, a, b);
  }
}

void VectorEmitter::LoadInt(const Vec& to, const Address& from) {
  if (wide_) {
    vmovdqu32(to, from);
  } else {
    vmovdqu(to, from);
  }
}

void VectorEmitter::StoreInt(const Address& to, const Vec& v) {
  if (wide_) {
    vmovdqu32(to, v);
  } else {
    vmovdqu(to, v);
  }
}

void VectorEmitter::LoadBf16(const Vec& to, const RegExp& from) {
  vpmovzxwd(to, wide_ ? yword[from] : xword[from]);
  vpslld(to, to, 16);
}

void VectorEmitter::LoadF16(const Vec& to, const RegExp& from) {
  vcvtph2ps(to, wide_ ? yword[from] : xword[from]);
}

Xbyak::Address VectorEmitter::FloatConstant(float value) { return Constant(BitsOf(value)); }

void VectorEmitter::LoadConstant(const Vec& to, std::uint32_t value) {
  vbroadcastss(to, dword[rip + constants_[value]]);
}

Xbyak::Address VectorEmitter::Constant(std::uint32_t value) {
  const Xbyak::Label& label = constants_[value];
  return wide_ ? ptr_b[rip + label] : yword[rip + label];
}

void VectorEmitter::Lookup(const Vec& v, const Vec& index, const float (&table)[16],
                           const Vec& temporary) {
  const Xbyak::Label& label = tables_[table];
  if (wide_) {
    vpermps(Zmm(v.getIdx()), Zmm(index.getIdx()), zword[rip + label]);
    return;
  }
  const Ymm low(v.getIdx()), high(temporary.getIdx()), i(index.getIdx());
  vpermps(low, i, yword[rip + label]);
  vpermps(high, i, yword[rip + label + 32]);
  vblendvps(low, low, high, i);
}

void VectorEmitter::LoadTable(const Vec& to, const float (&table)[16]) {
  vmovups(to, ptr[rip + tables_[table]]);
}

void VectorEmitter::Round(const Vec& to, const Vec& v) {
  constexpr std::uint8_t kNearestEven = 8;  // without exceptions
  if (wide_) {
    vrndscaleps(to, v, kNearestEven);
  } else {
    vroundps(to, v, kNearestEven);
  }
}

void VectorEmitter::RoundToInt(const Vec& v, const Vec& temporary) {
  if (wide_) {
    vcmpps(k1, v, v, kOrdered);
    vcvtps2dq(v | k1 | T_z, v);
  } else {
    vcmpps(temporary, v, v, kOrdered);
    vandps(v, v, temporary);
    vcvtps2dq(v, v);
  }
}

void VectorEmitter::StoreByte(const RegExp& to, const Vec& v) {
  if (wide_) {
    vpmovdb(xword[to], v);
    return;
  }
  const Ymm y(v.getIdx());
  const Xmm x(v.getIdx());
  vpackssdw(y, y, y);
  vpermq(y, y, 0x08);  // the low halves of both 128-bit lanes
  vpackuswb(x, x, x);
  vmovq(qword[to], x);
}

void VectorEmitter::LoadQuantizedStore(const QuantizedStore& store, const RegExp& zero_point) {
  orders_quantized_ = true;
  vmovups(store.order, ptr[rip + quantized_order_]);
  if (store.relu) {
    vpbroadcastb(store.zero_point, byte[zero_point]);
    if (store.is_signed) Xor(store.zero_point, store.zero_point, Constant(kSignBits));
  } else {
    vpbroadcastw(store.zero_point, word[zero_point]);
  }
}

// Packing works within 128-bit lanes: dword `vector` of lane `lane` holds four bytes of a vector.
// What saturates unsigned is not below 0, that is relu. On Zen 4 saturating additions compete with
// products for their ports, others do not.
void VectorEmitter::StoreQuantized(const RegExp& to, const Vec (&v)[4], int count,
                                   const QuantizedStore& store) {
  const Vec& low = v[0];
  const Vec& high = count > 2 ? v[2] : low;
  const auto add = [&](const Vec& words) {
    if (store.relu) return;
    if (store.is_signed) {
      vpaddsw(words, words, store.zero_point);
    } else {
      vpaddw(words, words, store.zero_point);
    }
  };
  if (count > 2) {
    vpackssdw(high, v[2], v[3]);
    add(high);
  }
  vpackssdw(low, v[0], v[1]);
  add(low);
  if (store.relu) {
    vpackuswb(low, low, high);
    vpaddusb(low, low, store.zero_point);
    if (store.is_signed) Xor(low, low, Constant(kSignBits));
  } else if (store.is_signed) {
    vpacksswb(low, low, high);
  } else {
    vpackuswb(low, low, high);
  }
  if (wide_) {
    vpermd(Zmm(low.getIdx()), Zmm(store.order.getIdx()), Zmm(low.getIdx()));
  } else {
    vpermd(Ymm(low.getIdx()), Ymm(store.order.getIdx()), Ymm(low.getIdx()));
  }
  StoreBytes(to, low, count * lanes(), store.temporary);
}

// The first 8, 16, 24, 32, 48 or 64 bytes of a vector.
void VectorEmitter::StoreBytes(const RegExp& to, const Vec& v, int bytes, const Vec& temporary) {
  const Xmm x(v.getIdx()), t(temporary.getIdx());
  if (bytes == 64) {
    vmovups(ptr[to], Zmm(v.getIdx()));
  } else if (bytes >= 32) {
    vmovups(ptr[to], Ymm(v.getIdx()));
    if (bytes == 48) vextractf32x4(ptr[to + 32], Zmm(v.getIdx()), 2);
  } else if (bytes >= 16) {
    vmovups(ptr[to], x);
    if (bytes == 24) {
      vextractf128(t, Ymm(v.getIdx()), 1);
      vmovq(qword[to + 16], t);
    }
  } else {
    vmovq(qword[to], x);
  }
}

void VectorEmitter::StoreInt16(const RegExp& to, const Vec& v) {
  if (wide_) {
    vpmovdw(yword[to], v);
    return;
  }
  const Ymm y(v.getIdx());
  vpackssdw(y, y, y);
  vpermq(y, y, 0x08);
  vmovdqu(xword[to], Xmm(v.getIdx()));
}

// Round to nearest even on the bits: (u + 0x7fff + ((u >> 16) & 1)) >> 16; a NaN keeps its top bits
// and is made quiet. vcvtneps2bf16 would flush subnormals.
void VectorEmitter::StoreBf16(const RegExp& to, const Vec& v, const Vec& t0, const Vec& t1) {
  vpsrld(t0, v, 16);
  And(t0, t0, Constant(1));
  vpaddd(t0, t0, Constant(0x7fff));
  vpaddd(t0, t0, v);
  vpsrld(t0, t0, 16);
  if (wide_) {
    vcmpps(k1, v, v, kUnordered);
    vpsrld(t0 | k1, v, 16);
    vpord(t0 | k1, t0, Constant(0x40));
    vpmovdw(yword[to], t0);
    return;
  }
  vcmpps(t1, v, v, kUnordered);
  vpsrld(v, v, 16);
  vpor(v, v, Constant(0x40));
  vpblendvb(t0, t0, v, t1);
  vpackusdw(t0, t0, t0);
  vpermq(Ymm(t0.getIdx()), Ymm(t0.getIdx()), 0x08);
  vmovdqu(xword[to], Xmm(t0.getIdx()));
}

void VectorEmitter::StoreF16(const RegExp& to, const Vec& v) {
  constexpr std::uint8_t kNearestEven = 0;
  vcvtps2ph(wide_ ? yword[to] : xword[to], v, kNearestEven);
}

void VectorEmitter::Finish() {
  vzeroupper();
  ret();
  align(32);
  for (auto& [value, label] : constants_) {
    L(label);
    for (int i = 0; i < 8; ++i) dd(value);
  }
  align(64);
  for (auto& [table, label] : tables_) {
    L(label);
    for (int i = 0; i < 16; ++i) dd(BitsOf(table[i]));
  }
  if (orders_quantized_) {
    const int vector_lanes = lanes() / 4;
    L(quantized_order_);
    for (int i = 0; i < lanes(); ++i) dd(std::uint32_t(4 * (i % vector_lanes) + i / vector_lanes));
  }
  setProtectModeRE();
}

}  // namespace qgemm
