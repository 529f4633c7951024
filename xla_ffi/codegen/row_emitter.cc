#include "codegen/row_emitter.h"

#include <cstddef>

#include "portable/portable.h"
#include "runtime/kernel_cache.h"

namespace qgemm {
namespace {

enum class RowOp : std::uint8_t { kAbsMax, kToByte, kToInt16 };

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

// A loop over a row in whole vectors. The last one overlaps its predecessor, which changes nothing:
// the operations are idempotent. Rows shorter than a vector go to the portable kernel.
class RowEmitter final : public VectorEmitter {
 public:
  explicit RowEmitter(const RowKey& key) : VectorEmitter(key.width), key_(key) {
    Xbyak::Label unrolled, single, tail, done, whole;
    cmp(reg_count, lanes());
    jge(whole, T_NEAR);
    const RowKernels portable = PortableRows(key_.x);
    mov(rax, key_.op == RowOp::kAbsMax   ? std::size_t(portable.abs_max)
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
    if (key_.op == RowOp::kAbsMax) Reduce();
    Finish();
  }

  const void* function() const { return getCode(); }

 private:
  static constexpr int kUnroll = 4;

  const Xbyak::Reg64 reg_x{rdi}, reg_count{rsi}, reg_args{rdx}, reg_q{rcx};

  // AbsMax: maxima in 0..3, work in 4..7, the mask in 8. Quantize: values in 0..3, temporaries
  // in 4..7, the parameters in 8..11.
  Vec Inverse() const { return V(8); }
  Vec Low() const { return V(9); }
  Vec High() const { return V(10); }
  Vec ZeroPoint() const { return V(11); }

  int x_bytes() const { return key_.x == XType::kF32 ? 4 : 2; }
  int q_bytes() const { return key_.op == RowOp::kToInt16 ? 2 : 1; }

  void Load(const Vec& to, const RegExp& from) {
    if (key_.x == XType::kF32) {
      vmovups(to, ptr[from]);
    } else {
      LoadBf16(to, from);
    }
  }

  void Prologue() {
    if (key_.op == RowOp::kAbsMax) {
      for (int i = 0; i < kUnroll; ++i) Zero(V(i));
      mov(eax, 0x7fffffff);
      vmovd(Xbyak::Xmm(8), eax);
      vpbroadcastd(V(8), Xbyak::Xmm(8));
      return;
    }
    vbroadcastss(Inverse(), dword[reg_args + offsetof(QuantizeArgs, inverse)]);
    vbroadcastss(Low(), dword[reg_args + offsetof(QuantizeArgs, low)]);
    vbroadcastss(High(), dword[reg_args + offsetof(QuantizeArgs, high)]);
    vpbroadcastd(ZeroPoint(), dword[reg_args + offsetof(QuantizeArgs, zero)]);
  }

  void Step(int i) {
    const RegExp x = reg_x + i * lanes() * x_bytes();
    if (key_.op == RowOp::kAbsMax) {
      Load(V(4 + i), x);
      And(V(4 + i), V(4 + i), V(8));
      vpmaxsd(V(i), V(i), V(4 + i));
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
    StoreByte(to, v, false);
  }

  void Advance(int vectors) {
    sub(reg_count, vectors * lanes());
    add(reg_x, vectors * lanes() * x_bytes());
    if (key_.op != RowOp::kAbsMax) add(reg_q, vectors * lanes() * q_bytes());
  }

  // To where exactly one vector is left.
  void StepBack() {
    sub(reg_count, lanes());
    lea(reg_x, ptr[reg_x + reg_count * x_bytes()]);
    if (key_.op != RowOp::kAbsMax) lea(reg_q, ptr[reg_q + reg_count * q_bytes()]);
  }

  void Reduce() {
    for (int i = 1; i < kUnroll; ++i) vpmaxsd(V(0), V(0), V(i));
    if (wide()) {
      vextracti64x4(Xbyak::Ymm(1), Xbyak::Zmm(0), 1);
      vpmaxsd(Xbyak::Ymm(0), Xbyak::Ymm(0), Xbyak::Ymm(1));
    }
    const Xbyak::Xmm x0(0), x1(1);
    vextracti128(x1, Xbyak::Ymm(0), 1);
    vpmaxsd(x0, x0, x1);
    for (const std::uint8_t order : {std::uint8_t(0x4e), std::uint8_t(0xb1)}) {
      vpshufd(x1, x0, order);
      vpmaxsd(x0, x0, x1);
    }
    vmovd(eax, x0);
  }

  const RowKey key_;
};

template <class Fn>
Fn Generate(const RowKey& key) {
  static auto& cache = *new KernelCache<RowKey, RowKeyHash, RowEmitter>;
  return reinterpret_cast<Fn>(const_cast<void*>(cache.Get(key)));
}

}  // namespace

RowKernels GeneratedRows(VectorWidth width, XType x) {
  return {Generate<AbsMaxFn>({width, x, RowOp::kAbsMax}),
          Generate<QuantizeFn>({width, x, RowOp::kToByte}),
          Generate<QuantizeFn>({width, x, RowOp::kToInt16})};
}

}  // namespace qgemm
