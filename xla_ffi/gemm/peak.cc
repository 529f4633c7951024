#include "gemm/peak.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

namespace qgemm {
namespace {

// Puts this thread on the i-th CPU it may run on: a new one may start where another already is.
void PinToCpu([[maybe_unused]] int i) {
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  const int wanted = i % CPU_COUNT(&allowed);
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || seen++ != wanted) continue;
    CPU_ZERO(&allowed);
    CPU_SET(cpu, &allowed);
    sched_setaffinity(0, sizeof allowed, &allowed);
    return;
  }
#endif
}

}  // namespace

double MeasurePeakGops(const KernelFamily& family, int threads, double seconds) {
  if (family.peak == nullptr) return 0;
  using Clock = std::chrono::steady_clock;
  constexpr std::int64_t kChunk = 10000;  // iterations between looks at the clock
  const PeakLoop loop = family.peak();
  std::atomic<int> ready{0};
  std::vector<double> gops(std::size_t(threads), 0);
  std::vector<std::thread> workers;
  for (int i = 0; i < threads; ++i) {
    workers.emplace_back([&, i] {
      PinToCpu(i);
      loop.run(kChunk);
      ready.fetch_add(1);
      while (ready.load() < threads) std::this_thread::yield();
      const auto start = Clock::now();
      std::chrono::duration<double> elapsed{};
      double iterations = 0;
      while (elapsed.count() < seconds) {
        loop.run(kChunk);
        iterations += kChunk;
        elapsed = Clock::now() - start;
      }
      gops[std::size_t(i)] = 2e-9 * iterations * loop.macs_per_iteration / elapsed.count();
    });
  }
  for (std::thread& worker : workers) worker.join();
  double total = 0;
  for (const double g : gops) total += g;
  return total;
}

}  // namespace qgemm
