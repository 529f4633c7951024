// The activations of portable/activation.h in vectors, with the same bits.
#pragma once

#include "codegen/vector_emitter.h"
#include "gemm/spec.h"

namespace qgemm {

class ActivationEmitter : public VectorEmitter {
 protected:
  using VectorEmitter::VectorEmitter;
  ~ActivationEmitter() = default;

  // y = Smooth(activation, y). Clobbers free(0) to free(3) and, on AVX-512, to free(6); on AVX2
  // three vectors of the red zone below the stack.
  template <class Free>
  void EmitSmooth(Activation activation, const Vec& y, const Free& free) {
    const Vec registers[] = {free(0), free(1), free(2), free(3)};
    for (int i = 0; wide() && i < 3; ++i) kept_[i] = free(4 + i);
    EmitSmooth(activation, y, registers);
  }

 private:
  using Registers = const Vec (&)[4];

  enum Slot { kX, kFraction, kScale };

  void EmitSmooth(Activation activation, const Vec& y, Registers t);
  void LinearExponent(Registers t);
  void SquareExponent(Activation activation, Registers t);
  void CubicExponent(const Vec& y, Registers t);
  void Exp2Negative(Registers t);
  void GeluTail(const Vec& y, Registers t);
  void LogisticTail(Activation activation, const Vec& y, Registers t);

  void Keep(Slot slot, const Vec& v);
  void Load(const Vec& to, Slot slot);
  void LoadBounded(const Vec& to, Activation activation);

  Vec kept_[3];
};

}  // namespace qgemm
