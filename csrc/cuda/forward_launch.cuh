// The forward's launch for one element and one head dimension. Each has a translation unit of its
// own, so that they compile side by side.
#pragma once

#include <algorithm>
#include <cmath>

#include "forward.cuh"
#include "slots_mean.cuh"

namespace mbt_fast::cuda {

template <class Element, int kDim>
void launch_forward(const ForwardParameters& parameters, void* queue) {
  const int grid = std::min(parameters.items, multiprocessors());
  launch(attention_forward_kernel<Element, kDim>, grid, kPipelineThreads,
         ForwardMemory<kDim>::kBytes, queue, parameters);
}

template <class Element>
void launch_mean(const MeanParameters& parameters, void* queue) {
  const int words = parameters.batch * parameters.slots * parameters.row_words;
  const int grid = (words + kMeanThreads - 1) / kMeanThreads;
  launch(slots_mean_kernel<Element>, grid, kMeanThreads, 0, queue, parameters);
}

}  // namespace mbt_fast::cuda
