// The Python module mbt_fast._C. No torch header: launchers take raw pointers and sizes, so the module
// builds in seconds and does not care which torch runs it. Pointers are integers; what they point to
// is checked by the Python side.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/add_layer_norm.hpp"
#include "cpu/bottleneck_attention.hpp"
#include "cpu/bias_gelu.hpp"
#include "cpu/features.hpp"
#include "cpu/linear.hpp"
#include "cpu/residual_add.hpp"

namespace py = pybind11;

namespace {

using namespace mbt_fast::cpu;

py::dict cpu_features() {
  const Features& found = features();
  py::dict flags;
  flags["avx2_fma"] = found.avx2_fma;
  flags["avx512"] = found.avx512;
  flags["avx512_bf16"] = found.avx512_bf16;
  flags["amx_bf16"] = found.amx_bf16;
  return flags;
}

// Names of those with kernels that this process may use, best first.
std::vector<std::string> usable_instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& isa : instruction_sets()) {
    if (features().*isa.needs) names.emplace_back(isa.name);
  }
  return names;
}

const InstructionSet& instruction_set(const std::string& name) {
  for (const InstructionSet& isa : instruction_sets()) {
    if (name == isa.name && features().*isa.needs) return isa;
  }
  throw py::value_error("isa must have kernels for this machine, got '" + name + "'");
}

Dtype dtype_named(const std::string& name) {
  if (name == "float32") return kFloat32;
  if (name == "bfloat16") return kBfloat16;
  if (name == "float16") return kFloat16;
  throw py::value_error("dtype must be float32, bfloat16 or float16, got '" + name + "'");
}

using Pointer = uintptr_t;

template <class T>
T* to(Pointer address) {
  return reinterpret_cast<T*>(address);
}

using Strides = std::array<int64_t, 4>;  // batch, row, which of qkv, head

Stream stream(Pointer qkv, const Strides& strides, int64_t rows, Pointer lengths) {
  return {to<void>(qkv), strides[0], strides[1], strides[2], strides[3],
          rows,          to<int32_t>(lengths)};
}

StreamForward stream_forward(Pointer qkv, const Strides& strides, int64_t rows, Pointer lengths,
                             Pointer out, Pointer lse, Pointer stats) {
  return {stream(qkv, strides, rows, lengths), to<void>(out), to<float>(lse), to<float>(stats)};
}

StreamBackward stream_backward(Pointer qkv, const Strides& strides, int64_t rows, Pointer lengths,
                               Pointer out, Pointer stats, Pointer dout,
                               const std::array<int64_t, 3>& dout_strides, Pointer dlse,
                               Pointer dqkv) {
  return {stream(qkv, strides, rows, lengths),
          to<void>(out),
          to<float>(stats),
          to<void>(dout),
          dout_strides[0],
          dout_strides[1],
          dout_strides[2],
          to<float>(dlse),
          to<void>(dqkv)};
}

Call call(const std::string& isa, const std::string& dtype, const std::array<int64_t, 4>& shape,
          float scale, int threads) {
  return {instruction_set(isa), dtype_named(dtype), shape[0], shape[1],
          shape[2],             shape[3],           scale,    threads};
}

Approximate approximate_named(const std::string& name) {
  if (name == "tanh") return kTanh;
  if (name == "none") return kNone;
  throw py::value_error("approximate must be tanh or none, got '" + name + "'");
}

GeluCall gelu_call(const std::string& isa, const std::string& dtype,
                   const std::string& approximate, int64_t elements, int64_t channels,
                   int threads) {
  return {instruction_set(isa), dtype_named(dtype), approximate_named(approximate),
          elements,             channels,           threads};
}

NormCall norm_call(const std::string& isa, const std::string& dtype,
                   const std::array<int64_t, 3>& shape, float eps, int threads) {
  return {instruction_set(isa), dtype_named(dtype), shape[0], shape[1], shape[2], eps, threads};
}

// A tensor [B, S, C]: where it begins, and the strides of examples and rows. None has no address.
using Tokens = std::tuple<Pointer, int64_t, int64_t>;

TokenRows token_rows(const Tokens& tokens) {
  return {to<void>(std::get<0>(tokens)), std::get<1>(tokens), std::get<2>(tokens)};
}

