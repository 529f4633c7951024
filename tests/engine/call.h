// One call of the engine, of one product or more, compared bit for bit with the reference.
#pragma once

#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "gemm/acc16.h"
#include "gemm/f32_panels.h"
#include "gemm/gemm.h"
#include "gemm/names.h"
#include "pools.h"
#include "problem.h"
#include "runtime/float_env.h"
#if defined(JAX_QGEMM_JIT) && defined(__linux__)
#define EMULATES_AMX 1
#include "amx_emulator.h"
#endif

namespace qgemm::test {

// A copy of bytes that ends where readable memory ends.
class Fenced {
 public:
  Fenced(const void* bytes, std::size_t size) : empty_(size == 0) {
    const std::size_t page = std::size_t(sysconf(_SC_PAGESIZE));
    const std::size_t data = (size + page - 1) / page * page;
    size_ = data + page;
    memory_ = static_cast<std::uint8_t*>(
        mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory_ == MAP_FAILED || mprotect(memory_ + data, page, PROT_NONE) != 0) std::abort();
    data_ = memory_ + data - size;
    if (size > 0) std::memcpy(data_, bytes, size);
  }
  template <class T>
  explicit Fenced(const std::vector<T>& values)
      : Fenced(values.data(), values.size() * sizeof(T)) {}
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  ~Fenced() { munmap(memory_, size_); }

  const std::uint8_t* data() const { return data_; }
  // Null where there is nothing, as an operand that is absent.
  template <class T>
  const T* as() const {
    return empty_ ? nullptr : reinterpret_cast<const T*>(data_);
  }

