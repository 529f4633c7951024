#include "codegen/row_emitter.h"

#include <cstddef>
#include <string>

#include "gemm/names.h"
#include "portable/portable.h"
#include "runtime/kernel_cache.h"

namespace qgemm {
namespace {

struct RowKey {
  VectorWidth width;
  XType x;
  RowOp op;

  friend bool operator==(const RowKey& a, const RowKey& b) {
    return a.width == b.width && a.x == b.x && a.op == b.op;
  }
};

struct RowKeyHash {
  std::size_t operator()(const RowKey& key) const {
    return std::size_t(key.width) | std::size_t(key.x) << 4 | std::size_t(key.op) << 8;
  }
};

std::string Name(const RowKey& key) { return RowKernelName(key.op, key.x); }

// A loop over a row in whole vectors. The last one overlaps its predecessor, which changes nothing:
// the operations are idempotent. Rows shorter than a vector go to the portable kernel.
class RowEmitter final : public VectorEmitter {
 public:
  explicit RowEmitter(const RowKey& key) : VectorEmitter(key.width), key_(key) {
    Xbyak::Label unrolled, single, tail, done, whole;
    cmp(reg_count, lanes());
    jge(whole, T_NEAR);
    const RowKernels portable = PortableRows(key_.x);
    mov(rax, key_.op == RowOp::kRange    ? std::size_t(portable.range)
             : key_.op == RowOp::kToByte ? std::size_t(portable.to_byte)
                                         : std::size_t(portable.to_int16));
    jmp(rax);

    L(whole);
    Prologue();
    L(unrolled);
    cmp(reg_count, kUnroll * lanes());
    jl(single, T_NEAR);
    for (int i = 0; i < kUnroll; ++i) Step(i);
    Advance(kUnroll);
    jmp(unrolled, T_NEAR);
    L(single);
    cmp(reg_count, lanes());
    jl(tail, T_NEAR);
    Step(0);
    Advance(1);
    jmp(single, T_NEAR);
    L(tail);
    test(reg_count, reg_count);
    jz(done, T_NEAR);
    StepBack();
    Step(0);
    L(done);
    if (key_.op == RowOp::kRange) StoreRange();
    Finish();
  }

  const void* function() const { return getCode(); }

 private:
  static constexpr int kUnroll = 4;

  const Xbyak::Reg64 reg_x{rdi}, reg_count{rsi}, reg_args{rdx}, reg_q{rcx};

  // Range: lows in 0 1, highs in 2 3, what is not finite in 4 5, work in 6..13.
  // Quantize: values in 0..3, temporaries in 4..7, the parameters in 8..11.
  Vec Inverse() const { return V(8); }
  Vec Low() const { return V(9); }
  Vec High() const { return V(10); }
  Vec ZeroPoint() const { return V(11); }

  int x_bytes() const { return key_.x == XType::kF32 ? 4 : 2; }
  int q_bytes() const { return key_.op == RowOp::kToInt16 ? 2 : 1; }

  void Load(const Vec& to, const RegExp& from) {
    if (key_.x == XType::kF32) {
      vmovups(to, ptr[from]);
    } else if (key_.x == XType::kBf16) {
      LoadBf16(to, from);
    } else {
      LoadF16(to, from);
    }
  }

  void Prologue() {
    if (key_.op == RowOp::kRange) {
      for (int i = 0; i < 6; ++i) Zero(V(i));
      return;
    }
    vbroadcastss(Inverse(), dword[reg_args + offsetof(QuantizeArgs, inverse)]);
    vbroadcastss(Low(), dword[reg_args + offsetof(QuantizeArgs, low)]);
    vbroadcastss(High(), dword[reg_args + offsetof(QuantizeArgs, high)]);
    vpbroadcastd(ZeroPoint(), dword[reg_args + offsetof(QuantizeArgs, zero)]);
  }

