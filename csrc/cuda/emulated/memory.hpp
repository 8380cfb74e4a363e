// Shared memory, mbarriers and the copy engine.
#pragma once

#include "arithmetic.hpp"
#include "collective.hpp"

namespace mbt_fast::cuda::emulated {

struct Barrier {
  int arrivals = 0, pending = 0;
  int64_t bytes = 0;  // expected and not yet come
  uint32_t phase = 0;
  int made_by = 0, made_after = 0;
  bool is_fenced = false;

  void advance() {
    if (pending > 0 || bytes != 0) return;
    pending = arrivals;
    ++phase;
  }
  void arrive() {
    Block::current().require(pending > 0, "more arrive at an mbarrier than it counts");
    --pending;
    advance();
  }
};

struct Barriers {
  std::map<uint32_t, Barrier> at;
};

// What stands where an mbarrier is: nobody else may write there.
constexpr uint64_t kBarrierBits = 0x6d62617272696572;

inline Barrier& barrier(uint32_t address) {
  Block& block = Block::current();
  auto& all = block.state<Barriers>().at;
  const auto found = all.find(address);
  block.require(found != all.end(), "an mbarrier is used before its initialisation");
  uint64_t bits;
  std::memcpy(&bits, block.bytes(address, 8), 8);
  block.require(bits == kBarrierBits, "an mbarrier was overwritten");
  Barrier& barrier = found->second;
  block.require(block.thread() == barrier.made_by || block.self().syncs > barrier.made_after,
                "an mbarrier is used before the block has met behind its initialisation");
  return barrier;
}

// Copies of one thread from shared memory to global memory: how many of each group are under way.
struct BulkGroups {
  std::vector<std::shared_ptr<int>> groups;
  std::shared_ptr<int> current = std::make_shared<int>(0);  // not committed
};
struct AllBulkGroups {
  std::map<int, BulkGroups> of_thread;
};
inline BulkGroups& bulk_groups() {
  return Block::current().state<AllBulkGroups>().of_thread[thread_index()];
}

inline const TensorMapArguments& arguments(const TensorMap& map) {
  return *reinterpret_cast<const TensorMapArguments*>(map.words);
}

// Calls visit(offset in shared memory, address in global memory or none) for elements of a box.
template <class Visit>
void for_box(const TensorMapArguments& map, const int (&at)[kMapRank], const Visit& visit) {
  const uint32_t size = element_bytes(map.element);
  uint32_t count = 1;
  for (const uint32_t side : map.box) count *= side;
  for (uint32_t number = 0; number < count; ++number) {
    uint32_t rest = number;
    uint8_t* global = static_cast<uint8_t*>(map.base);
    bool is_inside = true;
    for (int d = 0; d < kMapRank; ++d) {
      const int64_t x = int64_t{at[d]} + rest % map.box[d];
      rest /= map.box[d];
      is_inside &= x >= 0 && x < static_cast<int64_t>(map.sizes[d]);
      global += x * static_cast<int64_t>(d == 0 ? size : map.strides[d - 1]);
    }
    uint32_t offset = number * size;
    if (map.swizzle) offset ^= (offset >> 3) & 0x70;  // bits 7-9 onto bits 4-6
    visit(offset, is_inside ? global : nullptr);
  }
}
inline uint32_t box_bytes(const TensorMapArguments& map) {
  uint32_t bytes = element_bytes(map.element);
  for (const uint32_t side : map.box) bytes *= side;
  return bytes;
}

inline void check_box_place(uint32_t address, const TensorMapArguments& map) {
  const uint32_t alignment = map.swizzle ? 1024 : 128;
  Block::current().require(address % alignment == 0, "a box is not aligned in shared memory");
}

inline void start_store(std::function<void()> store) {
  BulkGroups& groups = bulk_groups();
  ++*groups.current;
  Block::current().start_copy([store = std::move(store), group = groups.current] {
    store();
    --*group;
  });
}

}  // namespace mbt_fast::cuda::emulated