 private:
  const bool empty_;
  std::uint8_t *memory_, *data_;
  std::size_t size_;
};

// The sign and the payload of a NaN are nobody's business.
inline bool BothNan(OutType out, const std::uint8_t* got, const std::vector<std::uint8_t>& want,
                    std::int64_t byte) {
  const std::vector<std::uint8_t> element(got + byte / SizeOf(out) * SizeOf(out),
                                          got + (byte / SizeOf(out) + 1) * SizeOf(out));
  const std::int64_t i = byte / SizeOf(out);
  const auto nan = [](float v) { return v != v; };
  switch (out) {
    case OutType::kF32:
      return nan(At<float>(element, 0)) && nan(At<float>(want, i));
    case OutType::kBf16:
      return nan(ToFloat(At<Bf16>(element, 0))) && nan(ToFloat(At<Bf16>(want, i)));
    case OutType::kF16:
      return nan(ToFloat(At<F16>(element, 0))) && nan(ToFloat(At<F16>(want, i)));
    default:
      return false;
  }
}

// The operands of one call, of one product or more, and what is to come out.
struct Call {
  Problem p;
  BatchStrides strides;
  std::vector<std::int32_t> group_sizes;
  std::vector<std::uint8_t> expected;
};

// The first `count` elements of `from` follow those of the products before, or are shared by all:
// then the first product's are there already.
template <class T>
void Stack(std::vector<T>& to, std::int64_t& stride, std::vector<T>& from, std::int64_t count,
           bool shared, const std::vector<T>& first) {
  if (shared) {
    from = first;
    if (to.empty()) to = first;
    return;
  }
  to.insert(to.end(), from.begin(), from.begin() + count);
  stride = count * std::int64_t(sizeof(T));
}

// A batch of products, whose operands are shared or not, or rows by groups.
inline Call MakeStack(const Case& c) {
  const auto [m, n, k, batch, ragged] = c.shape;
  const Epilogue& e = c.spec.epilogue;
  const std::int64_t x_size = SizeOf(c.spec.x), residual_size = SizeOf(e.residual);
  const GemmShape weight = c.spec.transposed ? Untransposed(c).shape : c.shape;
  const std::int64_t groups = c.spec.group > 0 ? KBlocks(weight.k, e.w_zero, c.spec.group) : 1;
  const std::int64_t columns = weight.n * groups;
  const bool scale_by_row = e.x_scale == Granularity::kRow,
             zero_by_row = e.x_zero == Granularity::kRow;
  bool share[8];
  for (bool& s : share) s = Random(0, 2) == 0;
  Call call;
  std::vector<std::uint8_t>& expected = call.expected;
  Problem first;
  std::int64_t rows_left = m;
  for (std::int64_t i = 0; i < batch; ++i) {
    std::int64_t rows = m;
    if (ragged) {
      rows = std::min(rows_left, Random(0, 1) ? Random(0, m) : 0);
      rows_left -= rows;
      call.group_sizes.push_back(std::int32_t(rows == 0 ? -Random(0, 2) : rows));
    }
    Problem p = MakeProblem({{rows, n, k}, c.spec, c.isa, 1});
    if (i == 0) first = p;
    BatchStrides& s = call.strides;
    Problem& all = call.p;
    Stack(all.x, s.x, p.x, rows * k * x_size, !ragged && share[0], first.x);
    const bool w_shared = !ragged && share[1];
    Stack(all.packed, s.w, p.packed, std::int64_t(p.packed.size()), w_shared, first.packed);
    Stack(all.sums, s.column_sums, p.sums, std::int64_t(p.sums.size()), w_shared, first.sums);
    if (w_shared) {
      p.w = first.w;
      p.w_float = first.w_float;
      p.block_scale = first.block_scale;
      p.block_minimum = first.block_minimum;
    }
    Stack(all.w_scale, s.w_scale, p.w_scale, columns, w_shared, first.w_scale);
    Stack(all.w_zero, s.w_zero, p.w_zero, columns, w_shared, first.w_zero);
    Stack(all.x_scale, s.x_scale, p.x_scale, scale_by_row ? rows : 1,
          ragged ? !scale_by_row : share[2], first.x_scale);
    Stack(all.x_zero, s.x_zero, p.x_zero, zero_by_row ? rows : 1, ragged ? !zero_by_row : share[3],
          first.x_zero);
    Stack(all.bias, s.bias, p.bias, n, share[4], first.bias);
    Stack(all.residual, s.residual, p.residual, rows * n * residual_size, !ragged && share[5],
          first.residual);
    Stack(all.out_scale, s.out_scale, p.out_scale, e.out_scale_per_column ? n : 1,
          ragged || share[6], first.out_scale);
    p.out_zero = all.out_zero = first.out_zero;
    const std::vector<std::uint8_t> result = Reference({{rows, n, k}, c.spec, c.isa, 1}, p);
    expected.insert(expected.end(), result.begin(), result.end());
  }
  call.strides.out = m * n * SizeOf(e.out);
  if (ragged) {
    // Rows of no group: zeros come out, whatever goes in.
    BatchStrides& s = call.strides;
    s.x = s.x_scale = s.x_zero = s.residual = s.out = 0;
    const auto fill = [m = m](auto& v, std::int64_t row) { v.resize(std::size_t(m * row), 1); };
    fill(call.p.x, k * x_size);
    if (scale_by_row) fill(call.p.x_scale, 1);
    if (zero_by_row) fill(call.p.x_zero, 1);
    fill(call.p.residual, n * residual_size);
    expected.resize(std::size_t(m * n * SizeOf(e.out)), 0);
  }
  return call;
}

inline Call MakeCall(const Case& c) {
  if (c.shape.batch != 1 || c.shape.ragged) return MakeStack(c);
  Call call;
  call.p = MakeProblem(c);
  call.expected = Reference(c, call.p);
  return call;
}

inline bool RunPlan(const PlanKey& key, const Case& c, const Call& call) {
  const Problem& p = call.p;
  const std::vector<std::uint8_t>& expected = call.expected;
  const Epilogue& e = c.spec.epilogue;
  const std::int64_t bytes = std::int64_t(expected.size());
  // Unaligned, and guarded on both sides.
  std::vector<std::uint8_t> out(bytes + 129, 0xa5);
  const Fenced x(p.x), packed(p.packed), residual(p.residual), bias(p.bias);
  const Fenced w_scale(p.w_scale), sums(p.sums), w_zero(p.w_zero);
  const Fenced x_scale(p.x_scale), x_zero(p.x_zero), out_scale(p.out_scale);
  GemmOperands o;
  o.x = x.data();
  o.w = reinterpret_cast<const std::int8_t*>(packed.data());
  o.w_scale = w_scale.as<float>();
  o.column_sums = sums.as<std::int32_t>();
  o.w_zero = e.w_zero ? w_zero.as<std::int32_t>() : nullptr;
  o.x_scale = x_scale.as<float>();
  o.x_zero = e.x_zero == Granularity::kNone ? nullptr : x_zero.as<std::int32_t>();
  o.bias = e.bias ? bias.as<float>() : nullptr;
  o.residual = e.residual == ResidualType::kNone ? nullptr : residual.data();
  o.out_scale = out_scale.as<float>();
  o.out_zero = &p.out_zero;
  o.out = out.data() + 65;
  o.group_sizes = call.group_sizes.data();
  o.strides = call.strides;
  {
    Threads pool;
    const FloatEnvironment as_xla(kFlushing);
    RunGemm(*GetPlan(key), o, pool);
  }
  bool good = true;
  std::int64_t first = -1;
  for (std::int64_t i = 0; i < bytes && first < 0; ++i) {
    if (out[65 + i] != expected[i] && !BothNan(e.out, &out[65], expected, i)) first = i;
  }
  for (int i = 0; i < 64; ++i) good = good && out[1 + i] == 0xa5 && out[65 + bytes + i] == 0xa5;
#ifdef EMULATES_AMX
  if (amx_emulator::threads_in_use != 0) {
    std::printf("FAILED %s: a thread keeps its tile registers\n", IsaName(c.isa));
    return false;
  }
#endif
  if (first >= 0 || !good) {
    std::printf(
        "FAILED %s%s %s%ld m=%ld n=%ld k=%ld threads=%d x=%d w=%d out=%d activation=%d x_zero=%d "
        "x_scale=%d "
        "w_zero=%d bias=%d residual=%d per_column=%d group=%ld keeps_x=%d scale=%d minimum=%d "
        "transposed=%d: %s",
        IsaName(c.isa),
        key.acc16        ? " acc16"
        : key.f32_panels ? " f32 panels"
                         : "",
        c.shape.ragged ? "groups=" : "batch=", long(c.shape.batch), long(c.shape.m),
        long(c.shape.n), long(c.shape.k), c.threads, int(c.spec.x), int(c.spec.w), int(e.out),
        int(e.activation), int(e.x_zero), int(e.x_scale), int(e.w_zero), int(e.bias),
        int(e.residual), int(e.out_scale_per_column), long(c.spec.group), int(c.spec.keeps_x),
        int(c.spec.blocks.scale), int(c.spec.blocks.minimum), int(c.spec.transposed),
        first < 0 ? "wrote beyond the output\n" : "");
    if (first >= 0)
      std::printf("byte %ld is %d, expected %d\n", long(first), out[65 + first], expected[first]);
    return false;
  }
  return true;
}

// With every family of the ISA that takes the case.
inline bool Run(const Case& c) {
  const FloatEnvironment ieee;
  const Call call = MakeCall(c);
  PlanKey key{c.shape, c.spec, c.isa, c.threads};
  bool good = RunPlan(key, c, call);
  key.acc16 = true;
  if (CanSumInInt16(key) && !c.shape.ragged) good = RunPlan(key, c, call) && good;
  key.acc16 = false;
  key.f32_panels = true;
  if (CanWidenPanels(key)) good = RunPlan(key, c, call) && good;
  return good;
}

}  // namespace qgemm::test
