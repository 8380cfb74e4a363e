// The Python module mbt_fast._C. No torch header: launchers take raw pointers and sizes, so the module
// builds in seconds and does not care which torch runs it.
#include <pybind11/pybind11.h>

#include "cpu/features.hpp"

namespace py = pybind11;

namespace {

py::dict cpu_features() {
  const auto& found = mbt_fast::cpu::features();
  py::dict flags;
  flags["avx2_fma"] = found.avx2_fma;
  flags["avx512"] = found.avx512;
  flags["avx512_bf16"] = found.avx512_bf16;
  flags["amx_bf16"] = found.amx_bf16;
  return flags;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of mbt_fast.";
  m.attr("compiler") = __VERSION__;
  m.def("cpu_features", &cpu_features, "Instruction sets that this process may use, by name.");
}
