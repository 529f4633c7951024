#include "runtime/verbose.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <mutex>
#include <thread>

#include "runtime/cpu.h"

namespace qgemm {
namespace {

// Never destroyed: a program may still run on another thread while the process exits.
struct Header {
  std::mutex mutex;
  std::string version;
  bool printed = false;
};

Header& TheHeader() {
  static Header& header = *new Header;
  return header;
}

// Of calls at the same time the first begins a stretch of time, the last ends it.
struct Busy {
  using Clock = std::chrono::steady_clock;

  void Begin() {
    const std::lock_guard lock(mutex);
    if (calls++ == 0) since = Clock::now();
  }
  void End() {
    const std::lock_guard lock(mutex);
    if (--calls == 0) total += Clock::now() - since;
  }
  double Seconds() {
    const std::lock_guard lock(mutex);
    return std::chrono::duration<double>(total).count();
  }

  std::mutex mutex;
  int calls = 0;
  Clock::time_point since;
  Clock::duration total{0};
};

Busy& TheBusy() {
  static Busy& busy = *new Busy;
  return busy;
}

void Observe(Observation what, bool on) {
  if (on) {
    observed.fetch_or(what, std::memory_order_relaxed);
  } else {
    observed.fetch_and(~unsigned(what), std::memory_order_relaxed);
  }
}

// With a point as decimal separator, whatever the locale.
std::string Tenths(double value) {
  const auto tenths = std::int64_t(std::llround(value * 10));
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10);
}

std::string HeaderLines(const std::string& version) {
  std::string cpu = Cpu().brand.empty() ? "unknown" : Cpu().brand;
  std::replace(cpu.begin(), cpu.end(), ',', ' ');
  return "jax_qgemm,info,version:" + version + ",cpu:" + cpu + ",isa:" + IsaName(SelectedIsa()) +
         ",threads:" + std::to_string(std::thread::hardware_concurrency()) +
         "\njax_qgemm,info,fields,op,isa,kernel,types,shape,plan,threads,microseconds\n";
}

// stderr has no buffer of its own and locks itself: one fwrite is one write, never interleaved.
void Print(const std::string& line) {
  Header& header = TheHeader();
  const std::lock_guard lock(header.mutex);
  const std::string text = (header.printed ? "" : HeaderLines(header.version)) + line + "\n";
  header.printed = true;
  std::fwrite(text.data(), 1, text.size(), stderr);
}

}  // namespace

void SetVerbose(bool on, const std::string& version) {
  {
    const std::lock_guard lock(TheHeader().mutex);
    TheHeader().version = version;
  }
  Observe(kPrintCalls, on);
}

void SetAddTimes(bool on) { Observe(kAddTimes, on); }

double SecondsInCalls() { return TheBusy().Seconds(); }

TimedCall::TimedCall(bool counts) : counts_(counts) {
  if (counts_) TheBusy().Begin();
}

TimedCall::~TimedCall() {
  if (counts_) TheBusy().End();
}

void PrintCall(const CallLine& line, double microseconds) {
  Print("jax_qgemm,exec," + std::string(line.op) + "," + line.isa + "," + line.kernel + "," +
        line.types + "," + line.shape + "," + line.plan + "," + std::to_string(line.threads) + "," +
        Tenths(microseconds));
}

void PrintGenerated(const std::string& name, std::size_t bytes, double microseconds) {
  Print("jax_qgemm,generate," + name + "," + std::to_string(bytes) + "," + Tenths(microseconds));
}

}  // namespace qgemm
