// The Python module: custom-call handlers as capsules, and what runs on this CPU.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "gemm/kernel.h"
#include "gemm/peak.h"
#include "gemm/plan.h"
#include "handlers/handlers.h"
#include "runtime/cpu.h"
#include "runtime/kernel_cache.h"

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
  nb::dict info;
  info["kernels"] = KernelTotals().kernels.load();
  info["bytes"] = KernelTotals().bytes.load();
  info["plans"] = PlanCount();
  return info;
}

double MeasurePeak(const std::string& isa, int threads, double seconds) {
  const KernelFamily& family = FamilyOf(IsaFromName(isa));
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
        "Numbers of generated kernels and plans.");
  m.def("measure_peak", &qgemm::MeasurePeak, nb::arg("isa"), nb::arg("threads"), nb::arg("seconds"),
        "Int8 GOPS of a register-only loop; 0 if the ISA has none.");
}
