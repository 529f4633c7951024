// The Python module: custom-call handlers as capsules, and what runs on this CPU.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "gemm/kernel.h"
#include "gemm/peak.h"
#include "gemm/plan.h"
#include "handlers/handlers.h"
#include "runtime/cpu.h"
#include "runtime/huge_pages.h"
#include "runtime/kernel_log.h"
#include "runtime/verbose.h"

namespace nb = nanobind;

namespace qgemm {
namespace {

nb::dict Registrations() {
  nb::dict registrations;
  for (const HandlerRegistration& r : kHandlers) {
    registrations[r.target] =
        nb::capsule(reinterpret_cast<void*>(r.handler), "xla._CUSTOM_CALL_TARGET");
  }
  return registrations;
}

std::vector<std::string> IsaNames() {
  std::vector<std::string> names;
  for (const Isa isa : kAllIsas) names.emplace_back(IsaName(isa));
  return names;
}

nb::dict CpuInfoDict() {
  const CpuInfo& cpu = Cpu();
  std::vector<std::string> available;
  for (const Isa isa : cpu.available) available.emplace_back(IsaName(isa));
  nb::dict info;
  info["vendor"] = cpu.vendor;
  info["brand"] = cpu.brand;
  info["features"] = cpu.features;
  info["isa_available"] = available;
  info["isa_selected"] = IsaName(SelectedIsa());
#ifdef JAX_QGEMM_JIT
  info["jit"] = true;
#else
  info["jit"] = false;
#endif
  info["l1d"] = cpu.l1d_bytes;
  info["l2"] = cpu.l2_bytes;
  info["l3"] = cpu.l3_bytes;
  info["why"] = cpu.limited_by;
  return info;
}

Isa IsaFromName(const std::string& name) {
  for (const Isa isa : Cpu().available) {
    if (name == IsaName(isa)) return isa;
  }
  throw nb::value_error(("this CPU does not run '" + name + "'").c_str());
}

void SetMaxIsaChecked(const std::string& name) {
  if (SetMaxIsa(name)) return;
  std::string text = "unknown ISA '" + name + "'; one of:";
  for (const std::string& known : IsaNames()) text += " " + known;
  throw nb::value_error(text.c_str());
}

nb::dict KernelCacheInfoDict() {
  const KernelTotals kernels = TotalsOfKernels();
  const PlanCacheInfo plans = InfoOfPlans();
  nb::dict info;
  info["kernels"] = kernels.kernels;
  info["bytes"] = kernels.bytes;
  info["microseconds"] = kernels.microseconds;
  info["plans"] = plans.plans;
  info["plan_hits"] = plans.hits;
  info["plan_misses"] = plans.misses;
  return info;
}

std::vector<std::string> DumpKernelsChecked(const std::string& folder) {
  try {
    return DumpKernels(folder);
  } catch (const std::system_error& e) {
    PyErr_SetString(PyExc_OSError, e.what());
    throw nb::python_error();
  }
}

const KernelFamily& FamilyFor(Isa isa, const std::string& arithmetic) {
  if (arithmetic == "int8") return FamilyOf(isa);
  const KernelFamily* const pairs =
      arithmetic == "bf16" ? PairsFamilyOf(isa, XType::kBf16, WType::kBf16) : nullptr;
  return pairs != nullptr ? *pairs : FloatFamilyOf(isa);
}

double MeasurePeak(const std::string& isa, const std::string& arithmetic, int threads,
                   double seconds) {
  const KernelFamily& family = FamilyFor(IsaFromName(isa), arithmetic);
  if (threads < 1) throw nb::value_error("threads must be at least 1");
  const nb::gil_scoped_release release;
  return MeasurePeakGops(family, threads, seconds);
}

}  // namespace
}  // namespace qgemm

NB_MODULE(_native, m) {
  m.def("registrations", &qgemm::Registrations, "Custom-call targets: {name: capsule}.");
  m.def("cpu_info", &qgemm::CpuInfoDict, "What was detected on this CPU, and what is in use.");
  m.def("isa_names", &qgemm::IsaNames, "The names of the instruction sets, ascending.");
  m.def("set_max_isa", &qgemm::SetMaxIsaChecked, nb::arg("name"),
        "Limits the engine to an instruction set and those below it, from the next call on.");
  m.def("kernel_cache_info", &qgemm::KernelCacheInfoDict,
        "Numbers of generated kernels and plans, and what they cost.");
  m.def("set_verbose", &qgemm::SetVerbose, nb::arg("on"), nb::arg("version"),
        "Whether each call prints a line on stderr; the version is for the first of them.");
  m.def("set_add_times", &qgemm::SetAddTimes, nb::arg("on"),
        "Whether the time that calls take is added up from now on.");
  m.def("seconds_in_calls", &qgemm::SecondsInCalls,
        "The time in which calls were under way, as far as it was added up.");
  m.def(
      "set_moves_to_huge_pages", [](bool on) { qgemm::moves_to_huge_pages.store(on); },
      nb::arg("on"), "Whether large weights are moved into huge pages.");
  m.def("start_perf_map", &qgemm::StartPerfMap, "Lists kernels in /tmp/perf-PID.map from now on.");
  m.def("start_dump", &qgemm::StartDump, nb::arg("folder"),
        "Writes kernels into a folder from now on.");
  m.def("dump_kernels", &qgemm::DumpKernelsChecked, nb::arg("folder"),
        "Writes the kernels there are into a folder; their paths.");
  m.def("measure_peak", &qgemm::MeasurePeak, nb::arg("isa"), nb::arg("arithmetic"),
        nb::arg("threads"), nb::arg("seconds"),
        "GOPS of a register-only loop of int8, f32 or bf16; 0 if the ISA has none.");
}
