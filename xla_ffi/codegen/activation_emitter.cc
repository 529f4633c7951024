#include "codegen/activation_emitter.h"

#include <vector>

#include "portable/activation.h"

namespace qgemm {

// All values take a step before the next one.
void ActivationEmitter::EmitSmooth(Activation activation, int at_once) {
  std::vector<Registers> values;
  const auto each = [&](const auto& step) {
    for (const Registers& r : values) step(r);
  };
  for (int i = 0; i < at_once; ++i) {
    const auto v = [&](int j) { return V(kRegisters * i + j); };
    values.push_back({v(0), v(1), v(2), v(3), v(4), v(5), v(6), v(7)});
    vmovaps(values[i].x, ptr[reg_value + i * vector_bytes()]);
  }
  each([&](const Registers& r) {
    LoadBounded(r.t0, activation, r);
    if (activation == Activation::kSilu) {
      LinearExponent(r);
    } else {
      SquareExponent(activation, r);
    }
  });
  if (activation == Activation::kGeluTanh) each([&](const Registers& r) { CubicExponent(r); });
  each([&](const Registers& r) { Exp2Negative(r); });
  if (activation == Activation::kGelu) {
    each([&](const Registers& r) { GeluRatio(r); });
    each([&](const Registers& r) { GeluTail(r); });
  } else {
    each([&](const Registers& r) { LogisticTail(activation, r); });
  }
  each([&](const Registers& r) { SubtractTail(r); });
  for (int i = 0; i < at_once; ++i) vmovaps(ptr[reg_value + i * vector_bytes()], values[i].x);
}

// a; with a NaN the second operand is the minimum.
void ActivationEmitter::LoadBounded(const Vec& to, Activation activation, const Registers& r) {
  And(to, r.x, Constant(0x7fffffff));
  vminps(to, to, FloatConstant(ActivationBound(activation)));
}

// a in t0 -> z.
void ActivationEmitter::LinearExponent(const Registers& r) {
  vmulps(r.high, r.t0, FloatConstant(kLog2E.high));
  vmovaps(r.low, r.t0);
  vfmsub132ps(r.low, r.high, FloatConstant(kLog2E.high));
  vfmadd231ps(r.low, r.t0, FloatConstant(kLog2E.low));
}

// The same for the term in the square of a.
void ActivationEmitter::SquareExponent(Activation activation, const Registers& r) {
  const FloatPair c = activation == Activation::kGelu ? kHalfLog2E : kTanhCubic;
  const Vec &square_low = r.t0, &square = r.t1;
  vmulps(square, r.t0, r.t0);
  vfmsub213ps(square_low, square_low, square);
  vmulps(r.high, square, FloatConstant(c.high));
  vmovaps(r.low, square);
  vfmsub132ps(r.low, r.high, FloatConstant(c.high));
  vfmadd231ps(r.low, square, FloatConstant(c.low));
  vfmadd231ps(r.low, square_low, FloatConstant(c.high));
}

// That term, plus the linear one, times a.
void ActivationEmitter::CubicExponent(const Registers& r) {
  const Vec &term = r.high, &sum = r.t0, &added = r.t1, &error = r.scratch;
  vaddps(sum, term, FloatConstant(kTanhLinear.high));
  vsubps(added, sum, term);
  vsubps(error, sum, added);
  vsubps(error, term, error);
  LoadConstant(term, BitsOf(kTanhLinear.high));
  vsubps(term, term, added);
  vaddps(error, error, term);
  vaddps(r.low, r.low, FloatConstant(kTanhLinear.low));
  vaddps(r.low, r.low, error);
  const Vec& a = r.t1;
  LoadBounded(a, Activation::kGeluTanh, r);
  vmulps(r.high, a, sum);
  vfmsub213ps(sum, a, r.high);
  vfmadd213ps(r.low, a, sum);
}

// z -> p in t0, r in t1, the fraction and the scale.
void ActivationEmitter::Exp2Negative(const Registers& r) {
  const Vec &n = r.t0, &rest = r.t1, &p = r.fraction;
  Round(n, r.high);
  vsubps(rest, n, r.high);
  vsubps(rest, rest, r.low);
  vcvtps2dq(n, n);
  LoadConstant(r.scale, 127 + kScaleExponent);
  vpsubd(r.scale, r.scale, n);
  vpslld(r.scale, r.scale, 23);
  LoadConstant(p, BitsOf(kExp2[5]));
  for (int i = 4; i >= 0; --i) vfmadd213ps(p, rest, FloatConstant(kExp2[i]));
  vmovaps(r.t0, p);
  vmulps(r.fraction, p, rest);
}

// R(a) in t1.
void ActivationEmitter::GeluRatio(const Registers& r) {
  const Vec &from_centre = r.t0, &ratio = r.t1, &interval = r.low, &coefficient = r.high;
  LoadBounded(from_centre, Activation::kGelu, r);
  vaddps(interval, from_centre, FloatConstant(1.0F));
  if (wide()) {
    vpsrld(interval, interval, kTailShift);
  } else {
    // Three bits choose in each half of a table, the sign bit chooses the half.
    vpsrld(coefficient, interval, kTailShift);
    vpslld(interval, interval, 31 - (kTailShift + 3));
    Or(interval, interval, coefficient);
  }
  Lookup(coefficient, interval, kTail[0], r.scratch);
  vsubps(from_centre, from_centre, coefficient);
  Lookup(ratio, interval, kTail[kTailRows - 1], r.scratch);
  for (int i = kTailRows - 2; i >= 1; --i) {
    Lookup(coefficient, interval, kTail[i], r.scratch);
    vfmadd213ps(ratio, from_centre, coefficient);
  }
}

// a * S(a), scaled, in t0.
void ActivationEmitter::GeluTail(const Registers& r) {
  const Vec &tail = r.t0, &ratio = r.t1, &error = r.scratch;
  LoadBounded(error, Activation::kGelu, r);
  vmulps(tail, error, ratio);
  vfmsub213ps(error, ratio, tail);
  vfmadd213ps(error, r.fraction, error);
  vfmadd213ps(r.fraction, tail, error);
  vaddps(tail, tail, r.fraction);
  vmulps(tail, tail, r.scale);
}

// The same, by p and r in t0 and t1.
void ActivationEmitter::LogisticTail(Activation activation, const Registers& r) {
  const Vec &power = r.fraction, &sum = r.scratch, &error = r.low;
  vfmadd213ps(power, r.scale, r.scale);
  vmulps(power, power, FloatConstant(kUnscale));
  vaddps(sum, power, FloatConstant(1.0F));
  vsubps(error, sum, FloatConstant(1.0F));
  vsubps(error, power, error);
  const Vec &p = r.t0, &a = r.high, &tail = r.t0;
  vfmsub213ps(p, r.t1, error);
  LoadBounded(a, activation, r);
  vfmadd213ps(tail, a, a);
  vdivps(tail, tail, sum);
  vmulps(tail, tail, r.scale);
}

void ActivationEmitter::SubtractTail(const Registers& r) {
  vmulps(r.t0, r.t0, FloatConstant(kUnscale));
  Zero(r.t1);
  vmaxps(r.x, r.t1, r.x);  // x second: NaN and -0 stay
  vsubps(r.x, r.x, r.t0);
}

}  // namespace qgemm
