// Every kernel that this process has generated: counted, and on request listed for Linux perf and
// written to files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/verbose.h"

namespace qgemm {

struct KernelTotals {
  std::int64_t kernels = 0;
  std::int64_t bytes = 0;   // of machine code and its constants
  double microseconds = 0;  // spent on generating
};

KernelTotals TotalsOfKernels();

// `code` lives as long as the process. Names are unique.
void RecordKernel(const std::string& name, const void* code, std::size_t bytes,
                  double microseconds);

// Constructs a generator and records what it made, as jax_qgemm::family::kernel.
template <class Generator, class... Args>
std::unique_ptr<Generator> GenerateKernel(const std::string& family, const std::string& kernel,
                                          Args&&... args) {
  const Stopwatch watch;
  auto generator = std::make_unique<Generator>(std::forward<Args>(args)...);
  RecordKernel("jax_qgemm::" + family + "::" + kernel, generator->getCode(), generator->getSize(),
               watch.Microseconds());
  return generator;
}

// From now on kernels are listed in /tmp/perf-PID.map, those there are included.
void StartPerfMap();

// From now on kernels are written into `folder`, those there are included.
void StartDump(const std::string& folder);

// Writes all kernels there are into `folder`, one file each; the files' paths. Throws
// std::system_error, whose what() names the file.
std::vector<std::string> DumpKernels(const std::string& folder);

}  // namespace qgemm
