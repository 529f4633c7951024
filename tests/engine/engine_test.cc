// Tests of the engine without Python or XLA: every kernel family this CPU runs, bit for bit against
// a reference in int64, over all forms of zero points, scales and outputs and sizes around every
// tile edge. It runs under sanitizers and CPU emulators too; AMX is emulated here where the CPU has
// all else that its kernels need. Arguments: [ISA ...]; default: all that run.
//   engine_test code ISA ROWS COLUMNS
// writes the code of a kernel to the standard output, for a disassembler: 128 bytes each of what
// sets up tiles of so many rows and of what ends it, if there are such, then the tile's.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <new>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "gemm/acc16.h"
#include "gemm/gemm.h"
#include "gemm/names.h"
#include "gemm/pack.h"
#include "gemm/quantize.h"
#include "pairwise.h"
#include "portable/activation.h"
#include "portable/half.h"
#include "runtime/float_env.h"
#if defined(JAX_QGEMM_JIT) && defined(__linux__)
#define EMULATES_AMX 1
#include "amx_emulator.h"
#endif

namespace {
std::atomic<int> allocations{0};

void* Allocate(std::size_t size, std::size_t alignment) {
  ++allocations;
  void* const p = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
}  // namespace

void* operator new(std::size_t size) { return Allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return Allocate(size, std::size_t(alignment));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

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

// A copy of bytes that ends where readable memory ends.
class Fenced {
 public:
  Fenced(const void* bytes, std::size_t size) {
    const std::size_t page = std::size_t(sysconf(_SC_PAGESIZE));
    const std::size_t data = (size + page - 1) / page * page;
    size_ = data + page;
    memory_ = static_cast<std::uint8_t*>(
        mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory_ == MAP_FAILED || mprotect(memory_ + data, page, PROT_NONE) != 0) std::abort();
    data_ = memory_ + data - size;
    if (size > 0) std::memcpy(data_, bytes, size);
  }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  ~Fenced() { munmap(memory_, size_); }

  const std::uint8_t* data() const { return data_; }

 private:
  std::uint8_t *memory_, *data_;
  std::size_t size_;
};

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
  std::vector<float> w_scale, x_scale, bias, out_scale;
  std::vector<std::uint8_t> residual;
  std::int32_t out_zero;
};

template <class T>
T At(const std::vector<std::uint8_t>& bytes, std::int64_t i) {
  T value;
  std::memcpy(&value, &bytes[std::size_t(i) * sizeof(T)], sizeof(T));
  return value;
}

template <class T>
void Set(std::vector<std::uint8_t>& bytes, std::int64_t i, T value) {
  std::memcpy(&bytes[std::size_t(i) * sizeof(T)], &value, sizeof(T));
}

float XFloat(const Problem& p, XType type, std::int64_t i) {
  return type == XType::kF32    ? At<float>(p.x, i)
         : type == XType::kBf16 ? ToFloat(At<Bf16>(p.x, i))
                                : ToFloat(At<F16>(p.x, i));
}

float ResidualAt(const Problem& p, ResidualType type, std::int64_t i) {
  return type == ResidualType::kF32    ? At<float>(p.residual, i)
         : type == ResidualType::kBf16 ? ToFloat(At<Bf16>(p.residual, i))
                                       : ToFloat(At<F16>(p.residual, i));
}

Problem MakeProblem(const Case& c) {
  const std::int64_t m = c.shape.m, n = c.shape.n, k = c.shape.k;
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
      if (c.spec.x == XType::kF32) {
        Set(p.x, i, v);
      } else if (c.spec.x == XType::kBf16) {
        Set(p.x, i, ToBf16(v));
      } else {
        Set(p.x, i, ToF16(v));
      }
    }
  } else {
    const int extreme = c.spec.x == XType::kU8 ? 255 : 128;
    for (std::int64_t i = 0; i < m * k; ++i)
      p.x.push_back(std::uint8_t(style == 0 ? extreme : Random(0, 255)));
  }
  const int most = style == 1 ? 32 : style == 2 ? 60 : 127;  // none and few outliers of acc16
  for (std::int64_t i = 0; i < n * k; ++i)
    p.w.push_back(std::int8_t(style == 0 ? -128 : Random(-most - 1, most)));
  for (std::int64_t i = 0; i < n; ++i) p.bias.push_back(RandomFloat());
  const std::int64_t blocks = KBlocks(k, e.w_zero, c.spec.group);
  for (std::int64_t i = 0; i < n * (c.spec.group > 0 ? blocks : 1); ++i) {
    p.w_scale.push_back(std::exp(RandomFloat()) * 0.01F);
    p.w_zero.push_back(int(Random(-128, 127)));
  }
  for (std::int64_t i = 0; i < m; ++i) {
    p.x_scale.push_back(std::exp(RandomFloat()) * 0.01F);
    p.x_zero.push_back(int(c.spec.x == XType::kU8 ? Random(0, 255) : Random(-128, 127)));
  }
  if (m == 0) p.x_scale = {1}, p.x_zero = {0};
  for (std::int64_t i = 0; i <= n; ++i) {
    p.out_scale.push_back(float(std::sqrt(double(k) + 1) * 0.002 * double(Random(1, 4))));
  }
  p.residual.resize(std::size_t(m * n * SizeOf(e.residual)));
  for (std::int64_t i = 0; i < m * n; ++i) {
    float v = 3 * RandomFloat();
    if (i % 61 == 7) v = INFINITY;
    if (i % 67 == 8) v = -INFINITY;
    if (i % 71 == 9) v = NAN;
    if (e.residual == ResidualType::kF32) Set(p.residual, i, v);
    if (e.residual == ResidualType::kBf16) Set(p.residual, i, ToBf16(v));
    if (e.residual == ResidualType::kF16) Set(p.residual, i, ToF16(v));
  }
  p.out_zero = int(e.out == OutType::kU8 ? Random(0, 255) : Random(-128, 127));
  const PackedLayout layout{k, n};
  p.packed.assign(layout.Bytes(), 77);
  p.sums.assign(blocks * n, 77);
  Threads pool;
  Pack(layout,
       {p.w.data(), e.w_zero ? p.w_zero.data() : nullptr, p.packed.data(), p.sums.data(),
        c.spec.group},
       pool, 2);
  return p;
}

