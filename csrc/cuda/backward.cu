// Backward of bottleneck attention on the host: what is refused, and the arguments of the kernels.
#include <numeric>

#include "backward_launch.cuh"

namespace mbt_fast::cuda {

extern template void launch_backward<Bfloat16, 64>(const BackwardParameters&, void*);
extern template void launch_backward<Bfloat16, 128>(const BackwardParameters&, void*);
extern template void launch_backward<Float16, 64>(const BackwardParameters&, void*);
extern template void launch_backward<Float16, 128>(const BackwardParameters&, void*);

namespace {

void must(bool holds, const std::string& requirement, int64_t value) {
  if (!holds) throw std::invalid_argument(requirement + ", got " + std::to_string(value));
}

constexpr int64_t kMostItems = INT32_MAX;

int64_t tiles_of(int64_t rows) { return (rows + kBackwardTile - 1) / kBackwardTile; }

void check_call(const Call& call, const std::vector<StreamBackward>& streams) {
  must(call.dim == 64 || call.dim == 128, "the head dimension must be 64 or 128", call.dim);
  const auto count = static_cast<int64_t>(streams.size());
  must(count <= kMaxStreams, "qkv must have at most " + std::to_string(kMaxStreams) + " streams", count);
  int64_t items = 0;
  for (const StreamBackward& stream : streams) {
    must(stream.rows <= kMostItems - kBackwardTile, "qkv must have fewer than 2^31 rows", stream.rows);
    items += tiles_of(stream.rows) * call.batch * call.heads;
  }
  must(items <= kMostItems, "qkv must have fewer than 2^31 tiles", items);
  check_device();
}

// [B, S, which, H, D] in boxes of kBoxRows rows of 64 channels. Strides of dimensions of size 1 mean
// nothing, and may be odd.
TensorMap map_of(const std::string& name, const Call& call, int64_t rows, void* base, int64_t which,
                 const std::array<int64_t, 4>& strides) {
  const auto size = [](int64_t count) { return static_cast<uint64_t>(count); };
  const auto stride = [&](int64_t elements, int64_t count) {
    return static_cast<uint64_t>(2 * (count > 1 ? elements : call.dim));
  };
  const MapElement element = call.is_half ? MapElement::kFloat16 : MapElement::kBfloat16;
  return make_tensor_map(
      name, {element,
             base,
             {size(call.dim), size(rows), size(call.heads), size(which), size(call.batch)},
             {stride(strides[1], rows), stride(strides[3], call.heads), stride(strides[2], which),
              stride(strides[0], call.batch)},
             {kPanelColumns, kBoxRows, 1, 1, 1},
             true});
}

BackwardStream stream_of(const std::string& number, const Call& call, const StreamBackward& stream,
                         bool is_deterministic) {
  const int64_t tiles = tiles_of(stream.rows), rows = tiles * kBackwardTile;
  float* sums = stream.workspace + 3 * call.batch * call.heads * rows;
  BackwardStream made = {};
  made.qkv = map_of("qkv[" + number, call, stream.rows, stream.qkv, 3,
                    {stream.stride_batch, stream.stride_row, stream.stride_which, stream.stride_head});
  made.douts = map_of("douts[" + number, call, stream.rows, stream.dout, 1,
                      {stream.dout_stride_batch, stream.dout_stride_row, 0, stream.dout_stride_head});
  made.out = stream.out;
  made.kept = stream.kept;
  made.dout = stream.dout;
  made.dout_batch = stream.dout_stride_batch;
  made.dout_row = stream.dout_stride_row;
  made.dout_head = stream.dout_stride_head;
  made.stats = stream.stats;
  made.dlse = stream.dlse;
  made.rows_state = stream.workspace;
  made.dq_sums = is_deterministic ? nullptr : sums;
  made.dqkv = stream.dqkv;
  made.lengths = stream.lengths;
  made.rows = static_cast<int>(stream.rows);
  made.tiles = static_cast<int>(tiles);
  return made;
}

// Streams with rows, the longest first: short ones fill the gaps at the end.
BackwardParameters parameters_of(const Call& call, const std::vector<StreamBackward>& streams,
                                 void* dslots, bool is_deterministic) {
  BackwardParameters parameters = {};
  parameters.dslots = dslots;
  parameters.batch = static_cast<int>(call.batch);
  parameters.heads = static_cast<int>(call.heads);
  parameters.slots = static_cast<int>(call.slots);
  parameters.scale = call.scale;
  std::vector<size_t> order(streams.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return streams[a].rows > streams[b].rows; });
  for (const size_t m : order) {
    if (streams[m].rows == 0) continue;
    const BackwardStream stream =
        stream_of(std::to_string(m) + "]", call, streams[m], is_deterministic);
    parameters.items += stream.tiles * parameters.batch * parameters.heads;
    parameters.streams[parameters.stream_count++] = stream;
  }
  return parameters;
}

template <class Element>
void launch_of(const Call& call, const BackwardParameters& parameters) {
  if (call.dim == 64) launch_backward<Element, 64>(parameters, call.queue);
  else launch_backward<Element, 128>(parameters, call.queue);
}

}  // namespace

int64_t backward_workspace(const Call& call, int64_t rows, bool is_deterministic) {
  const int64_t of_row = 3 + (is_deterministic ? 0 : call.dim);
  return call.batch * call.heads * tiles_of(rows) * kBackwardTile * of_row;
}

void attention_backward(const Call& call, const std::vector<StreamBackward>& streams, void* dslots,
                        bool is_deterministic) {
  check_call(call, streams);
  const BackwardParameters parameters = parameters_of(call, streams, dslots, is_deterministic);
  if (parameters.items == 0) return;
  if (call.is_half) launch_of<Float16>(call, parameters);
  else launch_of<Bfloat16>(call, parameters);
}

}  // namespace mbt_fast::cuda
