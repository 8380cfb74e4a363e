// wgmma, asynchronous and as late as can be: a product is computed when somebody waits for it.
//
// Until a thread has waited, its accumulators hold NaN, and it may touch neither them nor the
// registers of the other operand; nor may anybody change the operands in shared memory.
#pragma once

#include <deque>

#include "arithmetic.hpp"
#include "memory.hpp"

namespace mbt_fast::cuda::emulated {

constexpr uint32_t kInFlight = 0x7fc0dead;  // a NaN

struct Operands {
  uint64_t a = 0, b = 0;
  bool has_registers = false, accumulates = false, is_half = false;
  Major a_major = Major::kK, b_major = Major::kK;
  int columns = 0;

  bool operator==(const Operands& o) const {
    return a == o.a && b == o.b && has_registers == o.has_registers &&
           accumulates == o.accumulates && is_half == o.is_half && a_major == o.a_major &&
           b_major == o.b_major && columns == o.columns;
  }
};

struct LaneProduct {  // one thread's share
  float* d = nullptr;
  const uint32_t* a = nullptr;
  uint32_t a_when_issued[4] = {};
};

struct Product {
  Operands operands;
  std::array<LaneProduct, 128> lanes;
  std::shared_ptr<Product> before;  // the one in flight whose result this one adds to
  std::vector<float> d;             // [64, columns]: first the values to add to, then the result
  uint64_t checksum = 0;
  int issued = 0;
  bool is_done = false;
};

// Row and column that a register of a lane holds: PTX ISA, fragments of wgmma.
inline int fragment_row(int lane, int index) {
  return lane / 32 * 16 + lane % 32 / 4 + (index / 2 % 2) * 8;
}
inline int fragment_column(int lane, int index) { return index / 4 * 8 + lane % 4 * 2 + index % 2; }

// Byte offset of an element in an operand: `mn` along rows of the result (or its columns), `k`
// along the summed dimension.
inline uint32_t operand_address(uint64_t descriptor, Major major, int mn, int k) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const uint32_t leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
  const uint32_t stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const uint32_t linear =
      major == Major::kK
          ? start + mn / 8 * stride + mn % 8 * kPanelRowBytes + k * 2
          : start + mn / 64 * leading + mn % 64 * 2 + k / 8 * stride + k % 8 * kPanelRowBytes;
  return linear ^ (linear >> 3 & 0x70);
}

// An operand as [mn, 16] floats.
inline std::vector<float> read_operand(uint64_t descriptor, Major major, int count, bool is_half) {
  Block& block = Block::current();
  block.require(descriptor >> 62 == 1, "the emulation knows the 128-byte swizzle only");
  block.require((descriptor >> 49 & 7) == 0, "the emulation knows base offset 0 only");
  std::vector<float> values(static_cast<size_t>(count) * kStep);
  for (int mn = 0; mn < count; ++mn)
    for (int k = 0; k < static_cast<int>(kStep); ++k) {
      uint16_t bits;
      const uint32_t address = operand_address(descriptor, major, mn, k);
      std::memcpy(&bits, block.asynchronous_bytes(address & ~3u, 4) + (address & 2), 2);
      values[mn * kStep + k] = is_half ? to_float<Float16>(bits) : to_float<Bfloat16>(bits);
    }
  return values;
}

inline std::vector<float> read_a(const Product& product) {
  const Operands& operands = product.operands;
  if (!operands.has_registers)
    return read_operand(operands.a, operands.a_major, 64, operands.is_half);
  std::vector<float> values(64 * kStep);
  for (int lane = 0; lane < 128; ++lane)
    for (int index = 0; index < 8; ++index) {
      const auto bits =
          static_cast<uint16_t>(product.lanes[lane].a_when_issued[index / 2] >> 16 * (index % 2));
      values[fragment_row(lane, index) * kStep + fragment_column(lane, index)] =
          operands.is_half ? to_float<Float16>(bits) : to_float<Bfloat16>(bits);
    }
  return values;
}