// numerics, one element at a time.
std::vector<std::uint8_t> Reference(const Case& c, const Problem& p) {
  const std::int64_t m = c.shape.m, n = c.shape.n, k = c.shape.k;
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
      const std::int64_t block = KBlock(e.w_zero, c.spec.group);
      float f = 0;
      std::int64_t total = 0;
      for (std::int64_t b = 0; b < std::max<std::int64_t>(k, 1); b += block) {
        const std::int64_t column = c.spec.group > 0 ? b / block * n + j : j;
        const std::int64_t w_zero = e.w_zero ? p.w_zero[column] : 0;
        std::int64_t acc = 0;
        for (std::int64_t q = b; q < std::min(k, b + block); ++q)
          acc += (row[q] - zero) * (p.w[q * n + j] - w_zero);
        const float term = c.spec.group > 0 ? float(acc) * p.w_scale[column] : float(acc);
        f = b == 0 ? term : f + term;
        total += acc;
      }
      const std::int64_t at = i * n + j;
      if (e.out == OutType::kS32) {
        const auto wrapped = std::uint32_t(std::uint64_t(total));
        std::memcpy(&out[4 * at], &wrapped, 4);
        continue;
      }
      const bool per_row = IsFloat(c.spec.x) || e.x_scale == Granularity::kRow;
      float y = c.spec.group > 0 ? f * row_scale
                : per_row        ? (f * p.w_scale[j]) * row_scale
                                 : f * (row_scale * p.w_scale[j]);
      if (e.bias) y = y + p.bias[j];
      if (e.residual != ResidualType::kNone) y = y + ResidualAt(p, e.residual, at);
      y = Activate(e.activation, y);
      if (e.out == OutType::kF32) {
        Set(out, at, y);
      } else if (e.out == OutType::kBf16) {
        Set(out, at, ToBf16(y));
      } else if (e.out == OutType::kF16) {
        Set(out, at, ToF16(y));
      } else {
        const double low = e.out == OutType::kU8 ? 0 : -128, high = low + 255;
        const float t = y * (1.0F / p.out_scale[e.out_scale_per_column ? j : 0]);
        const double q = std::isnan(t) ? p.out_zero : std::nearbyint(double(t)) + p.out_zero;
        out[at] = std::uint8_t(int(std::clamp(q, low, high)));
      }
    }
  }
  return out;
}

