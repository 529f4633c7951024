// Counts allocations: in steady state a call makes none.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

#include "gemm/acc16.h"
#include "gemm/gemm.h"
#include "gemm/names.h"
#include "pools.h"
#include "problem.h"

namespace qgemm::test {

inline std::atomic<int> allocations{0};

inline void* Allocate(std::size_t size, std::size_t alignment) {
  ++allocations;
  void* const p = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace qgemm::test

void* operator new(std::size_t size) {
  return qgemm::test::Allocate(size, alignof(std::max_align_t));
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return qgemm::test::Allocate(size, std::size_t(alignment));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

namespace qgemm::test {

// After the first call nothing is allocated: for a single thread, for several, for parts of K, for
// rows by groups, and with panels that are split.
inline bool RunAllocations(Isa isa) {
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

}  // namespace qgemm::test
