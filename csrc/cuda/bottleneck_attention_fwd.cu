// Forward of bottleneck attention on the host: what is refused, the arguments of the kernels, their
// launch. Compiled once for each element and head dimension: setup.py defines MBT_FAST_ELEMENT and
// MBT_FAST_DIM.
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "hopper/bottleneck_attention_fwd.cuh"
#include "hopper/bottleneck_attention_slots.cuh"
#include "hopper/host.hpp"

namespace mbt_fast::cuda {
namespace {

void check(const Call& call, const std::vector<StreamForward>& streams) {
  check_call(call, streams, kQueryTile);
  const int64_t slots = call.batch * call.heads * call.slots;
  must(slots * call.dim / 8 <= kMostItems, "slots must fit 32-bit indices", slots);
}

template <int kDim>
ForwardStream stream_of(const std::string& name, const Call& call, const StreamForward& stream) {
  const int key_tile = choose_key_tile<kDim>(stream.rows);
  return {qkv_map(name, call, stream, kGroupRows),
          qkv_map(name, call, stream, key_tile),
          stream.out,
          stream.kept,
          stream.lse,
          stream.stats,
          stream.lengths,
          static_cast<int>(stream.rows),
          key_tile,
          static_cast<int>(tiles_of(stream.rows, kQueryTile))};
}

int blocks_of(const ForwardParameters& parameters) {
  return std::min(parameters.items, multiprocessors());
}

template <int kDim>
ForwardParameters parameters_of(const Call& call, const std::vector<StreamForward>& streams) {
  ForwardParameters parameters = {};
  parameters.batch = static_cast<int>(call.batch);
  parameters.heads = static_cast<int>(call.heads);
  parameters.slots = static_cast<int>(call.slots);
  // Not 0: masked scores are -inf, and must stay so.
  parameters.scale = std::max(static_cast<float>(std::fabs(call.scale) * kLog2E), FLT_MIN);
  parameters.negate = call.scale < 0;
  std::vector<int> tiles;
  for (const size_t m : longest_first(streams)) {
    const ForwardStream stream = stream_of<kDim>("qkv[" + std::to_string(m) + "]", call, streams[m]);
    parameters.items += stream.query_tiles * parameters.batch * parameters.heads;
    parameters.streams[parameters.stream_count++] = stream;
    tiles.push_back(stream.query_tiles);
  }
  parameters.shift = choose_shift(blocks_of(parameters), tiles);
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
void launch_mean(const MeanParameters& parameters, void* queue) {
  const int words = parameters.batch * parameters.slots * parameters.row_words;
  const int grid = (words + kMeanThreads - 1) / kMeanThreads;
  launch(slots_mean_kernel<Element>, grid, kMeanThreads, 0, queue, parameters);
}

}  // namespace

template <class Element, int kDim>
void Instance<Element, kDim>::fwd(const Call& call, const std::vector<StreamForward>& streams) {
  check(call, streams);
  const ForwardParameters parameters = parameters_of<kDim>(call, streams);
  if (parameters.items == 0) return;
  launch(bottleneck_attention_fwd_kernel<Element, kDim>, blocks_of(parameters), kPipelineThreads,
         ForwardMemory<kDim>::kBytes, call.queue, parameters);
  if (streams[0].kept) launch_mean<Element>(mean_of(call, streams), call.queue);
}

template <class Element, int kDim>
SharedMemory Instance<Element, kDim>::fwd_shared_memory() {
  return {{"bottleneck_attention_fwd " + std::to_string(kDim), ForwardMemory<kDim>::kBytes}};
}

template void Instance<MBT_FAST_ELEMENT, MBT_FAST_DIM>::fwd(const Call&,
                                                            const std::vector<StreamForward>&);
template SharedMemory Instance<MBT_FAST_ELEMENT, MBT_FAST_DIM>::fwd_shared_memory();

}  // namespace mbt_fast::cuda
