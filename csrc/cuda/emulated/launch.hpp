// A kernel's launch on the CPU: block after block.
#pragma once

#include "products.hpp"

namespace mbt_fast::cuda::emulated {

// How the next launches run. Blocks stand for multiprocessors.
struct Settings {
  uint32_t seed = 0;
  int multiprocessors = 2;
};
inline Settings settings;

inline void launch(int grid, int threads, uint32_t shared_bytes, std::function<void()> kernel) {
  for (int index = 0; index < grid; ++index) {
    const auto block = std::make_unique<Block>(index, grid, threads, shared_bytes, settings.seed);
    block->run([&kernel] {
      kernel();
      check_finished();
    });
  }
}

}  // namespace mbt_fast::cuda::emulated
