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
    mov(rax, key_.op == RowOp::kRange     ? std::size_t(portable.range)
             : key_.op == RowOp::kToInt16 ? std::size_t(portable.to_int16)
             : key_.op == RowOp::kToF32   ? std::size_t(portable.to_f32)
                                          : std::size_t(portable.to_byte));
    jmp(rax);

    L(whole);
    Prologue();
    L(unrolled);
    cmp(reg_count, kUnroll * lanes());
    jl(single, T_NEAR);
    Steps(kUnroll);
    Advance(kUnroll);
    jmp(unrolled, T_NEAR);
    L(single);
    cmp(reg_count, lanes());
    jl(tail, T_NEAR);
    Steps(1);
    Advance(1);
    jmp(single, T_NEAR);
    L(tail);
    test(reg_count, reg_count);
    jz(done, T_NEAR);
    StepBack();
    Steps(1);
    L(done);
    if (key_.op == RowOp::kRange) StoreRange();
    Finish();
  }

  const void* function() const { return getCode(); }

 private:
  static constexpr int kUnroll = 4;

  const RowKey key_;

  const Xbyak::Reg64 reg_x{rdi}, reg_count{rsi}, reg_args{rdx};
  const Xbyak::Reg64 reg_q = key_.op == RowOp::kToF32 ? rdx : rcx;

  // Range, of the bits of x: as signed integers the largest in 0..3, as unsigned ones in 4..7, x in
  // 8..11.
  // Quantize: values in 0..3, temporaries in 4..7, the parameters in 8..11.
  Vec Inverse() const { return V(8); }
  Vec Low() const { return V(9); }
  Vec High() const { return V(10); }
  Vec ZeroPoint() const { return V(11); }
  QuantizedStore Store() const { return {V(9), ZeroPoint(), V(4), false, false}; }

  int x_bytes() const { return key_.x == XType::kF32 ? 4 : 2; }
  int q_bytes() const { return key_.op == RowOp::kToF32 ? 4 : key_.op == RowOp::kToInt16 ? 2 : 1; }

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
    if (key_.op == RowOp::kToF32) return;
    if (key_.op == RowOp::kRange) {
      for (int i = 0; i < 2 * kUnroll; ++i) Zero(V(i));
      return;
    }
    vbroadcastss(Inverse(), dword[reg_args + offsetof(QuantizeArgs, inverse)]);
    if (key_.op == RowOp::kInRangeToByte) {
      LoadQuantizedStore(Store(), reg_args + offsetof(QuantizeArgs, zero));
      return;
    }
    vbroadcastss(Low(), dword[reg_args + offsetof(QuantizeArgs, low)]);
    vbroadcastss(High(), dword[reg_args + offsetof(QuantizeArgs, high)]);
    vpbroadcastd(ZeroPoint(), dword[reg_args + offsetof(QuantizeArgs, zero)]);
  }

  void Steps(int count) {
    for (int i = 0; i < count; ++i) Step(i);
    if (key_.op == RowOp::kInRangeToByte) {
      StoreQuantized(reg_q, {V(0), V(1), V(2), V(3)}, count, Store());
    }
  }

  void Step(int i) {
    const RegExp x = reg_x + i * lanes() * x_bytes();
    if (key_.op == RowOp::kRange) {
      const Vec value = V(2 * kUnroll + i);
      Load(value, x);
      vpmaxsd(V(i), V(i), value);
      vpmaxud(V(kUnroll + i), V(kUnroll + i), value);
      return;
    }
    const Vec v = V(i);
    Load(v, x);
    if (key_.op == RowOp::kToF32) {
      vmovups(ptr[reg_q + i * vector_bytes()], v);
      return;
    }
    vmulps(v, v, Inverse());
    if (key_.op == RowOp::kInRangeToByte) {
      vcvtps2dq(v, v);
      return;
    }
    // With v second: NaN stays. 0 is within the range.
    vmaxps(v, Low(), v);
    vminps(v, High(), v);
    RoundToInt(v, V(4 + i));
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

  // Of numbers that are not below 0 the bits are in their order, those of the others are larger as
  // unsigned integers and in the reverse order; infinity comes after all numbers, NaN after it. Two
  // operations of integers in place of three of floats (a row of 1024 in the L1 of Zen 4 is
  // quantized in 235 cycles in place of 290).
  void StoreRange() {
    for (int first = 0; first < 2 * kUnroll; first += kUnroll) {
      for (const int half : {2, 1}) {
        for (int i = 0; i < half; ++i) Join(first, V(first + i), V(first + i), V(first + i + half));
      }
      if (wide()) {
        vextracti64x4(Xbyak::Ymm(first + 1), Xbyak::Zmm(first), 1);
        Join(first, Xbyak::Ymm(first), Xbyak::Ymm(first), Xbyak::Ymm(first + 1));
      }
      const Xbyak::Xmm x0(first), x1(first + 1);
      vextracti128(x1, Xbyak::Ymm(first), 1);
      Join(first, x0, x0, x1);
      for (const std::uint8_t order : {std::uint8_t(0x4e), std::uint8_t(0xb1)}) {
        vpshufd(x1, x0, order);
        Join(first, x0, x0, x1);
      }
    }
    const Xbyak::Reg32 low = eax, zero = ecx;
    vmovd(low, Xbyak::Xmm(kUnroll));
    xor_(zero, zero);
    test(low, low);
    cmovns(low, zero);  // none is below 0
    mov(dword[reg_args + offsetof(RowRange, low)], low);
    vmovd(dword[reg_args + offsetof(RowRange, high)], Xbyak::Xmm(0));
  }

  // The operation of the accumulators that start at register `first`.
  void Join(int first, const Vec& to, const Vec& a, const Vec& b) {
    if (first == 0) {
      vpmaxsd(to, a, b);
    } else {
      vpmaxud(to, a, b);
    }
  }
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
          Generate<QuantizeFn>({width, x, RowOp::kToInt16}),
          Generate<QuantizeFn>({width, x, RowOp::kInRangeToByte}), nullptr};
}

RowKernels GeneratedFloatRows(VectorWidth width, XType x) {
  return {nullptr, nullptr, nullptr, nullptr, Generate<WidenFn>({width, x, RowOp::kToF32})};
}

}  // namespace qgemm