NormForward norm_forward_stream(const Tokens& stream, const Tokens& branch, const Tokens& sums,
                                const Tokens& out, int64_t rows, Pointer keep, Pointer lengths,
                                Pointer weight, Pointer bias, Pointer stats) {
  return {token_rows(stream), token_rows(branch), token_rows(sums), token_rows(out), rows,
          to<bool>(keep), to<int32_t>(lengths), to<float>(weight), to<float>(bias),
          to<float>(stats)};
}

NormBackward norm_backward_stream(const Tokens& sums, const Tokens& dsums, const Tokens& dout,
                                  const Tokens& dx, const Tokens& dbranch, int64_t rows,
                                  Pointer keep, Pointer lengths, Pointer weight, Pointer stats,
                                  Pointer dparameters) {
  return {token_rows(sums), token_rows(dsums), token_rows(dout), token_rows(dx),
          token_rows(dbranch), rows, to<bool>(keep), to<int32_t>(lengths), to<float>(weight),
          to<float>(stats), to<float>(dparameters)};
}

ResidualCall residual_call(const std::string& isa, const std::string& dtype,
                           const std::array<int64_t, 3>& shape, int threads) {
  return {instruction_set(isa), dtype_named(dtype), shape[0], shape[1], shape[2], threads};
}

ResidualForward residual_forward_stream(const Tokens& stream, const Tokens& branch,
                                        const Tokens& sums, int64_t rows, Pointer keep,
                                        Pointer lengths) {
  return {token_rows(stream), token_rows(branch), token_rows(sums), rows, to<bool>(keep),
          to<int32_t>(lengths)};
}

ResidualBackward residual_backward_stream(const Tokens& dsums, const Tokens& dx,
                                          const Tokens& dbranch, int64_t rows, Pointer keep,
                                          Pointer lengths) {
  return {token_rows(dsums), token_rows(dx), token_rows(dbranch), rows, to<bool>(keep),
          to<int32_t>(lengths)};
}

LinearCall linear_call(const std::string& isa, const std::string& dtype, int threads) {
  return {instruction_set(isa), dtype_named(dtype), threads};
}

LinearShape linear_shape(const std::array<int64_t, 3>& shape) {
  return {shape[0], shape[1], shape[2]};
}

LinearForward linear_forward_stream(const std::array<int64_t, 3>& shape, Pointer x, Pointer weight,
                                    Pointer bias, Pointer out) {
  return {linear_shape(shape), to<void>(x), to<void>(weight), to<float>(bias), to<void>(out)};
}

