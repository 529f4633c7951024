// The activations of portable/activation.h in vectors, with the same bits.
#pragma once

#include "codegen/vector_emitter.h"
#include "gemm/layout.h"
#include "gemm/spec.h"

namespace qgemm {

class ActivationEmitter : public VectorEmitter {
 protected:
  using VectorEmitter::VectorEmitter;
  ~ActivationEmitter() = default;

  // y(i) = Smooth(activation, y(i)), i < count. Each is a chain of fifty operations that wait for
  // one another: the values go through memory, so that there are registers for several at a time.
  // Clobbers all other vectors and what it takes of general registers, below.
  template <class Value>
  void EmitSmooth(Activation activation, int count, const Value& y) {
    const int most = (wide() ? 32 : 16) / kRegisters;
    const int rounds = int(CeilDiv(count, most)), at_once = int(CeilDiv(count, rounds));
    const int bytes = at_once * vector_bytes();
    mov(reg_stack, rsp);
    and_(rsp, -vector_bytes());
    sub(rsp, rounds * bytes);
    for (int i = 0; i < count; ++i) vmovaps(ptr[rsp + i * vector_bytes()], y(i));
    mov(reg_value, rsp);
    mov(reg_rounds, rounds);
    Xbyak::Label round;
    L(round);
    EmitSmooth(activation, at_once);
    add(reg_value, bytes);
    sub(reg_rounds, 1);
    jnz(round, T_NEAR);
    for (int i = 0; i < count; ++i) vmovaps(y(i), ptr[rsp + i * vector_bytes()]);
    mov(rsp, reg_stack);
  }

 private:
  // Those of one value. `high` and `low` are of z, or of its first term.
  struct Registers {
    Vec x, scratch, t0, t1, low, high, fraction, scale;
  };
  static constexpr int kRegisters = 8;

  void EmitSmooth(Activation activation, int at_once);
  void LinearExponent(const Registers& r);
  void SquareExponent(Activation activation, const Registers& r);
  void CubicExponent(const Registers& r);
  void Exp2Negative(const Registers& r);
  void GeluRatio(const Registers& r);
  void GeluTail(const Registers& r);
  void LogisticTail(Activation activation, const Registers& r);
  void SubtractTail(const Registers& r);

  void LoadBounded(const Vec& to, Activation activation, const Registers& r);

  const Xbyak::Reg64 reg_stack{r8}, reg_value{r10}, reg_rounds{r11};
};

}  // namespace qgemm