inline uint64_t checksum(const Operands& operands) {
  uint64_t sum = 0;
  const auto add = [&](const std::vector<float>& values) {
    for (const float value : values) sum = sum * 0x9e3779b97f4a7c15 + bits_of(value);
  };
  if (!operands.has_registers)
    add(read_operand(operands.a, operands.a_major, 64, operands.is_half));
  add(read_operand(operands.b, operands.b_major, operands.columns, operands.is_half));
  return sum;
}

inline void compute(Product& product) {
  const Operands& operands = product.operands;
  const int columns = operands.columns;
  Block::current().require(checksum(operands) == product.checksum,
                           "shared memory was changed under a product in flight");
  if (!operands.accumulates)
    product.d.assign(64 * columns, 0.0f);
  else if (product.before)
    product.d = product.before->d;
  product.before.reset();
  const std::vector<float> a = read_a(product);
  const std::vector<float> b =
      read_operand(operands.b, operands.b_major, columns, operands.is_half);
  for (int row = 0; row < 64; ++row)
    for (int column = 0; column < columns; ++column) {
      float sum = 0;
      for (int k = 0; k < static_cast<int>(kStep); ++k)
        sum += a[row * kStep + k] * b[column * kStep + k];
      product.d[row * columns + column] += sum;
    }
  product.is_done = true;
}

struct Lane {
  uint64_t issued = 0, delivered = 0;  // products
  std::vector<uint64_t> groups;        // how many products were issued at each commit
  bool is_fenced = false;
};

class WarpGroup {
 public:
  Lane& lane(int number) { return lanes_[number]; }

  // The latest product in flight of this lane with these accumulators.
  std::shared_ptr<Product> in_flight(int number, const float* d) {
    const Lane& lane = lanes_[number];
    for (uint64_t i = lane.issued; i > lane.delivered; --i)
      if (at(i - 1)->lanes[number].d == d) return at(i - 1);
    return nullptr;
  }

  std::shared_ptr<Product> issue(int number, const Operands& operands) {
    Lane& lane = lanes_[number];
    const uint64_t index = lane.issued++;
    if (index - first_ == products_.size()) {
      auto product = std::make_shared<Product>();
      product->operands = operands;
      product->d.resize(64 * operands.columns);
      product->checksum = checksum(operands);
      products_.push_back(product);
    }
    const auto product = at(index);
    Block::current().require(product->operands == operands,
                             "the threads of a warp group disagree on a wgmma");
    ++product->issued;
    return product;
  }

  bool all_issued(uint64_t end) {
    for (uint64_t i = first_; i < end; ++i)
      if (at(i)->issued < 128) return false;
    return true;
  }

  void deliver(int number, uint64_t end) {
    for (uint64_t i = first_; i < end; ++i)
      if (!at(i)->is_done) compute(*at(i));
    Lane& lane = lanes_[number];
    for (; lane.delivered < end; ++lane.delivered) hand_over(number, lane.delivered);
    uint64_t all = lanes_[0].delivered;
    for (const Lane& other : lanes_) all = std::min(all, other.delivered);
    for (; first_ < all; ++first_) products_.pop_front();
  }

 private:
  std::shared_ptr<Product>& at(uint64_t index) { return products_[index - first_]; }

  void hand_over(int number, uint64_t index) {
    Block& block = Block::current();
    const Product& product = *at(index);
    const LaneProduct& mine = product.lanes[number];
    for (int i = 0; mine.a && i < 4; ++i)
      block.require(mine.a[i] == mine.a_when_issued[i], "a register was changed under a wgmma");
    for (uint64_t later = index + 1; later < lanes_[number].issued; ++later)
      if (at(later)->lanes[number].d == mine.d) return;  // which has this result in its own
    const int columns = product.operands.columns;
    for (int i = 0; i < columns / 2; ++i) {
      block.require(bits_of(mine.d[i]) == kInFlight, "an accumulator was changed under a wgmma");
      mine.d[i] = product.d[fragment_row(number, i) * columns + fragment_column(number, i)];
    }
  }

