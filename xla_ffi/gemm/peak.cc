#include "gemm/peak.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace qgemm {

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
