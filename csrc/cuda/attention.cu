// Forward of bottleneck attention on the host: what is refused, and the arguments of the kernels.
#include <cfloat>

#include "backward_keys.cuh"
#include "backward_queries.cuh"
#include "forward_launch.cuh"
#include "host.hpp"

namespace mbt_fast::cuda {

extern template void launch_forward<Bfloat16, 64>(const ForwardParameters&, void*);
extern template void launch_forward<Bfloat16, 128>(const ForwardParameters&, void*);
extern template void launch_forward<Float16, 64>(const ForwardParameters&, void*);
extern template void launch_forward<Float16, 128>(const ForwardParameters&, void*);

namespace {

void check(const Call& call, const std::vector<StreamForward>& streams) {
  check_call(call, streams, kQueryTile);
  const int64_t slots = call.batch * call.heads * call.slots;
  must(slots * call.dim / 8 <= kMostItems, "slots must fit 32-bit indices", slots);
}

ForwardStream stream_of(const std::string& name, const Call& call, const StreamForward& stream) {
  const int key_tile =
      call.dim == 64 ? choose_key_tile<64>(stream.rows) : choose_key_tile<128>(stream.rows);
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

ForwardParameters parameters_of(const Call& call, const std::vector<StreamForward>& streams) {
  ForwardParameters parameters = {};
  parameters.batch = static_cast<int>(call.batch);
  parameters.heads = static_cast<int>(call.heads);
  parameters.slots = static_cast<int>(call.slots);
  // Not 0: masked scores are -inf, and must stay so.
  parameters.scale = std::max(static_cast<float>(std::fabs(call.scale) * kLog2E), FLT_MIN);
  parameters.negate = call.scale < 0;
  for (const size_t m : longest_first(streams)) {
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
  check(call, streams);
  if (call.is_half)
    forward<Float16>(call, streams);
  else
    forward<Bfloat16>(call, streams);
}

std::map<std::string, uint32_t> shared_memory_of_kernels() {
  return {{"attention_forward 64", ForwardMemory<64>::kBytes},
          {"attention_forward 128", ForwardMemory<128>::kBytes},
          {"attention_backward_keys 64", KeysMemory<64>::kBytes},
          {"attention_backward_keys 128", KeysMemory<128>::kBytes},
          {"attention_backward_queries 64", QueriesMemory<64>::kBytes},
          {"attention_backward_queries 128", QueriesMemory<128>::kBytes}};
}

}  // namespace mbt_fast::cuda
