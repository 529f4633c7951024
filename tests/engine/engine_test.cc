// Tests of the engine without Python or XLA: every kernel family this CPU runs, bit for bit against
// a reference in int64, over all forms of zero points, scales and outputs and sizes around every
// tile edge. It runs under sanitizers and CPU emulators too. Arguments: [ISA ...]; default: all
// available.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gemm/gemm.h"
#include "gemm/pack.h"
#include "gemm/quantize.h"
#include "runtime/float_env.h"

namespace {

using namespace qgemm;

std::mt19937 rng(1);
std::int64_t Random(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
}
float RandomFloat() { return std::normal_distribution<float>()(rng); }

// A pool that starts a thread per task and joins them at its end.
struct Threads {
  std::vector<std::thread> threads;
  std::size_t most = 100;  // beyond so many it has no memory for another
  template <class F>
  void Schedule(F&& f) {
    if (threads.size() == most) throw std::bad_alloc();
    threads.emplace_back(std::forward<F>(f));
  }
  ~Threads() {
    for (std::thread& t : threads) t.join();
  }
};

std::uint32_t Bits(float f) {
  std::uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}
float FromBits(std::uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

struct Case {
  GemmShape shape;
  GemmSpec spec;
  Isa isa;
  int threads;
};

struct Problem {
  std::vector<std::uint8_t> x;
  std::vector<std::int8_t> w, packed;
  std::vector<std::int32_t> sums, w_zero, x_zero;
  std::vector<float> w_scale, x_scale, bias;
  float out_scale;
  std::int32_t out_zero;
};

float XFloat(const Problem& p, XType type, std::int64_t i) {
  std::uint32_t bits = 0;
  if (type == XType::kF32) {
    std::memcpy(&bits, &p.x[4 * i], 4);
  } else {
    std::uint16_t half;
    std::memcpy(&half, &p.x[2 * i], 2);
    bits = std::uint32_t(half) << 16;
  }
  return FromBits(bits);
}

Problem MakeProblem(const Case& c) {
  const auto [m, n, k] = c.shape;
  const Epilogue& e = c.spec.epilogue;
  Problem p;
  const int style = int(Random(0, 7));  // 0: the extremes, where 16-bit sums would saturate
  if (IsFloat(c.spec.x)) {
    p.x.resize(m * k * 4);
    for (std::int64_t i = 0; i < m * k; ++i) {
      float v = RandomFloat() * std::exp2(float(Random(-8, 8)));
      const std::int64_t row = i / std::max<std::int64_t>(k, 1);
      if (row % 7 == 3) v = 0;                           // a zero row
      if (row % 7 == 4) v *= 1e-40F;                     // subnormal
      if (row % 7 == 2) v = std::fabs(v) + 1;            // no negative value
      if (row % 11 == 9) v *= 1e38F;                     // may be beyond f32 in range
      if (row % 7 == 5 && i % k == k / 2) v = INFINITY;  // not finite
      if (row % 11 == 6 && i % k == k - 1) v = -NAN;
      const std::uint32_t bits = Bits(v);
      if (c.spec.x == XType::kF32) {
        std::memcpy(&p.x[4 * i], &bits, 4);
      } else {
        const auto half = std::uint16_t(bits >> 16);
        std::memcpy(&p.x[2 * i], &half, 2);
      }
    }
  } else {
    const int extreme = c.spec.x == XType::kU8 ? 255 : 128;
    for (std::int64_t i = 0; i < m * k; ++i)
      p.x.push_back(std::uint8_t(style == 0 ? extreme : Random(0, 255)));
  }
  for (std::int64_t i = 0; i < n * k; ++i)
    p.w.push_back(std::int8_t(style == 0 ? -128 : Random(-128, 127)));
  for (std::int64_t i = 0; i < n; ++i) {
    p.w_scale.push_back(std::exp(RandomFloat()) * 0.01F);
    p.bias.push_back(RandomFloat());
    p.w_zero.push_back(int(Random(-128, 127)));
  }
  for (std::int64_t i = 0; i < m; ++i) {
    p.x_scale.push_back(std::exp(RandomFloat()) * 0.01F);
    p.x_zero.push_back(int(c.spec.x == XType::kU8 ? Random(0, 255) : Random(-128, 127)));
  }
  if (m == 0) p.x_scale = {1}, p.x_zero = {0};
  p.out_scale = float(std::sqrt(double(k) + 1) * 0.002 * double(Random(1, 4)));
  p.out_zero = int(e.out == OutType::kU8 ? Random(0, 255) : Random(-128, 127));
  const PackedLayout layout{k, n};
  p.packed.assign(layout.Bytes() + 1, 77);  // not null where K = 0
  p.sums.assign(KBlocks(k, e.w_zero) * n, 77);
  Threads pool;
  Pack(layout, {p.w.data(), e.w_zero ? p.w_zero.data() : nullptr, p.packed.data(), p.sums.data()},
       pool, 2);
  return p;
}

std::uint16_t ToBf16(float y) {
  const std::uint32_t u = Bits(y);
  if (std::isnan(y)) return std::uint16_t(u >> 16 | 0x40);
  const std::uint32_t low = u & 0xffff, up = u >> 16;
  return std::uint16_t(up + (low > 0x8000 || (low == 0x8000 && (up & 1))));
}

// numerics, one element at a time.
std::vector<std::uint8_t> Reference(const Case& c, const Problem& p) {
  const auto [m, n, k] = c.shape;
  const Epilogue& e = c.spec.epilogue;
  std::vector<std::uint8_t> out(m * n * SizeOf(e.out));
  std::vector<std::int64_t> row(k);
  for (std::int64_t i = 0; i < m; ++i) {
    float row_scale = p.x_scale[e.x_scale == Granularity::kRow ? i : 0];
    std::int64_t zero =
        e.x_zero == Granularity::kNone ? 0 : p.x_zero[e.x_zero == Granularity::kRow ? i : 0];
    if (IsFloat(c.spec.x)) {
      float low = 0, high = 0;
      bool finite = true;
      for (std::int64_t j = 0; j < k; ++j) {
        const float v = XFloat(p, c.spec.x, i * k + j);
        finite = finite && std::isfinite(v);
        low = std::min(low, v);
        high = std::max(high, v);
      }
      if (high - low < 255 * std::numeric_limits<float>::min()) low = 0, high = 255;
      row_scale = (high - low) / 255.0F;
      if (std::isinf(row_scale)) row_scale = high / 255.0F - low / 255.0F;
      zero = finite ? std::int64_t(std::nearbyint(std::min(-low / row_scale, 255.0F))) : 0;
      const float inverse = std::min(1.0F / row_scale, std::numeric_limits<float>::max());
      for (std::int64_t j = 0; j < k; ++j) {
        const double q = std::nearbyint(XFloat(p, c.spec.x, i * k + j) * inverse) + double(zero);
        row[j] = finite ? std::int64_t(std::clamp(q, 0.0, 255.0)) : 0;
      }
      if (!finite) row_scale = std::numeric_limits<float>::quiet_NaN();
    } else {
      for (std::int64_t j = 0; j < k; ++j) {
        row[j] = c.spec.x == XType::kU8 ? p.x[i * k + j] : std::int8_t(p.x[i * k + j]);
      }
    }
    for (std::int64_t j = 0; j < n; ++j) {
      const std::int64_t w_zero = e.w_zero ? p.w_zero[j] : 0;
      const std::int64_t block = KBlock(e.w_zero);
      float f = 0;
      std::int64_t total = 0;
      for (std::int64_t b = 0; b < std::max<std::int64_t>(k, 1); b += block) {
        std::int64_t acc = 0;
        for (std::int64_t q = b; q < std::min(k, b + block); ++q)
          acc += (row[q] - zero) * (p.w[q * n + j] - w_zero);
        f = b == 0 ? float(acc) : f + float(acc);
        total += acc;
      }
      const std::int64_t at = i * n + j;
      if (e.out == OutType::kS32) {
        const auto wrapped = std::uint32_t(std::uint64_t(total));
        std::memcpy(&out[4 * at], &wrapped, 4);
        continue;
      }
      const bool per_row = IsFloat(c.spec.x) || e.x_scale == Granularity::kRow;
      float y = per_row ? (f * p.w_scale[j]) * row_scale : f * (row_scale * p.w_scale[j]);
      if (e.bias) y = y + p.bias[j];
      if (e.activation == Activation::kRelu && y < 0) y = 0;
      if (e.out == OutType::kF32) {
        std::memcpy(&out[4 * at], &y, 4);
      } else if (e.out == OutType::kBf16) {
        const std::uint16_t half = ToBf16(y);
        std::memcpy(&out[2 * at], &half, 2);
      } else {
        const double low = e.out == OutType::kU8 ? 0 : -128, high = low + 255;
        const float t = y * (1.0F / p.out_scale);
        const double q = std::isnan(t) ? p.out_zero : std::nearbyint(double(t)) + p.out_zero;
        out[at] = std::uint8_t(int(std::clamp(q, low, high)));
      }
    }
  }
  return out;
}

bool Run(const Case& c) {
  const Problem p = MakeProblem(c);
  const Epilogue& e = c.spec.epilogue;
  const std::int64_t bytes = c.shape.m * c.shape.n * SizeOf(e.out);
  // Unaligned, and guarded on both sides.
  std::vector<std::uint8_t> x(p.x.size() + 1), out(bytes + 129, 0xa5);
  if (!p.x.empty()) std::memcpy(x.data() + 1, p.x.data(), p.x.size());
  GemmOperands o;
  o.x = x.data() + 1;
  o.w = p.packed.data();
  o.w_scale = p.w_scale.data();
  o.column_sums = p.sums.data();
  o.w_zero = e.w_zero ? p.w_zero.data() : nullptr;
  o.x_scale = p.x_scale.data();
  o.x_zero = e.x_zero == Granularity::kNone ? nullptr : p.x_zero.data();
  o.bias = e.bias ? p.bias.data() : nullptr;
  o.out_scale = p.out_scale;
  o.out_zero = p.out_zero;
  o.out = out.data() + 65;
  {
    Threads pool;
    RunGemm(*GetPlan({c.shape, c.spec, c.isa, c.threads}), o, pool);
  }
  const FloatEnvironment ieee;
  const std::vector<std::uint8_t> expected = Reference(c, p);
  bool good = true;
  std::int64_t first = -1;
  for (std::int64_t i = 0; i < bytes && first < 0; ++i) {
    if (out[65 + i] != expected[i]) first = i;
  }
  for (int i = 0; i < 64; ++i) good = good && out[1 + i] == 0xa5 && out[65 + bytes + i] == 0xa5;
  if (first >= 0 || !good) {
    std::printf(
        "FAILED %s m=%ld n=%ld k=%ld threads=%d x=%d out=%d relu=%d x_zero=%d x_scale=%d w_zero=%d "
        "bias=%d: %s",
        IsaName(c.isa), long(c.shape.m), long(c.shape.n), long(c.shape.k), c.threads, int(c.spec.x),
        int(e.out), int(e.activation), int(e.x_zero), int(e.x_scale), int(e.w_zero), int(e.bias),
        first < 0 ? "wrote beyond the output\n" : "");
    if (first >= 0)
      std::printf("byte %ld is %d, expected %d\n", long(first), out[65 + first], expected[first]);
    return false;
  }
  return true;
}

// Every item runs exactly once; what a body throws comes out of the loop, in any thread.
bool RunParallel(std::int64_t items, int threads, std::int64_t thrower) {
  std::vector<std::atomic<int>> runs(std::size_t(items) + 1);
  bool thrown = false;
  try {
    Threads pool;
    pool.most = std::size_t(Random(0, 4));
    ParallelClaim(pool, items, threads, [&](Job& job, std::int64_t first) {
      for (std::int64_t item = first; item >= 0; item = job.Next()) {
        runs[std::size_t(item)]++;
        if (item == thrower) throw std::bad_alloc();
      }
    });
  } catch (const std::exception&) {
    thrown = true;
  }
  bool good = thrown == (thrower >= 0);
  for (std::int64_t i = 0; i < items; ++i) {
    const int times = runs[std::size_t(i)];
    good = good && (times == 1 || (thrown && times == 0));
  }
  if (!good) std::printf("FAILED parallel loop: items=%ld threads=%d\n", long(items), threads);
  return good;
}

// Callers at once, each with one loop after the other: helpers of one pool linger and work for all.
bool RunTogether() {
  constexpr int kCallers = 3, kLoops = 200;
  std::atomic<bool> good{true};
  std::atomic<int> scheduled{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; ++c) {
    callers.emplace_back([&] {
      Threads pool;
      pool.most = kLoops;
      for (std::int64_t loop = 0; loop < kLoops; ++loop) {
        std::vector<int> runs(std::size_t(loop % 23 + 2));  // plain: the loop's end orders them
        ParallelClaim(pool, std::int64_t(runs.size()), 2, [&](Job& job, std::int64_t first) {
          for (std::int64_t item = first; item >= 0; item = job.Next()) ++runs[std::size_t(item)];
        });
        for (const int times : runs) good = good && times == 1;
      }
      scheduled += int(pool.threads.size());
    });
  }
  for (std::thread& caller : callers) caller.join();
  std::printf("%d of %d helpers lingered\n", kCallers * kLoops - scheduled, kCallers * kLoops);
  if (!good) std::printf("FAILED parallel loops of callers at once\n");
  return good;
}

template <class T>
T Pick(const std::vector<T>& from) {
  return from[std::size_t(Random(0, std::int64_t(from.size()) - 1))];
}

GemmSpec RandomSpec() {
  GemmSpec spec;
  Epilogue& e = spec.epilogue;
  spec.x = Pick<XType>({XType::kU8, XType::kS8, XType::kF32, XType::kBf16});
  e.out = Pick<OutType>({OutType::kF32, OutType::kBf16, OutType::kU8, OutType::kS8, OutType::kS32});
  if (e.out == OutType::kS32 && IsFloat(spec.x)) e.out = OutType::kF32;
  e.activation = e.out == OutType::kS32 ? Activation::kNone
                                        : Pick<Activation>({Activation::kNone, Activation::kRelu});
  e.w_zero = Random(0, 2) == 0;
  e.bias = e.out != OutType::kS32 && Random(0, 1);
  if (!IsFloat(spec.x)) {
    e.x_zero = Pick<Granularity>({Granularity::kNone, Granularity::kTensor, Granularity::kRow});
    e.x_scale = e.out == OutType::kS32
                    ? Granularity::kTensor
                    : Pick<Granularity>({Granularity::kTensor, Granularity::kRow});
  }
  return spec;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<Isa> isas;
  for (const Isa isa : Cpu().available) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted = wanted || std::string(argv[i]) == IsaName(isa);
    if (wanted) isas.push_back(isa);
  }
  const std::vector<std::int64_t> edges = {0,  1,  2,  3,  4,  5,  7,  8,  9,   15,  16, 17,
                                           31, 33, 47, 48, 63, 64, 65, 80, 127, 128, 129};
  int passed = 0, failed = 0;
  for (int i = 0; i < 200; ++i) {
    const std::int64_t items = Random(0, 40);
    const std::int64_t thrower = items > 0 && Random(0, 1) ? Random(0, items - 1) : -1;
    ++(RunParallel(items, int(Random(1, 5)), thrower) ? passed : failed);
  }
  ++(RunTogether() ? passed : failed);
  const auto check = [&](const Case& c) { ++(Run(c) ? passed : failed); };
  for (const Isa isa : isas) {
    std::printf("%s\n", IsaName(isa));
    for (int i = 0; i < 1500; ++i) {
      check({{Random(0, 14), Pick(edges), Pick(edges)}, RandomSpec(), isa, 1});
    }
    for (int i = 0; i < 40; ++i) {
      check(
          {{Random(1, 70), Random(1, 300), Random(1, 1000)}, RandomSpec(), isa, int(Random(1, 3))});
    }
    // Long K: several blocks, also with 255 * 255 sums.
    for (const std::int64_t k : {32768, 32769, 65536, 66400, 131073, 200000}) {
      for (int i = 0; i < 3; ++i) check({{Random(1, 7), Random(1, 20), k}, RandomSpec(), isa, 2});
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
