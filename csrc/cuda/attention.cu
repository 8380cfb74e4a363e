// Bottleneck attention on the host: what is refused, and the arguments of the kernels.
#include <cfloat>
#include <numeric>

#include "attention.hpp"
#include "forward_launch.cuh"

namespace mbt_fast::cuda {

extern template void launch_forward<Bfloat16, 64>(const ForwardParameters&, void*);
extern template void launch_forward<Bfloat16, 128>(const ForwardParameters&, void*);
extern template void launch_forward<Float16, 64>(const ForwardParameters&, void*);
extern template void launch_forward<Float16, 128>(const ForwardParameters&, void*);

namespace {

void must(bool holds, const std::string& requirement, int64_t value) {
  if (!holds) throw std::invalid_argument(requirement + ", got " + std::to_string(value));
}

constexpr int64_t kMostItems = INT32_MAX;

void check_call(const Call& call, const std::vector<StreamForward>& streams) {
  must(call.dim == 64 || call.dim == 128, "the head dimension must be 64 or 128", call.dim);
  const auto count = static_cast<int64_t>(streams.size());
  must(count <= kMaxStreams, "qkv must have at most " + std::to_string(kMaxStreams) + " streams",
       count);
  const int64_t heads = call.batch * call.heads;
  must(heads * call.slots * call.dim / 8 <= kMostItems, "slots must fit 32-bit indices", heads);
  int64_t items = 0;
  for (const StreamForward& stream : streams) {
    must(stream.rows <= kMostItems - kQueryTile, "qkv must have fewer than 2^31 rows", stream.rows);
    items += (stream.rows + kQueryTile - 1) / kQueryTile * heads;
  }
  must(items <= kMostItems, "qkv must have fewer than 2^31 tiles", items);
  check_device();
}

// Boxes of `rows` rows of 64 channels. Strides of dimensions of size 1 mean nothing: any will do.
TensorMap map_of(const std::string& name, const Call& call, const Stream& stream, int rows) {
  const auto size = [](int64_t count) { return static_cast<uint64_t>(count); };
  const auto stride = [&](int64_t elements, int64_t count) {
    return static_cast<uint64_t>(2 * (count > 1 ? elements : call.dim));
  };
  const MapElement element = call.is_half ? MapElement::kFloat16 : MapElement::kBfloat16;
  return make_tensor_map(
      name, {element,
             stream.qkv,
             {size(call.dim), size(stream.rows), size(call.heads), 3, size(call.batch)},
             {stride(stream.stride_row, stream.rows), stride(stream.stride_head, call.heads),
              stride(stream.stride_which, 3), stride(stream.stride_batch, call.batch)},
             {kPanelColumns, static_cast<uint32_t>(rows), 1, 1, 1},
             true});
}

ForwardStream stream_of(const std::string& name, const Call& call, const StreamForward& stream) {
  const int key_tile =
      call.dim == 64 ? choose_key_tile<64>(stream.rows) : choose_key_tile<128>(stream.rows);
  return {map_of(name, call, stream, kGroupRows),
          map_of(name, call, stream, key_tile),
          stream.out,
          stream.kept,
          stream.lse,
          stream.stats,
          stream.lengths,
          static_cast<int>(stream.rows),
          key_tile,
          static_cast<int>((stream.rows + kQueryTile - 1) / kQueryTile)};
}

// Streams with rows, the longest first: short ones fill the gaps at the end.
ForwardParameters parameters_of(const Call& call, const std::vector<StreamForward>& streams) {
  constexpr double kLog2E = 1.4426950408889634;
  ForwardParameters parameters = {};
  parameters.batch = static_cast<int>(call.batch);
  parameters.heads = static_cast<int>(call.heads);
  parameters.slots = static_cast<int>(call.slots);
  // Not 0: masked scores are -inf, and must stay so.
  parameters.scale = std::max(static_cast<float>(std::fabs(call.scale) * kLog2E), FLT_MIN);
  parameters.negate = call.scale < 0;
  std::vector<size_t> order(streams.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return streams[a].rows > streams[b].rows; });
  for (const size_t m : order) {
    if (streams[m].rows == 0) continue;
    const ForwardStream stream = stream_of("qkv[" + std::to_string(m) + "]", call, streams[m]);
    parameters.items += stream.query_tiles * parameters.batch * parameters.heads;
    parameters.streams[parameters.stream_count++] = stream;
  }
  return parameters;
}

MeanParameters mean_of(const Call& call, const std::vector<StreamForward>& streams) {
  MeanParameters parameters = {};
  parameters.batch = static_cast<int>(call.batch);
  parameters.slots = static_cast<int>(call.slots);
  parameters.row_words = static_cast<int>(call.heads * call.dim / 8);
  for (const StreamForward& stream : streams)
    parameters.streams[parameters.stream_count++] = {stream.kept, stream.out, stream.lengths,
                                                     static_cast<int>(stream.rows)};
  return parameters;
}

template <class Element>
void forward(const Call& call, const std::vector<StreamForward>& streams) {
  const ForwardParameters parameters = parameters_of(call, streams);
  if (parameters.items == 0) return;
  if (call.dim == 64)
    launch_forward<Element, 64>(parameters, call.queue);
  else
    launch_forward<Element, 128>(parameters, call.queue);
  if (streams[0].kept) launch_mean<Element>(mean_of(call, streams), call.queue);
}

}  // namespace

void attention_forward(const Call& call, const std::vector<StreamForward>& streams) {
  check_call(call, streams);
  if (call.is_half)
    forward<Float16>(call, streams);
  else
    forward<Bfloat16>(call, streams);
}

std::map<std::string, uint32_t> shared_memory_of_kernels() {
  return {{"attention_forward 64", ForwardMemory<64>::kBytes},
          {"attention_forward 128", ForwardMemory<128>::kBytes}};
}

}  // namespace mbt_fast::cuda