namespace mbt_fast::cuda {

inline TensorMap make_tensor_map(const std::string& name, const TensorMapArguments& arguments) {
  check_tensor_map(name, arguments);
  static_assert(sizeof arguments <= sizeof(TensorMap));
  TensorMap map = {};
  std::memcpy(map.words, &arguments, sizeof arguments);
  return map;
}

inline SharedAddress shared_memory() { return emulated::Block::kFirstAddress; }
inline void require_aligned(SharedAddress memory) {
  emulated::Block::current().require(memory % kSwizzleBytes == 0, "shared memory is not aligned");
}

template <class T>
void store_shared(SharedAddress to, const T& value) {
  emulated::Block& block = emulated::Block::current();
  block.require(to % sizeof value == 0, "a store to shared memory is not aligned");
  std::memcpy(block.bytes(to, sizeof value), &value, sizeof value);
  block.mark_stored(to, sizeof value);
}
inline void store_matrices(SharedAddress row, const uint32_t* matrices) {
  emulated::Block::current().require(row % 16 == 0, "a row of a matrix is not aligned");
  const int lane = thread_index() % kWarp;
  for (int i = 0; i < 4; ++i) {
    const float to = shuffle(float_of(row), 8 * i + lane / 4);
    store_shared(bits_of(to) + lane % 4 * 4, matrices[i]);
  }
}
template <class T>
T load_shared(SharedAddress from) {
  emulated::Block& block = emulated::Block::current();
  block.require(from % sizeof(T) == 0, "a load from shared memory is not aligned");
  T value;
  std::memcpy(&value, block.bytes(from, sizeof value), sizeof value);
  return value;
}
inline float load_shared_float(SharedAddress from) { return load_shared<float>(from); }
inline Pair load_shared_pair(SharedAddress from) { return load_shared<Pair>(from); }
inline Words load_shared_words(SharedAddress from) { return load_shared<Words>(from); }
inline void fence_async_proxy() { emulated::Block::current().fence_stores(); }

inline void barrier_init(SharedAddress at, int arrivals) {
  emulated::Block& block = emulated::Block::current();
  block.require(at % 8 == 0, "an mbarrier is not aligned");
  std::memcpy(block.bytes(at, 8), &emulated::kBarrierBits, 8);
  emulated::Barrier made;
  made.arrivals = made.pending = arrivals;
  made.made_by = block.thread();
  made.made_after = block.self().syncs;
  block.state<emulated::Barriers>().at[at] = made;
}
inline void fence_barrier_init() {
  for (auto& [at, barrier] : emulated::Block::current().state<emulated::Barriers>().at)
    barrier.is_fenced |= barrier.made_by == thread_index();
}
inline void barrier_arrive(SharedAddress at) { emulated::barrier(at).arrive(); }
inline void barrier_arrive_expect(SharedAddress at, uint32_t bytes) {
  emulated::Barrier& barrier = emulated::barrier(at);
  barrier.bytes += bytes;
  emulated::Block::current().require(barrier.bytes < 1 << 20, "an mbarrier expects 2^20 bytes");
  barrier.arrive();
}
inline void barrier_wait(SharedAddress at, uint32_t parity) {
  emulated::Barrier& barrier = emulated::barrier(at);
  emulated::Block::current().wait_until(
      "phase " + std::to_string(parity) + " of mbarrier " + std::to_string(at),
      [&barrier, parity] { return (barrier.phase & 1) != parity; });
}

inline void prefetch_tensor_map(const TensorMap&) {}

// The place is undefined from the first moment, and right when the mbarrier has its bytes.
inline void tensor_load(SharedAddress to, const TensorMap& map, SharedAddress at, int x0, int x1,
                        int x2, int x3, int x4) {
  emulated::Block& block = emulated::Block::current();
  const TensorMapArguments& box = emulated::arguments(map);
  emulated::Barrier& barrier = emulated::barrier(at);
  block.require(barrier.is_fenced, "the copy engine is given an mbarrier without a fence");
  emulated::check_box_place(to, box);
  const uint32_t bytes = emulated::box_bytes(box);
  uint8_t* place = block.asynchronous_bytes(to, bytes);
  std::memset(place, 0xff, bytes);
  block.start_copy([=, &barrier, &box] {
    const int x[kMapRank] = {x0, x1, x2, x3, x4};
    const uint32_t size = element_bytes(box.element);
    emulated::for_box(box, x, [&](uint32_t offset, const uint8_t* global) {
      if (global)
        std::memcpy(place + offset, global, size);
      else
        std::memset(place + offset, 0, size);
    });
    barrier.bytes -= bytes;
    barrier.advance();
  });
}
inline void bulk_load(SharedAddress to, const float* from, uint32_t bytes, SharedAddress at) {
  emulated::Block& block = emulated::Block::current();
  emulated::Barrier& barrier = emulated::barrier(at);
  block.require(barrier.is_fenced, "the copy engine is given an mbarrier without a fence");
  block.require(to % 16 == 0 && bytes % 16 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0,
                "a bulk copy is not in units of 16 bytes");
  uint8_t* place = block.asynchronous_bytes(to, bytes);
  std::memset(place, 0xff, bytes);
  block.start_copy([=, &barrier] {
    std::memcpy(place, from, bytes);
    barrier.bytes -= bytes;
    barrier.advance();
  });
}
inline void tensor_store(const TensorMap& map, SharedAddress from, int x0, int x1, int x2, int x3,
                         int x4) {
  const TensorMapArguments& box = emulated::arguments(map);
  emulated::check_box_place(from, box);
  const uint8_t* place =
      emulated::Block::current().asynchronous_bytes(from, emulated::box_bytes(box));
  emulated::start_store([=, &box] {
    const int x[kMapRank] = {x0, x1, x2, x3, x4};
    emulated::for_box(box, x, [&](uint32_t offset, uint8_t* global) {
      if (global) std::memcpy(global, place + offset, element_bytes(box.element));
    });
  });
}
inline void bulk_add(float* to, SharedAddress from, uint32_t bytes) {
  emulated::Block& block = emulated::Block::current();
  block.require(from % 16 == 0 && bytes % 16 == 0 && reinterpret_cast<uintptr_t>(to) % 16 == 0,
                "a bulk copy is not in units of 16 bytes");
  const uint8_t* place = block.asynchronous_bytes(from, bytes);
  emulated::start_store([=] {
    for (uint32_t i = 0; i < bytes / 4; ++i) {
      float value;
      std::memcpy(&value, place + 4 * i, 4);
      to[i] += value;
    }
  });
}
inline void bulk_commit() {
  emulated::BulkGroups& groups = emulated::bulk_groups();
  groups.groups.push_back(groups.current);
  groups.current = std::make_shared<int>(0);
}
template <int kPending>
void bulk_wait() {
  emulated::BulkGroups& groups = emulated::bulk_groups();
  const int count = static_cast<int>(groups.groups.size()) - kPending;
  emulated::Block::current().wait_until("its bulk copies", [&groups, count] {
    for (int i = 0; i < count; ++i)
      if (*groups.groups[i] > 0) return false;
    return true;
  });
}
template <int kPending>
void bulk_wait_read() {
  bulk_wait<kPending>();
}

}  // namespace mbt_fast::cuda
