// Backward of bottleneck attention on the host: what is refused, the arguments of the kernels, their
// launches. Compiled once for each element and head dimension, like bottleneck_attention_fwd.cu.
#include <algorithm>

#include "hopper/bottleneck_attention_bwd_delta.cuh"
#include "hopper/bottleneck_attention_bwd_dq.cuh"
#include "hopper/bottleneck_attention_bwd_keys.cuh"
#include "hopper/bottleneck_attention_bwd_queries.cuh"
#include "hopper/host.hpp"

namespace mbt_fast::cuda {
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
  std::vector<int> tiles;
  for (const size_t m : longest_first(streams)) {
    const BackwardStream stream =
        stream_of(std::to_string(m) + "]", call, streams[m], is_deterministic);
    parameters.items += stream.tiles * parameters.batch * parameters.heads;
    parameters.streams[parameters.stream_count++] = stream;
    tiles.push_back(stream.tiles);
  }
  parameters.shift = choose_shift(blocks_of(parameters.items), tiles);
  return parameters;
}

template <class Element, int kDim>
void launch_bwd(const BackwardParameters& parameters, void* queue) {
  const int blocks = blocks_of(parameters.items);
  constexpr uint32_t kKeysBytes = KeysMemory<kDim>::kBytes;
  launch(bottleneck_attention_bwd_delta_kernel<Element, kDim>, parameters.items, kDeltaThreads, 0,
         queue, parameters);
  if (parameters.streams[0].dq_sums) {
    launch(bottleneck_attention_bwd_keys_kernel<Element, kDim, true>, blocks, kPipelineThreads,
           kKeysBytes, queue, parameters);
    launch(bottleneck_attention_bwd_dq_kernel<Element, kDim>, parameters.items, kDqThreads, 0, queue,
           parameters);
  } else {
    launch(bottleneck_attention_bwd_keys_kernel<Element, kDim, false>, blocks, kPipelineThreads,
           kKeysBytes, queue, parameters);
    launch(bottleneck_attention_bwd_queries_kernel<Element, kDim>, blocks, kPipelineThreads,
           QueriesMemory<kDim>::kBytes, queue, parameters);
  }
}

}  // namespace

template <class Element, int kDim>
void Instance<Element, kDim>::bwd(const Call& call, const std::vector<StreamBackward>& streams,
                                  void* dslots, bool is_deterministic) {
  check_call(call, streams, kBackwardTile);
  const BackwardParameters parameters = parameters_of(call, streams, dslots, is_deterministic);
  if (parameters.items > 0) launch_bwd<Element, kDim>(parameters, call.queue);
}

template <class Element, int kDim>
SharedMemory Instance<Element, kDim>::bwd_shared_memory() {
  const std::string dim = " " + std::to_string(kDim);
  return {{"bottleneck_attention_bwd_keys" + dim, KeysMemory<kDim>::kBytes},
          {"bottleneck_attention_bwd_queries" + dim, QueriesMemory<kDim>::kBytes}};
}

template void Instance<MBT_FAST_ELEMENT, MBT_FAST_DIM>::bwd(const Call&,
                                                            const std::vector<StreamBackward>&,
                                                            void*, bool);
template SharedMemory Instance<MBT_FAST_ELEMENT, MBT_FAST_DIM>::bwd_shared_memory();

}  // namespace mbt_fast::cuda
