// The backward's launches for one element and one head dimension, as in forward_launch.cuh.
#pragma once

#include <algorithm>

#include "backward_delta.cuh"
#include "backward_dq.cuh"
#include "backward_keys.cuh"
#include "backward_queries.cuh"

namespace mbt_fast::cuda {

template <class Element, int kDim>
void launch_backward(const BackwardParameters& parameters, void* queue) {
  const int blocks = std::min(parameters.items, multiprocessors());
  constexpr uint32_t kKeysBytes = KeysMemory<kDim>::kBytes;
  launch(attention_backward_delta_kernel<Element, kDim>, parameters.items, kDeltaThreads, 0, queue,
         parameters);
  if (parameters.streams[0].dq_sums) {
    launch(attention_backward_keys_kernel<Element, kDim, true>, blocks, kPipelineThreads,
           kKeysBytes, queue, parameters);
    launch(attention_backward_dq_kernel<Element, kDim>, parameters.items, kDqThreads, 0, queue,
           parameters);
  } else {
    launch(attention_backward_keys_kernel<Element, kDim, false>, blocks, kPipelineThreads,
           kKeysBytes, queue, parameters);
    launch(attention_backward_queries_kernel<Element, kDim>, blocks, kPipelineThreads,
           QueriesMemory<kDim>::kBytes, queue, parameters);
  }
}

}  // namespace mbt_fast::cuda
