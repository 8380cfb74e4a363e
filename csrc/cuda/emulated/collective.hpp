// What threads do together: barriers of the block, named barriers, and exchange inside a warp.
#pragma once

#include <array>

#include "block.hpp"

namespace mbt_fast::cuda::emulated {

// Threads meet in generations: the last one to come opens the door for all.
struct Meeting {
  int expected = 0, arrived = 0;
  uint64_t generation = 0;

  void arrive(int threads) {
    Block& block = Block::current();
    if (arrived == 0) expected = threads;
    block.require(expected == threads, "threads disagree on how many take part in a barrier");
    if (++arrived == expected) {
      arrived = 0;
      ++generation;
    }
  }
  void sync(int threads, const std::string& name) {
    const uint64_t mine = generation;
    arrive(threads);
    Block::current().wait_until(name, [this, mine] { return generation != mine; });
  }
};

struct Meetings {
  std::array<Meeting, 16> named;
  std::array<Meeting, 64> warps, groups;
  std::array<std::array<float, 32>, 64> exchanged;
};

inline Meetings& meetings() { return Block::current().state<Meetings>(); }

}  // namespace mbt_fast::cuda::emulated

namespace mbt_fast::cuda {

inline int thread_index() { return emulated::Block::current().thread(); }
inline int block_index() { return emulated::Block::current().index(); }
inline int grid_size() { return emulated::Block::current().grid(); }

inline void named_barrier_sync(int id, int threads) {
  emulated::Block& block = emulated::Block::current();
  block.require(id >= 0 && id < 16, "a named barrier must be 0 to 15");
  block.require(threads % kWarp == 0, "a named barrier counts whole warps");
  emulated::meetings().named[id].sync(threads, "named barrier " + std::to_string(id));
}
inline void named_barrier_arrive(int id, int threads) {
  emulated::meetings().named[id].arrive(threads);
}
inline void sync_threads() {
  emulated::Block& block = emulated::Block::current();
  named_barrier_sync(0, block.threads());
  ++block.self().syncs;
}
inline void sync_warp() {
  emulated::meetings().warps[thread_index() / kWarp].sync(kWarp, "its warp");
}

inline float shuffle(float value, int lane) {
  auto& exchanged = emulated::meetings().exchanged[thread_index() / kWarp];
  exchanged[thread_index() % kWarp] = value;
  sync_warp();
  const float result = exchanged[lane % kWarp];
  sync_warp();  // all have read before anybody writes again
  return result;
}
inline float shuffle_xor(float value, int lanes) {
  return shuffle(value, thread_index() % kWarp ^ lanes);
}

inline int uniform(int value) {
  const auto same = static_cast<int>(shuffle(static_cast<float>(value), 0));
  emulated::Block::current().require(same == value, "a warp's threads disagree on a uniform value");
  return value;
}

inline int computed_here(int value) { return value; }

// setmaxnreg: all warps of a group, to a multiple of 8.
template <int kRegisters>
void take_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  emulated::meetings().groups[thread_index() / kWarpGroup].sync(kWarpGroup, "its warp group");
}
template <int kRegisters>
void give_registers() {
  take_registers<kRegisters>();
}

}  // namespace mbt_fast::cuda