  void Step(int i) {
    const RegExp x = reg_x + i * lanes() * x_bytes();
    if (key_.op == RowOp::kRange) {
      const Vec value = V(6 + i), difference = V(10 + i);
      Load(value, x);
      vminps(V(i % 2), V(i % 2), value);
      vmaxps(V(2 + i % 2), V(2 + i % 2), value);
      vsubps(difference, value, value);  // +0 for a number, else NaN
      Or(V(4 + i % 2), V(4 + i % 2), difference);
      return;
    }
    const Vec v = V(i);
    Load(v, x);
    vmulps(v, v, Inverse());
    NanToZero(v, V(4 + i));
    vmaxps(v, v, Low());
    vminps(v, v, High());
    vcvtps2dq(v, v);
    vpaddd(v, v, ZeroPoint());
    const RegExp q = reg_q + i * lanes() * q_bytes();
    if (key_.op == RowOp::kToByte) {
      StoreLowByte(q, v);
    } else {
      StoreInt16(q, v);
    }
  }

  // Bytes of either signedness: on AVX2 the packing saturates, so the sign bits are cleared first.
  void StoreLowByte(const RegExp& to, const Vec& v) {
    if (!wide()) And(v, v, Constant(0xff));
    StoreByte(to, v);
  }

  void Advance(int vectors) {
    sub(reg_count, vectors * lanes());
    add(reg_x, vectors * lanes() * x_bytes());
    if (key_.op != RowOp::kRange) add(reg_q, vectors * lanes() * q_bytes());
  }

  // To where exactly one vector is left.
  void StepBack() {
    sub(reg_count, lanes());
    lea(reg_x, ptr[reg_x + reg_count * x_bytes()]);
    if (key_.op != RowOp::kRange) lea(reg_q, ptr[reg_q + reg_count * q_bytes()]);
  }

  void StoreRange() {
    for (const int first : {0, 2, 4}) {
      Join(first, V(first), V(first), V(first + 1));
      if (wide()) {
        vextracti64x4(Xbyak::Ymm(6), Xbyak::Zmm(first), 1);
        Join(first, Xbyak::Ymm(first), Xbyak::Ymm(first), Xbyak::Ymm(6));
      }
      const Xbyak::Xmm x0(first), x1(6);
      vextracti128(x1, Xbyak::Ymm(first), 1);
      Join(first, x0, x0, x1);
      for (const std::uint8_t order : {std::uint8_t(0x4e), std::uint8_t(0xb1)}) {
        vpshufd(x1, x0, order);
        Join(first, x0, x0, x1);
      }
    }
    vmovss(dword[reg_args + offsetof(RowRange, low)], Xbyak::Xmm(0));
    vmovss(dword[reg_args + offsetof(RowRange, high)], Xbyak::Xmm(2));
    vmovd(dword[reg_args + offsetof(RowRange, not_finite)], Xbyak::Xmm(4));
  }

  // The operation of the accumulators that start at register `first`.
  void Join(int first, const Vec& to, const Vec& a, const Vec& b) {
    if (first == 0) {
      vminps(to, a, b);
    } else if (first == 2) {
      vmaxps(to, a, b);
    } else if (to.isZMM()) {
      vpord(to, a, b);
    } else {
      vpor(to, a, b);
    }
  }

  const RowKey key_;
};

template <class Fn>
Fn Generate(const RowKey& key) {
  using Cache = KernelCache<RowKey, RowKeyHash, RowEmitter>;
  // Shared by all families of one width of vectors.
  static auto& narrow = *new Cache("avx2");
  static auto& wide = *new Cache("avx512");
  Cache& cache = key.width == VectorWidth::k512 ? wide : narrow;
  return reinterpret_cast<Fn>(const_cast<void*>(cache.Get(key)));
}

}  // namespace

RowKernels GeneratedRows(VectorWidth width, XType x) {
  return {Generate<RangeFn>({width, x, RowOp::kRange}),
          Generate<QuantizeFn>({width, x, RowOp::kToByte}),
          Generate<QuantizeFn>({width, x, RowOp::kToInt16})};
}

}  // namespace qgemm
