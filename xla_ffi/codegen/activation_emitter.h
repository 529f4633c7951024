// The activations of portable/activation.h in vectors, with the same bits.
#pragma once

#include <functional>
#include <vector>

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
    const int most = (wide() ? 32 : 16) / RegistersOf(activation);
    const int rounds = int(CeilDiv(count, most)), at_once = int(CeilDiv(count, rounds));
    const int bytes = at_once * vector_bytes();
    mov(reg_stack, rsp);
    and_(rsp, -vector_bytes());
    sub(rsp, (1 + rounds) * bytes);
    lea(reg_value, ptr[rsp + bytes]);
    for (int i = 0; i < count; ++i) vmovaps(ptr[reg_value + i * vector_bytes()], y(i));
    mov(reg_rounds, rounds);
    Xbyak::Label round;
    L(round);
    EmitSmooth(activation, at_once);
    add(reg_value, bytes);
    sub(reg_rounds, 1);
    jnz(round, T_NEAR);
    for (int i = 0; i < count; ++i) vmovaps(y(i), ptr[rsp + (bytes + i * vector_bytes())]);
    mov(rsp, reg_stack);
  }

 private:
  // Those of one value, which is in memory. `high` and `low` are of z, or of its first term. The
  // ratio of gelu is worked out before the rest, in the same registers, or in others beside it.
  struct Registers {
    Vec t0, t1, high, low, ratio;
    Vec from_centre, coefficient, interval;
    RegExp x, spilled;

    void SetRatio(const Vec& v0, const Vec& v1, const Vec& v2) {
      from_centre = v0;
      coefficient = v1;
      interval = v2;
    }
  };
  using Step = std::function<void(const Registers&)>;
  using Steps = std::vector<Step>;

  // Values take their steps together, each so many after the one before: other operations for other
  // ports. A tile of 6x64 on Zen 4 takes 910 cycles for gelu, 1000 for gelu_tanh, 640 for silu
  // (with all values at the same step, and half of the registers for each, 1000, 1150 and 650).
  static constexpr int kSkew = 3;
  // Of one value: the fewer, the more values at once.
  int RegistersOf(Activation activation) const {
    return activation == Activation::kGelu && wide() ? 8 : 5;
  }

  void EmitSmooth(Activation activation, int at_once);
  Steps StepsOf(Activation activation);
  Steps Exponent(Activation activation);
  void LinearExponent(Steps& steps);
  void SquareExponent(Activation activation, Steps& steps);
  void CubicExponent(Steps& steps);
  void Exp2Negative(Steps& steps);
  Steps GeluRatio();
  Steps GeluTail();
  Steps LogisticTail(Activation activation);
  void SubtractTail(Steps& steps);

  void LoadBounded(const Vec& to, Activation activation, const Registers& r);

  const Xbyak::Reg64 reg_stack{r8}, reg_value{r10}, reg_rounds{r11};
};

}  // namespace qgemm
