// Backward of bottleneck attention on the host: what is refused, and the arguments of the kernels.
#include "backward_launch.cuh"
#include "host.hpp"

namespace mbt_fast::cuda {

extern template void launch_backward<Bfloat16, 64>(const BackwardParameters&, void*);
extern template void launch_backward<Bfloat16, 128>(const BackwardParameters&, void*);
extern template void launch_backward<Float16, 64>(const BackwardParameters&, void*);
extern template void launch_backward<Float16, 128>(const BackwardParameters&, void*);

namespace {

BackwardStream stream_of(const std::string& number, const Call& call, const StreamBackward& stream,
                         bool is_deterministic) {
  const int64_t tiles = tiles_of(stream.rows, kBackwardTile);
  float* sums = stream.workspace + 3 * call.batch * call.heads * tiles * kBackwardTile;
  BackwardStream made = {};
  made.qkv = qkv_map("qkv[" + number, call, stream, kGroupRows);
  made.douts = map_of(
      "douts[" + number, call, stream.dout, stream.rows, 1,
      {stream.dout_stride_batch, stream.dout_stride_row, 0, stream.dout_stride_head}, kGroupRows);
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

BackwardParameters parameters_of(const Call& call, const std::vector<StreamBackward>& streams,
                                 void* dslots, bool is_deterministic) {
  BackwardParameters parameters = {};
  parameters.dslots = dslots;
  parameters.batch = static_cast<int>(call.batch);
  parameters.heads = static_cast<int>(call.heads);
  parameters.slots = static_cast<int>(call.slots);
  parameters.scale = call.scale;
  parameters.log2_scale = static_cast<float>(call.scale * kLog2E);  // rounded as in the forward
  for (const size_t m : longest_first(streams)) {
    const BackwardStream stream =
        stream_of(std::to_string(m) + "]", call, streams[m], is_deterministic);
    parameters.items += stream.tiles * parameters.batch * parameters.heads;
    parameters.streams[parameters.stream_count++] = stream;
  }
  return parameters;
}

template <class Element>
void launch_of(const Call& call, const BackwardParameters& parameters) {
  if (call.dim == 64)
    launch_backward<Element, 64>(parameters, call.queue);
  else
    launch_backward<Element, 128>(parameters, call.queue);
}

}  // namespace

int64_t backward_workspace(const Call& call, int64_t rows, bool is_deterministic) {
  const int64_t of_row = 3 + (is_deterministic ? 0 : call.dim);
  return call.batch * call.heads * tiles_of(rows, kBackwardTile) * kBackwardTile * of_row;
}

void attention_backward(const Call& call, const std::vector<StreamBackward>& streams, void* dslots,
                        bool is_deterministic) {
  check_call(call, streams, kBackwardTile);
  const BackwardParameters parameters = parameters_of(call, streams, dslots, is_deterministic);
  if (parameters.items == 0) return;
  if (call.is_half)
    launch_of<Float16>(call, parameters);
  else
    launch_of<Bfloat16>(call, parameters);
}

}  // namespace mbt_fast::cuda