  std::array<Lane, 128> lanes_;
  std::deque<std::shared_ptr<Product>> products_;
  uint64_t first_ = 0;  // index of the first of them
};

struct WarpGroups {
  std::array<WarpGroup, 8> all;
};
inline WarpGroup& warp_group() {
  return Block::current().state<WarpGroups>().all[thread_index() / kWarpGroup];
}
// What a thread may not leave behind when it ends.
inline void check_finished() {
  Block& block = Block::current();
  const Lane& lane = warp_group().lane(thread_index() % kWarpGroup);
  block.require(lane.issued == lane.delivered, "a thread ends before its wgmma");
}
inline int lane_of_group() { return thread_index() % kWarpGroup; }

inline void issue(float* d, const uint32_t* a, const Operands& operands) {
  Block& block = Block::current();
  WarpGroup& group = warp_group();
  const int number = lane_of_group();
  block.require(group.lane(number).is_fenced, "wgmma_fence is missing before a wgmma");
  const auto before = group.in_flight(number, d);
  const auto product = group.issue(number, operands);
  LaneProduct& mine = product->lanes[number];
  mine.d = d;
  mine.a = a;
  if (a) std::copy(a, a + 4, mine.a_when_issued);
  block.require(product->issued == 1 || product->before == before,
                "the threads of a warp group disagree on accumulators in flight");
  product->before = before;
  for (int i = 0; i < operands.columns / 2; ++i) {
    if (before) {
      block.require(bits_of(d[i]) == kInFlight, "an accumulator was changed under a wgmma");
    } else {
      product->d[fragment_row(number, i) * operands.columns + fragment_column(number, i)] = d[i];
      d[i] = float_of(kInFlight);
    }
  }
}

}  // namespace mbt_fast::cuda::emulated

namespace mbt_fast::cuda {

inline void wgmma_fence() {
  emulated::warp_group().lane(emulated::lane_of_group()).is_fenced = true;
}
inline void wgmma_commit() {
  emulated::Lane& lane = emulated::warp_group().lane(emulated::lane_of_group());
  lane.groups.push_back(lane.issued);
}
template <int kPending>
void wgmma_wait() {
  emulated::WarpGroup& group = emulated::warp_group();
  const int number = emulated::lane_of_group();
  emulated::Lane& lane = group.lane(number);
  lane.is_fenced = false;  // what follows may touch registers
  const auto count = static_cast<int>(lane.groups.size()) - kPending;
  if (count <= 0) return;
  const uint64_t end = lane.groups[count - 1];
  emulated::Block::current().wait_until("the other threads of its wgmma",
                                        [&group, end] { return group.all_issued(end); });
  group.deliver(number, end);
  lane.groups.erase(lane.groups.begin(), lane.groups.begin() + count);
}
template <class Registers>
void keep_in_place(Registers&) {}

template <class Element>
emulated::Operands operands_of(uint64_t b, Major b_major, int columns, bool accumulate) {
  emulated::Operands operands;
  operands.b = b;
  operands.b_major = b_major;
  operands.columns = columns;
  operands.accumulates = accumulate;
  operands.is_half = std::is_same_v<Element, Float16>;
  return operands;
}
template <class Element, Major kA, Major kB, int kHalf>
void wgmma(float (&d)[kHalf], uint64_t a, uint64_t b, bool accumulate) {
  emulated::Operands operands = operands_of<Element>(b, kB, 2 * kHalf, accumulate);
  operands.a = a;
  operands.a_major = kA;
  emulated::issue(d, nullptr, operands);
}
template <class Element, Major kB, int kHalf>
void wgmma(float (&d)[kHalf], const uint32_t* a, uint64_t b, bool accumulate) {
  emulated::Operands operands = operands_of<Element>(b, kB, 2 * kHalf, accumulate);
  operands.has_registers = true;
  emulated::issue(d, a, operands);
}

}  // namespace mbt_fast::cuda
