#include "codegen/group_emitter.h"

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <string>

#include "codegen/row_emitter.h"
#include "gemm/names.h"
#include "runtime/kernel_cache.h"

namespace qgemm {
namespace {

struct GroupKey {
  VectorWidth width;
  XType x;

  friend bool operator==(const GroupKey& a, const GroupKey& b) {
    return a.width == b.width && a.x == b.x;
  }
};

struct GroupKeyHash {
  std::size_t operator()(const GroupKey& key) const {
    return std::size_t(key.width) | std::size_t(key.x) << 4;
  }
};

std::string Name(const GroupKey& key) { return RowKernelName(RowOp::kToGroups, key.x); }

std::int32_t Bits(float value) {
  std::int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Absolute values compare as integers, NaN and Inf above all numbers. No quotient needs a clamp:
// |x| * (127 / amax) rounds to 127 at most.
class GroupEmitter final : public VectorEmitter {
 public:
  explicit GroupEmitter(const GroupKey& key) : VectorEmitter(key.width), key_(key) {
    Xbyak::Label by_vectors, done;
    test(reg_groups, reg_groups);
    jz(done, T_NEAR);
    LoadConstant(Magnitude(), 0x7fffffff);
    mov(reg_group, ptr[reg_args + offsetof(GroupsArgs, group)]);
    cmp(reg_group, kUnrolledGroup);
    jne(by_vectors, T_NEAR);
    LoopOverGroups([this](const auto& step) {
      for (int first = 0; first < kUnrolledGroup; first += lanes()) step(first);
      Advance(kUnrolledGroup);
    });
    L(by_vectors);
    LoopOverGroups([this](const auto& step) {
      Xbyak::Label next;
      mov(reg_left, reg_group);
      L(next);
      step(0);
      Advance(lanes());
      sub(reg_left, lanes());
      jnz(next);
    });
    L(done);
    Finish();
  }

  const void* function() const { return getCode(); }

 private:
  static constexpr int kUnrolledGroup = 32;
  static constexpr float kMax = 127;

  Vec Value() const { return V(0); }
  Vec Sum() const { return V(1); }  // or the largest magnitude
  Vec Temporary() const { return V(2); }
  Vec Inverse() const { return V(3); }
  Xbyak::Xmm Scale() const { return Xbyak::Xmm(4); }
  Vec Magnitude() const { return V(5); }

  int x_bytes() const { return key_.x == XType::kF32 ? 4 : 2; }

  void Load(int element) {
    const RegExp from = reg_x + element * x_bytes();
    if (key_.x == XType::kF32) {
      vmovups(Value(), ptr[from]);
    } else if (key_.x == XType::kBf16) {
      LoadBf16(Value(), from);
    } else {
      LoadF16(Value(), from);
    }
  }

  // Both x and q: the second pass starts from where the first has left.
  void Advance(int elements) {
    add(reg_x, elements * x_bytes());
    if (stores_) add(reg_q, elements);
  }

  // `each` goes over the vectors of one group, with the registers, and returns the function.
  template <class Each>
  void LoopOverGroups(const Each& each) {
    Xbyak::Label group, finite, normal, integer, stored;
    L(group);
    stores_ = false;
    mov(reg_start, reg_x);
    Zero(Sum());
    each([this](int element) {
      Load(element);
      And(Value(), Value(), Magnitude());
      vpmaxud(Sum(), Sum(), Value());
    });
    mov(reg_x, reg_start);
    Reduce([this](const Vec& a, const Vec& b) { vpmaxud(a, a, b); });
    vmovd(eax, Xbyak::Xmm(Sum().getIdx()));
    // A group of NaN or Inf: scale NaN, values 0, as of zeros.
    cmp(eax, Bits(INFINITY));
    jb(finite);
    LoadFloat(Scale(), NAN);
    Zero(Inverse());
    jmp(normal, T_NEAR);
    L(finite);
    Xbyak::Label large;
    const Xbyak::Xmm amax(Sum().getIdx()), inverse(Inverse().getIdx());
    cmp(eax, Bits(kMax * FLT_MIN));
    jae(large);
    LoadFloat(amax, kMax);
    L(large);
    LoadFloat(inverse, kMax);
    vdivss(Scale(), amax, inverse);
    vdivss(inverse, inverse, amax);
    vbroadcastss(Inverse(), inverse);
    L(normal);

    stores_ = true;
    Zero(Sum());
    each([this](int element) {
      Load(element);
      vmulps(Value(), Value(), Inverse());
      RoundToInt(Value(), Temporary());
      vpaddd(Sum(), Sum(), Value());
      if (!wide()) And(Value(), Value(), Constant(0xff));
      StoreByte(reg_q + element, Value());
    });
    Reduce([this](const Vec& a, const Vec& b) { vpaddd(a, a, b); });
    vmovd(eax, Xbyak::Xmm(Sum().getIdx()));
    cmp(dword[reg_args + offsetof(GroupsArgs, with_minimum)], 0);
    je(integer);
    const Xbyak::Xmm term(Temporary().getIdx());
    vxorps(term, term, term);
    vcvtsi2ss(term, term, eax);
    vmulss(term, term, Scale());
    vmovd(eax, term);
    jmp(stored);
    L(integer);
    imul(eax, dword[reg_args + offsetof(GroupsArgs, negative_offset)]);
    L(stored);
    vmovss(dword[reg_to + offsetof(RowGroup, scale)], Scale());
    mov(dword[reg_to + offsetof(RowGroup, term)], eax);
    add(reg_to, ptr[reg_args + offsetof(GroupsArgs, stride)]);
    sub(reg_groups, 1);
    jnz(group, T_NEAR);
    vzeroupper();
    ret();
  }

  void LoadFloat(const Xbyak::Xmm& to, float value) {
    mov(eax, Bits(value));
    vmovd(to, eax);
  }

  // Of all lanes of Sum, to the lowest.
  template <class Join>
  void Reduce(const Join& join) {
    const int sum = Sum().getIdx(), other = Temporary().getIdx();
    if (wide()) {
      vextracti64x4(Xbyak::Ymm(other), Xbyak::Zmm(sum), 1);
      join(Xbyak::Ymm(sum), Xbyak::Ymm(other));
    }
    const Xbyak::Xmm low(sum), high(other);
    vextracti128(high, Xbyak::Ymm(sum), 1);
    join(low, high);
    for (const std::uint8_t order : {std::uint8_t(0x4e), std::uint8_t(0xb1)}) {
      vpshufd(high, low, order);
      join(low, high);
    }
  }

  const GroupKey key_;
  const Xbyak::Reg64 reg_x{rdi}, reg_groups{rsi}, reg_args{rdx}, reg_q{rcx}, reg_to{r8},
      reg_group{r9}, reg_left{r10}, reg_start{r11};
  bool stores_ = false;
};

GroupsFn GeneratedGroups(VectorWidth width, XType x) {
  using Cache = KernelCache<GroupKey, GroupKeyHash, GroupEmitter>;
  static auto& narrow = *new Cache("avx2");
  static auto& wide = *new Cache("avx512");
  Cache& cache = width == VectorWidth::k512 ? wide : narrow;
  return reinterpret_cast<GroupsFn>(const_cast<void*>(cache.Get({width, x})));
}

}  // namespace

RowKernels GeneratedBlockRows(VectorWidth width, XType x) {
  RowKernels rows = GeneratedRows(width, x);
  rows.to_groups = GeneratedGroups(width, x);
  return rows;
}

}  // namespace qgemm