// The sign and the payload of a NaN are nobody's business.
bool BothNan(OutType out, const std::uint8_t* got, const std::vector<std::uint8_t>& want,
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
Call MakeStack(const Case& c) {
  const auto [m, n, k, batch, ragged] = c.shape;
  const Epilogue& e = c.spec.epilogue;
  const std::int64_t x_size = SizeOf(c.spec.x), residual_size = SizeOf(e.residual);
  const std::int64_t columns = n * (c.spec.group > 0 ? KBlocks(k, e.w_zero, c.spec.group) : 1);
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
    if (w_shared) p.w = first.w;
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

Call MakeCall(const Case& c) {
  if (c.shape.batch != 1 || c.shape.ragged) return MakeStack(c);
  Call call;
  call.p = MakeProblem(c);
  call.expected = Reference(c, call.p);
  return call;
}

bool RunPlan(const PlanKey& key, const Case& c, const Call& call) {
  const Problem& p = call.p;
  const std::vector<std::uint8_t>& expected = call.expected;
  const Epilogue& e = c.spec.epilogue;
  const std::int64_t bytes = std::int64_t(expected.size());
  // Unaligned, and guarded on both sides.
  std::vector<std::uint8_t> out(bytes + 129, 0xa5);
  const Fenced x(p.x.data(), p.x.size()), packed(p.packed.data(), p.packed.size());
  const Fenced residual(p.residual.data(), p.residual.size());
  GemmOperands o;
  o.x = x.data();
  o.w = reinterpret_cast<const std::int8_t*>(packed.data());
  o.w_scale = p.w_scale.data();
  o.column_sums = p.sums.data();
  o.w_zero = e.w_zero ? p.w_zero.data() : nullptr;
  o.x_scale = p.x_scale.data();
  o.x_zero = e.x_zero == Granularity::kNone ? nullptr : p.x_zero.data();
  o.bias = e.bias ? p.bias.data() : nullptr;
  o.residual = e.residual == ResidualType::kNone ? nullptr : residual.data();
  o.out_scale = p.out_scale.data();
  o.out_zero = &p.out_zero;
  o.out = out.data() + 65;
  o.group_sizes = call.group_sizes.data();
  o.strides = call.strides;
  {
    Threads pool;
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
        "FAILED %s%s %s%ld m=%ld n=%ld k=%ld threads=%d x=%d out=%d activation=%d x_zero=%d "
        "x_scale=%d "
        "w_zero=%d bias=%d residual=%d per_column=%d group=%ld: %s",
        IsaName(c.isa), key.acc16 ? " acc16" : "",
        c.shape.ragged ? "groups=" : "batch=", long(c.shape.batch), long(c.shape.m),
        long(c.shape.n), long(c.shape.k), c.threads, int(c.spec.x), int(e.out), int(e.activation),
        int(e.x_zero), int(e.x_scale), int(e.w_zero), int(e.bias), int(e.residual),
        int(e.out_scale_per_column), long(c.spec.group),
        first < 0 ? "wrote beyond the output\n" : "");
    if (first >= 0)
      std::printf("byte %ld is %d, expected %d\n", long(first), out[65 + first], expected[first]);
    return false;
  }
  return true;
}

// A pool without a thread to spare.
struct NoThreads {
  template <class F>
  void Schedule(F&&) {}
};

// After the first call nothing is allocated: for a single thread, for several, for parts of K, for
// rows by groups, and with panels that are split.
bool RunAllocations(Isa isa) {
  bool good = true;
  GemmSpec spec;
  spec.x = XType::kF32;
  for (const bool ragged : {false, true}) {
    for (const bool acc16 : {false, true}) {
      for (const auto& [m, n, k, threads] : {std::array<std::int64_t, 4>{3, 20, 64, 1},
                                             {130, 576, 2800, 2},
                                             {5, 40, 30000, 2},
                                             {40, 1024, 4200, 3}}) {
        const Case c{{m, n, k, 1, ragged}, spec, isa, int(threads)};
        PlanKey key{c.shape, c.spec, c.isa, c.threads, acc16};
        if (acc16 && (ragged || !CanSumInInt16(key))) continue;
        const Problem p = MakeProblem(c);
        std::vector<float> out(std::size_t(m * n));
        const auto rows = std::int32_t(m);
        GemmOperands o;
        o.x = p.x.data();
        o.w = p.packed.data();
        o.w_scale = p.w_scale.data();
        o.column_sums = p.sums.data();
        o.group_sizes = &rows;
        o.out = out.data();
        NoThreads pool;
        RunGemm(*GetPlan(key), o, pool);
        const int before = allocations;
        RunGemm(*GetPlan(key), o, pool);
        if (allocations == before) continue;
        std::printf("FAILED %s%s%s m=%ld n=%ld k=%ld threads=%ld: %d allocations\n", IsaName(isa),
                    ragged ? " ragged" : "", acc16 ? " acc16" : "", long(m), long(n), long(k),
                    long(threads), allocations - before);
        good = false;
      }
    }
  }
  return good;
}

// With every family of the ISA that takes the case.
bool Run(const Case& c) {
  const FloatEnvironment ieee;
  const Call call = MakeCall(c);
  PlanKey key{c.shape, c.spec, c.isa, c.threads};
  bool good = RunPlan(key, c, call);
  key.acc16 = true;
  if (CanSumInInt16(key) && !c.shape.ragged) good = RunPlan(key, c, call) && good;
  return good;
}

// At most 2 ulp from the correctly rounded value, at every exponent and sign.
bool RunActivations() {
  const FloatEnvironment ieee;
  bool good = true;
  for (const Activation activation :
       {Activation::kGelu, Activation::kGeluTanh, Activation::kSilu}) {
    double worst = 0;
    for (std::uint32_t top = 0; top < 512; ++top) {
      for (int i = 0; i < 400; ++i) {
        const auto bits = std::uint32_t(Random(0, (1 << 23) - 1)) | top << 23;
        const float x = FloatFromBits(i == 0 ? top << 23 : bits);
        const float y = Smooth(activation, x);
        if (!std::isfinite(x)) {
          good = good && (x != x ? y != y : y == (x > 0 ? x : 0.0F));
          continue;
        }
        const long double wide = x;
        const long double v =
            2 * std::sqrt(2 / std::acos(-1.0L)) * (wide + 0.044715L * wide * wide * wide);
        const long double exact = activation == Activation::kGelu
                                      ? wide * std::erfc(-wide * std::sqrt(0.5L)) / 2
                                  : activation == Activation::kSilu ? wide / (1 + std::exp(-wide))
                                                                    : wide / (1 + std::exp(-v));
        const auto rounded = float(exact);
        const double ulp = std::ldexp(1.0, std::max(std::ilogb(rounded), -126) - 23);
        if (rounded == 0 ? std::fabs(y) > 0x1p-148F : !(std::fabs(y - rounded) <= 2 * ulp)) {
          std::printf("FAILED activation %d of %a: %a, expected %a\n", int(activation), x, y,
                      rounded);
          good = false;
        } else if (rounded != 0) {
          worst = std::max(worst, std::fabs(y - rounded) / ulp);
        }
      }
    }
    std::printf("activation %d: at most %.0f ulp\n", int(activation), worst);
  }
  return good;
}

// Every float16 there and back, and rounding between neighbours.
bool RunHalf() {
  const FloatEnvironment ieee;
  const auto value = [](std::uint32_t bits) {
    const int exponent = int(bits >> 10);
    const double mantissa = bits & 0x3ff;
    return exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  };
  bool good = true;
  for (std::uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const double low = value(bits), high = value(bits + 1);  // the last one: 2^16, Inf
    const auto middle = float((low + high) / 2);
    const auto half = [](float f) { return std::uint32_t(ToF16(f).bits); };
    good = good && double(ToFloat(F16{std::uint16_t(bits)})) == low && half(float(low)) == bits &&
           half(-float(low)) == (bits | 0x8000) && half(middle) == bits + (bits & 1) &&
           half(std::nextafter(middle, 0.0F)) == bits &&
           half(std::nextafter(middle, 1e9F)) == bits + 1;
  }
  good = good && ToF16(1e9F).bits == 0x7c00 && ToF16(INFINITY).bits == 0x7c00;
  for (const float nan : {NAN, FloatFromBits(0x7f800001)}) {
    const std::uint16_t bits = ToF16(nan).bits;
    good = good && (bits & 0x7e00) == 0x7e00 && ToFloat(F16{bits}) != ToFloat(F16{bits});
  }
  if (!good) std::printf("FAILED float16\n");
  return good;
}

// Every item runs exactly once; what a body throws comes out of the loop, in any thread.
bool RunParallel(std::int64_t items, int threads, std::int64_t thrower) {
  std::vector<std::atomic<int>> runs(std::size_t(items) + 1);
  bool thrown = false;
  try {
    Threads pool;
    pool.most = std::size_t(Random(0, 4));
    const Crew crew{threads, int(Random(1, threads))};
    ParallelClaim(pool, items, crew, [&](Job::Participant& self, std::int64_t first) {
      for (std::int64_t item = first; item >= 0; item = self.Next()) {
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
        ParallelClaim(pool, std::int64_t(runs.size()), Crew::Of(2),
                      [&](Job::Participant& self, std::int64_t first) {
                        for (std::int64_t item = first; item >= 0; item = self.Next())
                          ++runs[std::size_t(item)];
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

// Every key of a tile has a name of its own.
bool NamesDiffer() {
  std::vector<TileKey> keys = {{}};
  const auto vary = [&keys](const auto& set, std::initializer_list<int> values) {
    std::vector<TileKey> varied;
    for (const TileKey& key : keys) {
      for (const int value : values) set(varied.emplace_back(key), value);
    }
    keys = std::move(varied);
  };
  vary([](TileKey& key, int v) { key.rows = v; }, {1, 16});
  vary([](TileKey& key, int v) { key.columns = v; }, {8, 64});
  vary([](TileKey& key, int v) { key.panel_columns = v; }, {16, 64});
  vary([](TileKey& key, int v) { key.part = KPart(v); }, {1, 3});
  vary([](TileKey& key, int v) { key.streams = v; }, {0, 1});
  vary([](TileKey& key, int v) { key.from_sums = v; }, {0, 1});
  vary([](TileKey& key, int v) { key.epilogue.out = OutType(v); }, {0, 1, 2, 3, 4, 5});
  vary([](TileKey& key, int v) { key.epilogue.activation = Activation(v); }, {0, 1, 2, 3, 4});
  vary([](TileKey& key, int v) { key.epilogue.x_zero = Granularity(v); }, {0, 1, 2});
  vary([](TileKey& key, int v) { key.epilogue.x_scale = Granularity(v); }, {1, 2});
  vary([](TileKey& key, int v) { key.epilogue.w_zero = v; }, {0, 1});
  vary([](TileKey& key, int v) { key.epilogue.w_groups = v; }, {0, 1});
  vary([](TileKey& key, int v) { key.epilogue.bias = v; }, {0, 1});
  vary([](TileKey& key, int v) { key.epilogue.residual = ResidualType(v); }, {0, 1, 2, 3});
  vary([](TileKey& key, int v) { key.epilogue.out_scale_per_column = v; }, {0, 1});
  std::set<std::string> names;
  for (const TileKey& key : keys) names.insert(Name(key));
  std::printf("%d keys, %d names\n", int(keys.size()), int(names.size()));
  return names.size() == keys.size();
}

template <class T>
T Pick(const std::vector<T>& from) {
  return from[std::size_t(Random(0, std::int64_t(from.size()) - 1))];
}

GemmSpec RandomSpec() {
  GemmSpec spec;
  Epilogue& e = spec.epilogue;
  spec.x = Pick<XType>({XType::kU8, XType::kS8, XType::kF32, XType::kBf16, XType::kF16});
  e.out = Pick<OutType>(
      {OutType::kF32, OutType::kBf16, OutType::kF16, OutType::kU8, OutType::kS8, OutType::kS32});
  if (e.out == OutType::kS32 && IsFloat(spec.x)) e.out = OutType::kF32;
  if (e.out != OutType::kS32) {
    e.activation = Pick<Activation>({Activation::kNone, Activation::kNone, Activation::kRelu,
                                     Activation::kGelu, Activation::kGeluTanh, Activation::kSilu});
    e.residual = Pick<ResidualType>({ResidualType::kNone, ResidualType::kNone, ResidualType::kF32,
                                     ResidualType::kBf16, ResidualType::kF16});
    e.out_scale_per_column = IsQuantized(e.out) && Random(0, 1);
    spec.group = Pick<std::int64_t>({0, 0, 0, 16, 32, 128});
  }
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

// How a product runs (gemm/plan.h), by its shape and the number of threads.
enum class Regime {
  kTiny,
  kTiles,
  kByRows,
  kByColumns,
  kKParts,
  kKBlocks,
  kBatch,
  kLargeBatch,
  kRagged
};
constexpr int kRegimes = 9;

Case CaseOf(Regime regime, Isa isa) {
  const std::vector<std::int64_t> edges = {1,  2,  3,  4,  5,  7,  8,  9,  15,  16,  17,
                                           31, 33, 47, 48, 63, 64, 65, 80, 127, 128, 129};
  const std::int64_t rows = FamilyOf(isa).max_rows;
  const auto threads = int(Random(2, 3));
  const std::int64_t m = Random(1, rows + 1), n = Pick(edges), k = Pick(edges);
  switch (regime) {
    case Regime::kTiny:
      return {{m, n, k}, {}, isa, 1};
    case Regime::kTiles:
      return {{Random(rows, 2 * rows + 2), n, Random(1, 300)}, {}, isa, 1};
    case Regime::kByRows:
      return {{2 * rows * threads + Random(0, 70), n + 64, 300 + k}, {}, isa, threads};
    case Regime::kByColumns:
      return {{Random(1, 7), 640 + n, 1500 + k}, {}, isa, threads};
    case Regime::kKParts:
      return {{Random(1, 12), n, 5000 + k}, {}, isa, int(Random(2, 5))};
    case Regime::kKBlocks:
      return {{Random(1, 3), Random(1, 20), Pick<std::int64_t>({32769, 65540, 66400})},
              {},
              isa,
              threads};
    case Regime::kBatch:
      return {{m, n, k, Random(2, 5)}, {}, isa, threads};
    case Regime::kLargeBatch:
      return {{m, n + 64, 400 + k, 4 * threads + Random(0, 3)}, {}, isa, threads};
    case Regime::kRagged:
      break;
  }
  return {{Random(1, 3 * rows), n, k, Random(1, 5), true}, {}, isa, threads};
}

// Every regime, form of quantization and epilogue with every other, in pairs.
template <class Check>
void Sweep(Isa isa, const Check& check) {
  struct XForm {
    XType type;
    Granularity scale, zero;
  };
  constexpr Granularity kNone = Granularity::kNone, kTensor = Granularity::kTensor,
                        kRow = Granularity::kRow;
  const std::vector<XForm> x_forms = {
      {XType::kU8, kTensor, kNone}, {XType::kU8, kTensor, kTensor}, {XType::kU8, kRow, kRow},
      {XType::kS8, kTensor, kNone}, {XType::kS8, kRow, kNone},      {XType::kS8, kTensor, kTensor},
      {XType::kS8, kRow, kRow},     {XType::kF32, kTensor, kNone},  {XType::kBf16, kTensor, kNone},
      {XType::kF16, kTensor, kNone}};
  constexpr int kIntegers = 7;
  const std::vector<std::int64_t> groups = {0, 16, 32, 64, 128};
  const std::vector<OutType> outs = {OutType::kF32, OutType::kBf16, OutType::kF16, OutType::kU8,
                                     OutType::kS8,  OutType::kU8,   OutType::kS8};
  constexpr int kPerTensor = 5;
  const std::vector<int> sizes = {kRegimes, int(x_forms.size()), int(groups.size()), 2, 2, 4,
                                  5,        int(outs.size())};
  for (const std::vector<int>& v : Pairwise(sizes, rng)) {
    Case c = CaseOf(Regime(v[0]), isa);
    Epilogue& e = c.spec.epilogue;
    const XForm& x = x_forms[std::size_t(v[1])];
    c.spec.x = x.type;
    e.x_scale = x.scale;
    e.x_zero = x.zero;
    c.spec.group = groups[std::size_t(v[2])];
    e.w_zero = v[3] == 1;
    e.bias = v[4] == 1;
    e.residual = ResidualType(v[5]);
    e.activation = Activation(v[6]);
    e.out = outs[std::size_t(v[7])];
    e.out_scale_per_column = v[7] >= kPerTensor;
    check(c);
  }
  // The sums themselves: of integers, and without an epilogue.
  for (const std::vector<int>& v : Pairwise({kRegimes, kIntegers, 2}, rng)) {
    Case c = CaseOf(Regime(v[0]), isa);
    const XForm& x = x_forms[std::size_t(v[1])];
    c.spec.x = x.type;
    c.spec.epilogue.x_zero = x.zero;
    c.spec.epilogue.w_zero = v[2] == 1;
    c.spec.epilogue.out = OutType::kS32;
    check(c);
  }
}

#ifdef EMULATES_AMX
bool EmulatesAmx() { return Cpu().available.back() == Isa::kAvx512Vnni; }

// The peak loop is one that the CPU accepts; all products of the emulated kernels were AMX's.
bool RunAmx() {
  const std::int64_t before = amx_emulator::products;
  const PeakLoop peak = FamilyOf(Isa::kAmxInt8).peak();
  peak.run(2);
  const std::int64_t products = amx_emulator::products - before;
  const bool good = double(products) * 16 * 16 * 64 == 2 * peak.macs_per_iteration && before > 0 &&
                    amx_emulator::threads_in_use == 0;
  if (!good)
    std::printf("FAILED AMX: %ld products before its peak loop, %ld in it\n", long(before),
                long(products));
  return good;
}
#endif

int WriteCode(const char* isa_name, int rows, int columns) {
  for (const Isa isa : kAllIsas) {
    const KernelFamily& family = FamilyOf(isa);
    if (family.isa != isa || std::string(isa_name) != IsaName(isa)) continue;
    const auto write = [](auto function, std::size_t bytes) {
      return std::fwrite(reinterpret_cast<const void*>(function), 1, bytes, stdout) == bytes;
    };
    bool good = true;
    for (const int setting : {rows, 0}) {
      if (family.set_up != nullptr) good = good && write(family.set_up(setting), 128);
    }
    TileKey key;
    key.rows = rows;
    key.columns = columns;
    return good && write(family.tile(key), 1024) ? 0 : 1;
  }
  std::fprintf(stderr, "no kernels of '%s'\n", isa_name);
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 5 && std::string(argv[1]) == "code") {
    return WriteCode(argv[2], std::atoi(argv[3]), std::atoi(argv[4]));
  }
  std::vector<Isa> runnable = Cpu().available;
#ifdef EMULATES_AMX
  if (EmulatesAmx()) {
    amx_emulator::Install();
    runnable.push_back(Isa::kAmxInt8);
  }
#endif
  std::vector<Isa> isas;
  for (const Isa isa : runnable) {
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
  ++(RunActivations() ? passed : failed);
  ++(RunHalf() ? passed : failed);
  ++(NamesDiffer() ? passed : failed);
  const auto check = [&](const Case& c) { ++(Run(c) ? passed : failed); };
  for (const Isa isa : isas) {
    const int max_rows = FamilyOf(isa).max_rows;
    std::printf("%s\n", IsaName(isa));
    ++(RunAllocations(isa) ? passed : failed);
    Sweep(isa, check);
    // Anything with anything, with empty products among them.
    for (int i = 0; i < 500; ++i) {
      check({{Random(0, 2 * max_rows + 2), Pick(edges), Pick(edges)}, RandomSpec(), isa, 1});
    }
    // Every height of a tile, with whatever is left of K.
    for (int rows = 1; rows <= max_rows + 1; ++rows) {
      for (int i = 0; i < 12; ++i)
        check({{rows, Pick(edges), Random(1, 300)}, RandomSpec(), isa, 1});
    }
    // Work enough for two threads of any family, split over M and over N.
    if (isa != Isa::kPortable) {
      check({{130, 576, 2800}, RandomSpec(), isa, 2});
      check({{20, 1024, 4200}, RandomSpec(), isa, 2});
    }
    // Long K: several blocks, also with 255 * 255 sums.
    for (const std::int64_t k : {32768, 65536, 131073, 200000}) {
      for (int i = 0; i < 2; ++i) check({{Random(1, 7), Random(1, 20), k}, RandomSpec(), isa, 2});
    }
  }
#ifdef EMULATES_AMX
  if (EmulatesAmx() && !isas.empty() && isas.back() == Isa::kAmxInt8)
    ++(RunAmx() ? passed : failed);
#endif
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
