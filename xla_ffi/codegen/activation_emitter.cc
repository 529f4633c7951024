#include "codegen/activation_emitter.h"

#include "portable/activation.h"

namespace qgemm {

void ActivationEmitter::Keep(Slot slot, const Vec& v) {
  if (wide()) {
    vmovaps(kept_[slot], v);
  } else {
    vmovups(ptr[rsp - 32 * (slot + 1)], v);
  }
}

void ActivationEmitter::Load(const Vec& to, Slot slot) {
  if (wide()) {
    vmovaps(to, kept_[slot]);
  } else {
    vmovups(to, ptr[rsp - 32 * (slot + 1)]);
  }
}

// a; with a NaN the second operand is the minimum.
void ActivationEmitter::LoadBounded(const Vec& to, Activation activation) {
  Load(to, kX);
  And(to, to, Constant(0x7fffffff));
  vminps(to, to, FloatConstant(ActivationBound(activation)));
}

void ActivationEmitter::EmitSmooth(Activation activation, const Vec& y, Registers t) {
  Keep(kX, y);
  LoadBounded(t[0], activation);
  if (activation == Activation::kSilu) {
    LinearExponent(t);
  } else {
    SquareExponent(activation, t);
    if (activation == Activation::kGeluTanh) CubicExponent(y, t);
  }
  Exp2Negative(t);
  if (activation == Activation::kGelu) {
    GeluTail(y, t);
  } else {
    LogisticTail(activation, y, t);
  }
  vmulps(t[0], t[0], FloatConstant(kUnscale));
  Load(y, kX);
  Zero(t[1]);
  vmaxps(y, t[1], y);  // y second: NaN and -0 stay
  vsubps(y, y, t[0]);
}

// a in t[0] -> the high and the low float of z in t[3] and t[2].
void ActivationEmitter::LinearExponent(Registers t) {
  const Vec &a = t[0], &low = t[2], &high = t[3];
  vmulps(high, a, FloatConstant(kLog2E.high));
  vmovaps(low, a);
  vfmsub132ps(low, high, FloatConstant(kLog2E.high));
  vfmadd231ps(low, a, FloatConstant(kLog2E.low));
}

// The same for the term in the square of a.
void ActivationEmitter::SquareExponent(Activation activation, Registers t) {
  const FloatPair c = activation == Activation::kGelu ? kHalfLog2E : kTanhCubic;
  const Vec &square_low = t[0], &square = t[1], &low = t[2], &high = t[3];
  vmulps(square, t[0], t[0]);
  vfmsub213ps(square_low, square_low, square);
  vmulps(high, square, FloatConstant(c.high));
  vmovaps(low, square);
  vfmsub132ps(low, high, FloatConstant(c.high));
  vfmadd231ps(low, square, FloatConstant(c.low));
  vfmadd231ps(low, square_low, FloatConstant(c.high));
}

// That term in t[3] and t[2], plus the linear one, times a; y is clobbered.
void ActivationEmitter::CubicExponent(const Vec& y, Registers t) {
  const Vec &sum = t[0], &added = t[1], &low = t[2], &term = t[3];
  vaddps(sum, term, FloatConstant(kTanhLinear.high));
  vsubps(added, sum, term);
  vsubps(y, sum, added);
  vsubps(y, term, y);
  LoadConstant(term, BitsOf(kTanhLinear.high));
  vsubps(term, term, added);
  vaddps(y, y, term);
  vaddps(low, low, FloatConstant(kTanhLinear.low));
  vaddps(low, low, y);
  const Vec &a = t[1], &high = t[3];
  LoadBounded(a, Activation::kGeluTanh);
  vmulps(high, a, sum);
  vfmsub213ps(sum, a, high);
  vfmadd213ps(low, a, sum);
}

// z in t[3] and t[2] -> p in t[0], r in t[1], the scale in t[2].
void ActivationEmitter::Exp2Negative(Registers t) {
  const Vec &n = t[0], &r = t[1], &low = t[2], &high = t[3];
  Round(n, high);
  vsubps(r, n, high);
  vsubps(r, r, low);
  const Vec& scale = t[2];
  vcvtps2dq(n, n);
  LoadConstant(scale, 127 + kScaleExponent);
  vpsubd(scale, scale, n);
  vpslld(scale, scale, 23);
  const Vec& p = t[0];
  LoadConstant(p, BitsOf(kExp2[5]));
  for (int i = 4; i >= 0; --i) vfmadd213ps(p, r, FloatConstant(kExp2[i]));
}

// -> a * S(a), scaled, in t[0]; y is clobbered.
void ActivationEmitter::GeluTail(const Vec& y, Registers t) {
  vmulps(t[0], t[0], t[1]);
  Keep(kFraction, t[0]);
  Keep(kScale, t[2]);
  const Vec &a = t[0], &interval = t[1], &ratio = t[2], &coefficient = t[3];
  LoadBounded(a, Activation::kGelu);
  vaddps(interval, a, FloatConstant(1.0F));
  if (wide()) {
    vpsrld(interval, interval, kTailShift);
  } else {
    // Three bits choose in each half of a table, the sign bit chooses the half.
    vpsrld(coefficient, interval, kTailShift);
    vpslld(interval, interval, 31 - (kTailShift + 3));
    Or(interval, interval, coefficient);
  }
  const Vec& from_centre = t[0];
  Lookup(coefficient, interval, kTail[0], y);
  vsubps(from_centre, a, coefficient);
  Lookup(ratio, interval, kTail[kTailRows - 1], y);
  for (int i = kTailRows - 2; i >= 1; --i) {
    Lookup(coefficient, interval, kTail[i], y);
    vfmadd213ps(ratio, from_centre, coefficient);
  }
  const Vec &tail = t[0], &error = t[1], &fraction = t[3];
  LoadBounded(error, Activation::kGelu);
  vmulps(tail, error, ratio);
  vfmsub213ps(error, ratio, tail);
  Load(fraction, kFraction);
  vfmadd213ps(error, fraction, error);
  vfmadd213ps(fraction, tail, error);
  vaddps(tail, tail, fraction);
  const Vec& scale = t[1];
  Load(scale, kScale);
  vmulps(tail, tail, scale);
}

// The same, by p, r and the scale in t[0], t[1] and t[2].
void ActivationEmitter::LogisticTail(Activation activation, const Vec& y, Registers t) {
  const Vec &p = t[0], &r = t[1], &scale = t[2], &power = t[3];
  Keep(kScale, scale);
  vmulps(power, p, r);
  vfmadd213ps(power, scale, scale);
  vmulps(power, power, FloatConstant(kUnscale));
  const Vec &sum = y, &error = t[3];
  vaddps(sum, power, FloatConstant(1.0F));
  const Vec& rounded = t[2];
  vsubps(rounded, sum, FloatConstant(1.0F));
  vsubps(error, power, rounded);
  vfmsub213ps(p, r, error);
  const Vec &a = t[1], &tail = t[0];
  LoadBounded(a, activation);
  vfmadd213ps(tail, a, a);
  vdivps(tail, tail, sum);
  Load(t[1], kScale);
  vmulps(tail, tail, t[1]);
}

}  // namespace qgemm
