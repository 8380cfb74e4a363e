// Which items a block takes, where blocks stay and there are more items than blocks.
//
// In every round each block takes one, and from round to round its place moves on by `shift`. With a
// shift of 0 and four tiles a head, every fourth of 132 blocks would get nothing but last tiles,
// which may be short, while the others got none.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "instructions.cuh"

namespace mbt_fast::cuda {

// The least with which a block gets all tiles of a head in turn, whichever stream it is of.
inline int choose_shift(int grid, const std::vector<int>& tiles_of_heads) {
  int shift = 0;
  const auto takes_turns = [&](int tiles) { return std::gcd(grid + shift, tiles) == 1; };
  while (!std::all_of(tiles_of_heads.begin(), tiles_of_heads.end(), takes_turns)) ++shift;
  return shift;
}

template <class Work>
MBT_DEVICE void for_each_item(int items, int shift, const Work& work) {
  int place = block_index();
  for (int first = 0; first < items; first += grid_size()) {
    if (first + place < items) work(first + place);
    place = (place + shift) % grid_size();
  }
}

}  // namespace mbt_fast::cuda
