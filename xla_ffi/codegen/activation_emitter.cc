#include "codegen/activation_emitter.h"

#include "portable/activation.h"

namespace qgemm {

void ActivationEmitter::EmitSmooth(Activation activation, int at_once) {
  const bool gelu = activation == Activation::kGelu;
  std::vector<Registers> values;
  for (int i = 0; i < at_once; ++i) {
    const auto v = [&](int j) { return V(RegistersOf(activation) * i + j); };
    const int offset = i * vector_bytes();
    values.push_back(
        {v(0), v(1), v(2), v(3), v(4), v(0), v(2), v(3), reg_value + offset, rsp + offset});
    if (gelu && wide()) values[i].SetRatio(v(5), v(6), v(7));
  }
  const Steps steps = StepsOf(activation);
  const int length = int(steps.size()), last = kSkew * (at_once - 1);
  for (int time = 0; time < length + last; ++time) {
    for (int i = 0; i < at_once; ++i) {
      const int step = time - kSkew * i;
      if (step >= 0 && step < length) steps[step](values[i]);
    }
  }
}

ActivationEmitter::Steps ActivationEmitter::StepsOf(Activation activation) {
  const bool gelu = activation == Activation::kGelu;
  const Steps ratio = gelu ? GeluRatio() : Steps(), exponent = Exponent(activation);
  const Steps tail = gelu ? GeluTail() : LogisticTail(activation);
  Steps steps;
  const auto add = [&](const Steps& from, std::size_t turn, std::size_t turns) {
    const auto at = [&](std::size_t t) { return from.begin() + t * from.size() / turns; };
    steps.insert(steps.end(), at(turn), at(turn + 1));
  };
  // Two chains, which take turns if there are registers for both.
  const std::size_t turns = wide() ? exponent.size() : 1;
  for (std::size_t turn = 0; turn < turns; ++turn) {
    add(ratio, turn, turns);
    add(exponent, turn, turns);
  }
  add(tail, 0, 1);
  return steps;
}

// a; with a NaN the second operand is the minimum.
void ActivationEmitter::LoadBounded(const Vec& to, Activation activation, const Registers& r) {
  vmovaps(to, ptr[r.x]);
  And(to, to, Constant(0x7fffffff));
  vminps(to, to, FloatConstant(ActivationBound(activation)));
}

// R(a) in `ratio`. Lookup clobbers t1 on AVX2 alone, where the exponent comes later.
ActivationEmitter::Steps ActivationEmitter::GeluRatio() {
  Steps steps;
  steps.emplace_back([this](auto& r) { LoadBounded(r.from_centre, Activation::kGelu, r); });
  steps.emplace_back([this](auto& r) { vaddps(r.interval, r.from_centre, FloatConstant(1.0F)); });
  steps.emplace_back([this](auto& r) {
    if (wide()) {
      vpsrld(r.interval, r.interval, kTailShift);
      return;
    }
    // Three bits choose in each half of a table, the sign bit chooses the half.
    vpsrld(r.coefficient, r.interval, kTailShift);
    vpslld(r.interval, r.interval, 31 - (kTailShift + 3));
    Or(r.interval, r.interval, r.coefficient);
  });
  steps.emplace_back([this](auto& r) { Lookup(r.coefficient, r.interval, kTail[0], r.t1); });
  steps.emplace_back([this](auto& r) { vsubps(r.from_centre, r.from_centre, r.coefficient); });
  steps.emplace_back([this](auto& r) { Lookup(r.ratio, r.interval, kTail[kTailRows - 1], r.t1); });
  for (int i = kTailRows - 2; i >= 1; --i) {
    steps.emplace_back([this, i](auto& r) { Lookup(r.coefficient, r.interval, kTail[i], r.t1); });
    steps.emplace_back([this](auto& r) { vfmadd213ps(r.ratio, r.from_centre, r.coefficient); });
  }
  return steps;
}

// p in t0, r in t1, the fraction in `high` and the scale in `low`.
ActivationEmitter::Steps ActivationEmitter::Exponent(Activation activation) {
  Steps steps;
  steps.emplace_back([=](auto& r) { LoadBounded(r.t0, activation, r); });
  if (activation == Activation::kSilu) {
    LinearExponent(steps);
  } else {
    SquareExponent(activation, steps);
  }
  if (activation == Activation::kGeluTanh) CubicExponent(steps);
  Exp2Negative(steps);
  return steps;
}

// a in t0 -> z.
void ActivationEmitter::LinearExponent(Steps& steps) {
  steps.emplace_back([this](auto& r) { vmulps(r.high, r.t0, FloatConstant(kLog2E.high)); });
  steps.emplace_back([this](auto& r) { vmovaps(r.low, r.t0); });
  steps.emplace_back([this](auto& r) { vfmsub132ps(r.low, r.high, FloatConstant(kLog2E.high)); });
  steps.emplace_back([this](auto& r) { vfmadd231ps(r.low, r.t0, FloatConstant(kLog2E.low)); });
}

// The same for the term in the square of a.
void ActivationEmitter::SquareExponent(Activation activation, Steps& steps) {
  const FloatPair c = activation == Activation::kGelu ? kHalfLog2E : kTanhCubic;
  const auto square_low = &Registers::t0, square = &Registers::t1;
  steps.emplace_back([=](auto& r) { vmulps(r.*square, r.t0, r.t0); });
  steps.emplace_back([=](auto& r) { vfmsub213ps(r.*square_low, r.*square_low, r.*square); });
  steps.emplace_back([=](auto& r) { vmulps(r.high, r.*square, FloatConstant(c.high)); });
  steps.emplace_back([=](auto& r) { vmovaps(r.low, r.*square); });
  steps.emplace_back([=](auto& r) { vfmsub132ps(r.low, r.high, FloatConstant(c.high)); });
  steps.emplace_back([=](auto& r) { vfmadd231ps(r.low, r.*square, FloatConstant(c.low)); });
  steps.emplace_back([=](auto& r) { vfmadd231ps(r.low, r.*square_low, FloatConstant(c.high)); });
}

// That term, plus the linear one, times a.
void ActivationEmitter::CubicExponent(Steps& steps) {
  const auto term = &Registers::high, sum = &Registers::t0, added = &Registers::t1,
             error = &Registers::ratio;
  steps.emplace_back([=](auto& r) { vaddps(r.*sum, r.*term, FloatConstant(kTanhLinear.high)); });
  steps.emplace_back([=](auto& r) { vsubps(r.*added, r.*sum, r.*term); });
  steps.emplace_back([=](auto& r) { vsubps(r.*error, r.*sum, r.*added); });
  steps.emplace_back([=](auto& r) { vsubps(r.*error, r.*term, r.*error); });
  steps.emplace_back([=](auto& r) { LoadConstant(r.*term, BitsOf(kTanhLinear.high)); });
  steps.emplace_back([=](auto& r) { vsubps(r.*term, r.*term, r.*added); });
  steps.emplace_back([=](auto& r) { vaddps(r.*error, r.*error, r.*term); });
  steps.emplace_back([=](auto& r) { vaddps(r.low, r.low, FloatConstant(kTanhLinear.low)); });
  steps.emplace_back([=](auto& r) { vaddps(r.low, r.low, r.*error); });
  const auto a = &Registers::t1;
  steps.emplace_back([=](auto& r) { LoadBounded(r.*a, Activation::kGeluTanh, r); });
  steps.emplace_back([=](auto& r) { vmulps(r.high, r.*a, r.*sum); });
  steps.emplace_back([=](auto& r) { vfmsub213ps(r.*sum, r.*a, r.high); });
  steps.emplace_back([=](auto& r) { vfmadd213ps(r.low, r.*a, r.*sum); });
}

void ActivationEmitter::Exp2Negative(Steps& steps) {
  const auto n = &Registers::t0, rest = &Registers::t1, p = &Registers::high,
             scale = &Registers::low;
  steps.emplace_back([=](auto& r) { Round(r.*n, r.high); });
  steps.emplace_back([=](auto& r) { vsubps(r.*rest, r.*n, r.high); });
  steps.emplace_back([=](auto& r) { vsubps(r.*rest, r.*rest, r.low); });
  steps.emplace_back([=](auto& r) { vcvtps2dq(r.*n, r.*n); });
  steps.emplace_back([=](auto& r) { LoadConstant(r.*scale, 127 + kScaleExponent); });
  steps.emplace_back([=](auto& r) { vpsubd(r.*scale, r.*scale, r.*n); });
  steps.emplace_back([=](auto& r) { vpslld(r.*scale, r.*scale, 23); });
  steps.emplace_back([=](auto& r) { LoadConstant(r.*p, BitsOf(kExp2[5])); });
  for (int i = 4; i >= 0; --i) {
    steps.emplace_back([=](auto& r) { vfmadd213ps(r.*p, r.*rest, FloatConstant(kExp2[i])); });
  }
  steps.emplace_back([=](auto& r) { vmovaps(r.t0, r.*p); });
  steps.emplace_back([=](auto& r) { vmulps(r.*p, r.*p, r.*rest); });
}

ActivationEmitter::Steps ActivationEmitter::GeluTail() {
  const auto tail = &Registers::t0, error = &Registers::t1, fraction = &Registers::high;
  Steps steps;
  steps.emplace_back([=](auto& r) { LoadBounded(r.*error, Activation::kGelu, r); });
  steps.emplace_back([=](auto& r) { vmulps(r.*tail, r.*error, r.ratio); });
  steps.emplace_back([=](auto& r) { vfmsub213ps(r.*error, r.ratio, r.*tail); });
  steps.emplace_back([=](auto& r) { vfmadd213ps(r.*error, r.*fraction, r.*error); });
  steps.emplace_back([=](auto& r) { vfmadd213ps(r.*fraction, r.*tail, r.*error); });
  steps.emplace_back([=](auto& r) { vaddps(r.*tail, r.*tail, r.*fraction); });
  steps.emplace_back([=](auto& r) { vmulps(r.*tail, r.*tail, r.low); });
  SubtractTail(steps);
  return steps;
}

ActivationEmitter::Steps ActivationEmitter::LogisticTail(Activation activation) {
  const auto power = &Registers::high, scale = &Registers::low, sum = &Registers::ratio;
  Steps steps;
  steps.emplace_back([=](auto& r) { vfmadd213ps(r.*power, r.*scale, r.*scale); });
  steps.emplace_back([=](auto& r) { vmovaps(ptr[r.spilled], r.*scale); });
  steps.emplace_back([=](auto& r) { vmulps(r.*power, r.*power, FloatConstant(kUnscale)); });
  steps.emplace_back([=](auto& r) { vaddps(r.*sum, r.*power, FloatConstant(1.0F)); });
  const auto error = &Registers::low;
  steps.emplace_back([=](auto& r) { vsubps(r.*error, r.*sum, FloatConstant(1.0F)); });
  steps.emplace_back([=](auto& r) { vsubps(r.*error, r.*power, r.*error); });
  const auto p = &Registers::t0, a = &Registers::high, tail = &Registers::t0;
  steps.emplace_back([=](auto& r) { vfmsub213ps(r.*p, r.t1, r.*error); });
  steps.emplace_back([=](auto& r) { LoadBounded(r.*a, activation, r); });
  steps.emplace_back([=](auto& r) { vfmadd213ps(r.*tail, r.*a, r.*a); });
  steps.emplace_back([=](auto& r) { vdivps(r.*tail, r.*tail, r.*sum); });
  steps.emplace_back([=](auto& r) { vmulps(r.*tail, r.*tail, ptr[r.spilled]); });
  SubtractTail(steps);
  return steps;
}

// y, from a * S(a), scaled, in t0.
void ActivationEmitter::SubtractTail(Steps& steps) {
  steps.emplace_back([this](auto& r) { vmulps(r.t0, r.t0, FloatConstant(kUnscale)); });
  steps.emplace_back([this](auto& r) { Zero(r.t1); });
  steps.emplace_back(
      [this](auto& r) { vmaxps(r.t1, r.t1, ptr[r.x]); });  // x second: NaN and -0 stay
  steps.emplace_back([this](auto& r) { vsubps(r.t1, r.t1, r.t0); });
  steps.emplace_back([this](auto& r) { vmovaps(ptr[r.x], r.t1); });
}

}  // namespace qgemm
