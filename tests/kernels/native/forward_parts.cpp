// What tests/kernels/cuda/test_forward_parts.py calls: parts of the CUDA forward, each alone.
#include "cuda/hopper/exp2.cuh"
#include "cuda/hopper/items.cuh"

using namespace mbt_fast::cuda;

extern "C" {

void exp2_of(float* values, int count) {
  for (int i = 0; i < count; ++i) values[i] = exp2_polynomial(values[i]);
}

// The block that takes each item, and how often each was taken. Streams have `heads` heads each.
void take_items(int grid, int heads, const int* tiles, int streams, int* blocks, int* taken) {
  const std::vector<int> tiles_of_heads(tiles, tiles + streams);
  const int shift = choose_shift(grid, tiles_of_heads);
  const int items = heads * std::accumulate(tiles, tiles + streams, 0);
  emulated::launch(grid, 1, 1024, [&] {
    for_each_item(items, shift, [&](int number) {
      blocks[number] = block_index();
      ++taken[number];
    });
  });
}
}
