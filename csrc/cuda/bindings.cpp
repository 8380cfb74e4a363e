// The Python module mbt_fast._cuda. It is apart from mbt_fast._C, so that whatever keeps it from
// loading leaves the CPU kernels alone. Pointers are integers, checked by the Python side.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "bottleneck_attention.hpp"
#ifdef MBT_FAST_NVCC
#include "build_info.hpp"
#else
#include "hopper/instructions.cuh"
#endif

namespace py = pybind11;

namespace {

using namespace mbt_fast::cuda;
using Pointer = uintptr_t;

template <class T>
T* to(Pointer address) {
  return reinterpret_cast<T*>(address);
}

Call call(const std::string& dtype, const std::array<int64_t, 4>& shape, float scale,
          Pointer queue) {
  if (dtype != "bfloat16" && dtype != "float16")
    throw py::value_error("dtype must be bfloat16 or float16, got '" + dtype + "'");
  return {dtype == "float16", shape[0], shape[1], shape[2], shape[3], scale, to<void>(queue)};
}

StreamForward stream_forward(Pointer qkv, const std::array<int64_t, 4>& strides, int64_t rows,
                             Pointer lengths, Pointer out, Pointer lse, Pointer stats,
                             Pointer kept) {
  const Stream stream = {to<void>(qkv), strides[0], strides[1],          strides[2],
                         strides[3],    rows,       to<int32_t>(lengths)};
  return {stream, to<void>(out), to<float>(lse), to<float>(stats), to<void>(kept)};
}

StreamBackward stream_backward(Pointer qkv, const std::array<int64_t, 4>& strides, int64_t rows,
                               Pointer lengths, Pointer out, Pointer kept, Pointer stats,
                               Pointer dout, const std::array<int64_t, 3>& dout_strides,
                               Pointer dlse, Pointer workspace, Pointer dqkv) {
  const Stream stream = {to<void>(qkv), strides[0], strides[1], strides[2], strides[3],
                         rows,          to<int32_t>(lengths)};
  return {stream,          to<void>(out),   to<void>(kept),  to<float>(stats), to<void>(dout),
          dout_strides[0], dout_strides[1], dout_strides[2], to<float>(dlse),  to<float>(workspace),
          to<void>(dqkv)};
}

void backward(const Call& call, const std::vector<StreamBackward>& streams, Pointer dslots,
              bool is_deterministic) {
  bottleneck_attention_bwd(call, streams, to<void>(dslots), is_deterministic);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Kernels of mbt_fast for NVIDIA Hopper.";
#ifdef MBT_FAST_NVCC
  m.attr("compiler") = MBT_FAST_NVCC;
  m.attr("architectures") = MBT_FAST_ARCHITECTURES;
  m.attr("sources") = MBT_FAST_SOURCES;
  m.attr("ptxas") = py::cast(kPtxas);
  m.attr("ptxas_warnings") = py::cast(kPtxasWarnings);
  m.attr("shared_memory") = py::cast(shared_memory_of_kernels());
#else
  m.attr("ptxas") = py::dict();
  m.attr("ptxas_warnings") = py::list();
  m.def("emulate",
        [](uint32_t seed, int multiprocessors) { emulated::settings = {seed, multiprocessors}; });
#endif
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  const py::module_local local;  // the tests load the emulated module beside the built one
  py::class_<Call>(m, "Call", local)
      .def(py::init(&call), py::arg("dtype"), py::arg("shape"), py::arg("scale"), py::arg("queue"));
  py::class_<StreamForward>(m, "StreamForward", local)
      .def(py::init(&stream_forward), py::arg("qkv"), py::arg("strides"), py::arg("rows"),
           py::arg("lengths"), py::arg("out"), py::arg("lse"), py::arg("stats"), py::arg("kept"));
  py::class_<StreamBackward>(m, "StreamBackward", local)
      .def(py::init(&stream_backward), py::arg("qkv"), py::arg("strides"), py::arg("rows"),
           py::arg("lengths"), py::arg("out"), py::arg("kept"), py::arg("stats"), py::arg("dout"),
           py::arg("dout_strides"), py::arg("dlse"), py::arg("workspace"), py::arg("dqkv"));
  m.def("bottleneck_attention_fwd", &bottleneck_attention_fwd, py::arg("call"), py::arg("streams"),
        no_gil);
  m.def("bottleneck_attention_bwd", &backward, py::arg("call"), py::arg("streams"),
        py::arg("dslots"), py::arg("is_deterministic"), no_gil);
  m.def("backward_workspace", &backward_workspace, py::arg("call"), py::arg("rows"),
        py::arg("is_deterministic"));
}
