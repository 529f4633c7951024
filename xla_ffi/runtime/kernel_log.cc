#include "runtime/kernel_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <mutex>
#include <system_error>

namespace qgemm {
namespace {

struct Record {
  std::string name;
  const void* code;
  std::size_t bytes;
};

// Whole, or throws.
void Write(const std::string& path, int flags, mode_t mode, const void* data, std::size_t bytes) {
  const auto fail = [&path] {
    throw std::system_error(errno, std::generic_category(), "cannot write " + path);
  };
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | flags, mode);
  if (file < 0) fail();
  const ssize_t written = write(file, data, bytes);
  if (written >= 0 && std::size_t(written) < bytes) errno = ENOSPC;
  const bool complete = written >= 0 && std::size_t(written) == bytes;
  const int error = errno;
  close(file);
  errno = error;
  if (!complete) fail();
}

// A colon has a meaning in too many places that take a path.
std::string FileName(std::string name) {
  for (std::size_t at; (at = name.find("::")) != std::string::npos;) name.replace(at, 2, ".");
  return name + ".bin";
}

std::string WriteCode(const std::string& folder, const Record& kernel) {
  const std::string path = folder + "/" + FileName(kernel.name);
  Write(path, O_TRUNC, 0666, kernel.code, kernel.bytes);
  return path;
}

class KernelLog {
 public:
  void Add(Record kernel, double microseconds) {
    const std::lock_guard lock(mutex_);
    totals_.kernels += 1;
    totals_.bytes += std::int64_t(kernel.bytes);
    totals_.microseconds += microseconds;
    kernels_.push_back(std::move(kernel));
    List();
    Dump();
  }

  KernelTotals Totals() {
    const std::lock_guard lock(mutex_);
    return totals_;
  }

  void StartPerfMap() {
    const std::lock_guard lock(mutex_);
    lists_ = true;
    List();
  }

  void StartDump(const std::string& folder) {
    const std::lock_guard lock(mutex_);
    folder_ = folder;
    dumped_ = 0;
    Dump();
  }

  std::vector<std::string> DumpAll(const std::string& folder) {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> paths;
    for (const Record& kernel : kernels_) paths.push_back(WriteCode(folder, kernel));
    return paths;
  }

 private:
  // Lists in the map of this process what it does not hold; a forked child has a map of its own.
  // Other generators of code in the process may write to the file too.
  void List() {
    if (!lists_) return;
    if (const pid_t pid = getpid(); pid != pid_) {
      pid_ = pid;
      listed_ = 0;
    }
    std::string lines;
    for (std::size_t i = listed_; i < kernels_.size(); ++i) {
      char range[48];
      std::snprintf(range, sizeof range, "%zx %zx ", std::size_t(kernels_[i].code),
                    kernels_[i].bytes);
      lines += range + kernels_[i].name + "\n";
    }
    if (lines.empty()) return;
    // A name that anybody can foresee, in a folder where everybody may write: no links.
    const std::string path = "/tmp/perf-" + std::to_string(pid_) + ".map";
    lists_ = Try([&] { Write(path, O_APPEND | O_NOFOLLOW, 0600, lines.data(), lines.size()); });
    listed_ = kernels_.size();
  }

  void Dump() {
    while (!folder_.empty() && dumped_ < kernels_.size()) {
      if (!Try([&] { WriteCode(folder_, kernels_[dumped_++]); })) folder_.clear();
    }
  }

  // What cannot be written is said once, and then no more of its kind is tried: a program does not
  // fail because it is looked at.
  template <class Action>
  static bool Try(const Action& action) {
    try {
      action();
      return true;
    } catch (const std::system_error& e) {
      std::fprintf(stderr, "jax_qgemm: %s; no more kernels are written there\n", e.what());
      return false;
    }
  }

  std::mutex mutex_;
  std::vector<Record> kernels_;
  KernelTotals totals_;
  bool lists_ = false;
  std::size_t listed_ = 0;
  pid_t pid_ = 0;  // whose map holds the first `listed_`
  std::string folder_;
  std::size_t dumped_ = 0;
};

KernelLog& Log() {
  // Never destroyed: a program may still run on another thread while the process exits.
  static KernelLog& log = *new KernelLog;
  return log;
}

}  // namespace

KernelTotals TotalsOfKernels() { return Log().Totals(); }

void RecordKernel(const std::string& name, const void* code, std::size_t bytes,
                  double microseconds) {
  Log().Add({name, code, bytes}, microseconds);
  if (Observed() & kPrintCalls) PrintGenerated(name, bytes, microseconds);
}

void StartPerfMap() { Log().StartPerfMap(); }

void StartDump(const std::string& folder) { Log().StartDump(folder); }

std::vector<std::string> DumpKernels(const std::string& folder) { return Log().DumpAll(folder); }

}  // namespace qgemm
