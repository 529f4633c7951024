// What is observed of calls: verbose mode, a line on stderr for each, and for each kernel when it
// is generated; and the time of calls, added up.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

namespace qgemm {

enum Observation : unsigned { kPrintCalls = 1, kAddTimes = 2 };

inline std::atomic<unsigned> observed{0};  // of those

// All that a call pays for it while nothing is.
inline unsigned Observed() { return observed.load(std::memory_order_relaxed); }

// `version` of the package is for the first line.
void SetVerbose(bool on, const std::string& version);

// Whether the time that calls take is added up from now on.
void SetAddTimes(bool on);

// The time in which at least one call was under way, as far as it was added up.
double SecondsInCalls();

// A call whose time counts, as long as this lives.
class TimedCall {
 public:
  explicit TimedCall(bool counts);
  ~TimedCall();
  TimedCall(const TimedCall&) = delete;
  TimedCall& operator=(const TimedCall&) = delete;

 private:
  const bool counts_;
};

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

// Makes a call and does what is to be observed of it. describe(): the CallLine.
template <class Call, class Describe>
void Traced(const Call& call, const Describe& describe) {
  const unsigned observations = Observed();
  if (observations == 0) return call();
  const Stopwatch watch;
  {
    const TimedCall timed(observations & kAddTimes);
    call();
  }
  const double microseconds = watch.Microseconds();
  if (observations & kPrintCalls) PrintCall(describe(), microseconds);
}

}  // namespace qgemm