LinearBackward linear_backward_stream(const std::array<int64_t, 3>& shape, Pointer dout, Pointer x,
                                      Pointer weight, Pointer dx, Pointer dweight, Pointer dbias) {
  return {linear_shape(shape), to<void>(dout), to<void>(x), to<void>(weight), to<void>(dx),
          to<void>(dweight), to<float>(dbias)};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of mbt_fast.";
  m.attr("compiler") = __VERSION__;
  m.def("cpu_features", &cpu_features, "Instruction sets that this process may use, by name.");
  m.def("cpu_vendor", &cpu_vendor, "Who made this CPU, in the words of cpuid.");
  m.def("instruction_sets", &usable_instruction_sets, "Those with kernels, best first.");

  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  py::class_<Call>(m, "Call").def(py::init(&call), py::arg("isa"), py::arg("dtype"),
                                  py::arg("shape"), py::arg("scale"), py::arg("threads"));
  py::class_<StreamForward>(m, "StreamForward")
      .def(py::init(&stream_forward), py::arg("qkv"), py::arg("strides"), py::arg("rows"),
           py::arg("lengths"), py::arg("out"), py::arg("lse"), py::arg("stats"));
  py::class_<StreamBackward>(m, "StreamBackward")
      .def(py::init(&stream_backward), py::arg("qkv"), py::arg("strides"), py::arg("rows"),
           py::arg("lengths"), py::arg("out"), py::arg("stats"), py::arg("dout"),
           py::arg("dout_strides"), py::arg("dlse"), py::arg("dqkv"));
  m.def(
      "bottleneck_attention_fwd",
      [](const Call& call, const std::vector<StreamForward>& streams, Pointer kept) {
        bottleneck_attention_fwd(call, streams, to<void>(kept));
      },
      py::arg("call"), py::arg("streams"), py::arg("kept"), no_gil);
  m.def(
      "bottleneck_attention_bwd",
      [](const Call& call, const std::vector<StreamBackward>& streams, Pointer kept) {
        bottleneck_attention_bwd(call, streams, to<void>(kept));
      },
      py::arg("call"), py::arg("streams"), py::arg("kept"), no_gil);

  py::class_<GeluCall>(m, "GeluCall")
      .def(py::init(&gelu_call), py::arg("isa"), py::arg("dtype"), py::arg("approximate"),
           py::arg("elements"), py::arg("channels"), py::arg("threads"));
  m.def(
      "bias_gelu_fwd",
      [](const GeluCall& call, Pointer x, Pointer bias, Pointer out) {
        bias_gelu_fwd(call, to<void>(x), to<float>(bias), to<void>(out));
      },
      py::arg("call"), py::arg("x"), py::arg("bias"), py::arg("out"), no_gil);
  m.def(
      "bias_gelu_bwd",
      [](const GeluCall& call, Pointer x, Pointer bias, Pointer dout, Pointer dx, Pointer dbias) {
        bias_gelu_bwd(call, to<void>(x), to<float>(bias), to<void>(dout), to<void>(dx),
                      to<float>(dbias));
      },
      py::arg("call"), py::arg("x"), py::arg("bias"), py::arg("dout"), py::arg("dx"),
      py::arg("dbias"), no_gil);

  py::class_<NormCall>(m, "NormCall")
      .def(py::init(&norm_call), py::arg("isa"), py::arg("dtype"), py::arg("shape"),
           py::arg("eps"), py::arg("threads"));
  py::class_<NormForward>(m, "NormForward")
      .def(py::init(&norm_forward_stream), py::arg("stream"), py::arg("branch"), py::arg("sums"),
           py::arg("out"), py::arg("rows"), py::arg("keep"), py::arg("lengths"),
           py::arg("weight"), py::arg("bias"), py::arg("stats"));
  py::class_<NormBackward>(m, "NormBackward")
      .def(py::init(&norm_backward_stream), py::arg("sums"), py::arg("dsums"), py::arg("dout"),
           py::arg("dx"), py::arg("dbranch"), py::arg("rows"), py::arg("keep"),
           py::arg("lengths"), py::arg("weight"), py::arg("stats"), py::arg("dparameters"));
  m.def("add_layer_norm_fwd", &add_layer_norm_fwd, py::arg("call"), py::arg("streams"), no_gil);
  m.def("add_layer_norm_bwd", &add_layer_norm_bwd, py::arg("call"), py::arg("streams"), no_gil);

  py::class_<ResidualCall>(m, "ResidualCall")
      .def(py::init(&residual_call), py::arg("isa"), py::arg("dtype"), py::arg("shape"),
           py::arg("threads"));
  py::class_<ResidualForward>(m, "ResidualForward")
      .def(py::init(&residual_forward_stream), py::arg("stream"), py::arg("branch"),
           py::arg("sums"), py::arg("rows"), py::arg("keep"), py::arg("lengths"));
  py::class_<ResidualBackward>(m, "ResidualBackward")
      .def(py::init(&residual_backward_stream), py::arg("dsums"), py::arg("dx"),
           py::arg("dbranch"), py::arg("rows"), py::arg("keep"), py::arg("lengths"));
  m.def("residual_add_fwd", &residual_add_fwd, py::arg("call"), py::arg("streams"), no_gil);
  m.def("residual_add_bwd", &residual_add_bwd, py::arg("call"), py::arg("streams"), no_gil);

  py::class_<LinearCall>(m, "LinearCall")
      .def(py::init(&linear_call), py::arg("isa"), py::arg("dtype"), py::arg("threads"));
  py::class_<LinearForward>(m, "LinearForward")
      .def(py::init(&linear_forward_stream), py::arg("shape"), py::arg("x"), py::arg("weight"),
           py::arg("bias"), py::arg("out"));
  py::class_<LinearBackward>(m, "LinearBackward")
      .def(py::init(&linear_backward_stream), py::arg("shape"), py::arg("dout"), py::arg("x"),
           py::arg("weight"), py::arg("dx"), py::arg("dweight"), py::arg("dbias"));
  m.def("linear_fwd", &linear_fwd, py::arg("call"), py::arg("streams"), no_gil);
  m.def("linear_bwd", &linear_bwd, py::arg("call"), py::arg("streams"), no_gil);
}
