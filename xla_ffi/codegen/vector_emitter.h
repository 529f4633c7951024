// Vector instructions under one name for AVX2 (8 lanes of 32 bits) and AVX-512 (16 lanes), so that
// what is not a hot loop is written once.
#pragma once

#include <xbyak/xbyak.h>

#include <cstdint>
#include <map>

namespace qgemm {

enum class VectorWidth { k256, k512 };

class VectorEmitter : public Xbyak::CodeGenerator {
 public:
  VectorEmitter(const VectorEmitter&) = delete;
  VectorEmitter& operator=(const VectorEmitter&) = delete;

 protected:
  using Vec = Xbyak::Xmm;  // holds a Ymm or a Zmm
  using Address = Xbyak::Address;
  using RegExp = Xbyak::RegExp;

  explicit VectorEmitter(VectorWidth width)
      : CodeGenerator(kCapacity, Xbyak::DontSetProtectRWE), wide_(width == VectorWidth::k512) {}

  bool wide() const { return wide_; }
  int lanes() const { return wide_ ? 16 : 8; }
  int vector_bytes() const { return 4 * lanes(); }
  Vec V(int index) const { return wide_ ? Vec(Xbyak::Zmm(index)) : Vec(Xbyak::Ymm(index)); }

  void Zero(const Vec& v);
  void And(const Vec& to, const Vec& a, const Xbyak::Operand& b);
  void Or(const Vec& to, const Vec& a, const Xbyak::Operand& b);
  void Xor(const Vec& to, const Vec& a, const Xbyak::Operand& b);
  void LoadInt(const Vec& to, const Address& from);
  void StoreInt(const Address& to, const Vec& v);
  void LoadBf16(const Vec& to, const RegExp& from);
  void LoadF16(const Vec& to, const RegExp& from);
  // A 32-bit constant in every lane, as a memory operand. The data follows the code.
  Address Constant(std::uint32_t value);
  Address FloatConstant(float value);
  void LoadConstant(const Vec& to, std::uint32_t value);
  // v[i] = table[index[i] % 16]. On AVX2 the sign bit of the index is that of 2^3, too; `temporary`
  // is clobbered there. `table` outlives the emitter.
  void Lookup(const Vec& v, const Vec& index, const float (&table)[16], const Vec& temporary);
  // All of a table, on AVX-512.
  void LoadTable(const Vec& to, const float (&table)[16]);
  // v = instruction(v, scalar in memory, broadcast). `temporary` is clobbered on AVX2.
  template <class Instruction>
  void WithScalar(Instruction instruction, const Vec& v, const RegExp& scalar,
                  const Vec& temporary) {
    if (wide_) {
      (this->*instruction)(v, v, ptr_b[scalar]);
    } else {
      vbroadcastss(temporary, dword[scalar]);
      (this->*instruction)(v, v, temporary);
    }
  }

  void Round(const Vec& to, const Vec& v);              // to nearest, ties to even
  void RoundToInt(const Vec& v, const Vec& temporary);  // the same, as int32; NaN counts as 0
  // Narrowing stores, of bytes unsigned. Lanes are already within the range of the target; v is
  // clobbered.
  void StoreByte(const RegExp& to, const Vec& v);
  void StoreInt16(const RegExp& to, const Vec& v);
  // What StoreQuantized needs in registers; `temporary` is clobbered.
  struct QuantizedStore {
    Vec order, zero_point, temporary;
    bool relu, is_signed;
  };
  // `zero_point` is an int32 in memory.
  void LoadQuantizedStore(const QuantizedStore& store, const RegExp& zero_point);
  // Stores `count` vectors of int32, 1 to 4, as bytes that follow each other: each value has the
  // zero point added, saturates to a byte and, for relu, is no less than the zero point. No value
  // is above kMostQuantized. All four vectors, equal or not, are clobbered.
  void StoreQuantized(const RegExp& to, const Vec (&v)[4], int count, const QuantizedStore& store);
  // So that any zero point may be added to it as int16.
  static constexpr float kMostQuantized = 32767 - 255;
  void StoreBf16(const RegExp& to, const Vec& v, const Vec& t0, const Vec& t1);
  void StoreF16(const RegExp& to, const Vec& v);

  // Ends the function: constants, then the memory becomes executable and read-only.
  void Finish();

 private:
  void StoreBytes(const RegExp& to, const Vec& v, int bytes, const Vec& temporary);

  static constexpr std::size_t kCapacity = 32
                                           << 10;  // address space; only touched pages are memory
  const bool wide_;
  std::map<std::uint32_t, Xbyak::Label> constants_;
  std::map<const float*, Xbyak::Label> tables_;
  Xbyak::Label quantized_order_;
  bool orders_quantized_ = false;
};

}  // namespace qgemm
