// Verbose mode: a line on stderr for each call, and for each kernel when it is generated.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

namespace qgemm {

inline std::atomic<bool> verbose_mode{false};

// All that a call pays for it while it is off.
inline bool Verbose() { return verbose_mode.load(std::memory_order_relaxed); }

// `version` of the package is for the first line.
void SetVerbose(bool on, const std::string& version);

class Stopwatch {
 public:
  double Microseconds() const {
    return std::chrono::duration<double, std::micro>(Clock::now() - start_).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start_ = Clock::now();
};

// What is said of a call; no field holds a comma or a line's end.
struct CallLine {
  const char* op;
  std::string isa;
  std::string kernel;
  std::string types;  // of the operands and the result: x:w:out
  std::string shape;  // MxNxK
  std::string plan;   // key:value, separated by spaces
  int threads;        // that may take part
};

void PrintCall(const CallLine& line, double microseconds);
void PrintGenerated(const std::string& name, std::size_t bytes, double microseconds);

// Makes a call, with its line if verbose. describe(): the CallLine.
template <class Call, class Describe>
void Traced(const Call& call, const Describe& describe) {
  if (!Verbose()) return call();
  const Stopwatch watch;
  call();
  const double microseconds = watch.Microseconds();
  PrintCall(describe(), microseconds);
}

}  // namespace qgemm
