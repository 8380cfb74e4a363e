// One thread block on the CPU: its threads are fibers of one thread of the program.
//
// A fiber runs until it waits for something; the others run meanwhile. If all wait, and no copy is
// under way, the program has a deadlock, and the emulation says what each waits for. The order of
// the fibers, and when copies complete, follow from a seed: a program must be right for every one.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace mbt_fast::cuda::emulated {

// Raised in the program that launched a kernel.
struct ProtocolError : std::logic_error {
  using std::logic_error::logic_error;
};

struct Fiber {
  int index = 0;
  ucontext_t context = {};
  std::unique_ptr<char[]> stack;
  std::function<bool()> ready;  // what it waits for, if it does
  std::string waits_for;
  bool is_done = false;
  int syncs = 0;  // of the whole block that it has passed
};

enum class CopyTiming { kAtOnce, kAtLast, kAnyTime };

class Block {
 public:
  static constexpr size_t kStackBytes = 256 * 1024;
  static constexpr int kNap = 32;  // rounds, on average
  static constexpr uint32_t kFirstAddress = 1024;  // so that no pointer is 0

  Block(int index, int grid, int threads, uint32_t shared_bytes, uint32_t seed)
      : index_(index),
        grid_(grid),
        random_(seed),
        shared_(shared_bytes, 0xff),
        unfenced_(shared_bytes / 4, 0),
        fibers_(threads) {
    if (seed == 0) timing_ = CopyTiming::kAtOnce;
    if (seed == 1) timing_ = CopyTiming::kAtLast;
  }

  static Block& current() { return *current_; }
  int index() const { return index_; }
  int grid() const { return grid_; }
  int threads() const { return static_cast<int>(fibers_.size()); }
  Fiber& self() { return *self_; }
  int thread() const { return self_->index; }

  void run(std::function<void()> kernel) {
    current_ = this;
    kernel_ = std::move(kernel);
    for (size_t i = 0; i < fibers_.size(); ++i) start(fibers_[i], static_cast<int>(i));
    std::vector<int> order(fibers_.size());
    std::iota(order.begin(), order.end(), 0);
    while (true) {
      if (timing_ == CopyTiming::kAnyTime) {
        std::shuffle(order.begin(), order.end(), random_);
        if (random_() % kNap == 0) choose_sleepers();
      }
      if (!run_round(order)) break;
    }
    if (!copies_.empty()) throw ProtocolError("a copy outlives its block");
  }

  // Returns when ready() holds; others run meanwhile.
  void wait_until(const std::string& what, std::function<bool()> ready) {
    if (ready()) return;
    self_->ready = std::move(ready);
    self_->waits_for = what;
    swapcontext(&self_->context, &scheduler_);
  }

  [[noreturn]] void fail(const std::string& message) {
    error_ = "block " + std::to_string(index_) + ", thread " +
             std::to_string(self_ ? self_->index : -1) + ": " + message;
    if (!self_) throw ProtocolError(error_);
    while (true) swapcontext(&self_->context, &scheduler_);  // and never comes back
  }
  void require(bool holds, const char* message) {
    if (!holds) fail(message);
  }

  // Something that the machine does by itself, now or later.
  void start_copy(std::function<void()> complete) {
    if (timing_ == CopyTiming::kAtOnce) return complete();
    copies_.push_back(std::move(complete));
  }

  uint8_t* bytes(uint32_t address, uint32_t count) {
    const uint64_t begin = uint64_t{address} - kFirstAddress;
    if (address < kFirstAddress || begin + count > shared_.size())
      fail("shared memory is left, at address " + std::to_string(address));
    return shared_.data() + begin;
  }
  // A store by a thread: the asynchronous proxy sees it after that thread's fence.
  void mark_stored(uint32_t address, uint32_t count) {
    for (uint32_t word = 0; word < count / 4; ++word)
      unfenced_[(address - kFirstAddress) / 4 + word] = static_cast<uint16_t>(thread() + 1);
    stored_.insert(thread());
  }
  void fence_stores() {
    if (!stored_.erase(thread())) return;
    std::replace(unfenced_.begin(), unfenced_.end(), static_cast<uint16_t>(thread() + 1),
                 uint16_t{0});
  }
  // What wgmma or the copy engine touches.
  uint8_t* asynchronous_bytes(uint32_t address, uint32_t count) {
    uint8_t* found = bytes(address, count);
    if (stored_.empty()) return found;
    const uint32_t first = (address - kFirstAddress) / 4;
    for (uint32_t word = first; word < first + count / 4; ++word)
      require(unfenced_[word] == 0, "a store to shared memory has no fence_async_proxy behind it");
    return found;
  }

  // Any state that an instruction keeps for the block, made on first use.
  template <class State>
  State& state() {
    static const char kKey = 0;
    std::shared_ptr<void>& entry = states_[&kKey];
    if (!entry) entry = std::make_shared<State>();
    return *static_cast<State*>(entry.get());
  }

 private:
  static void enter() {
    Block& block = *current_;
    block.kernel_();
    block.self_->is_done = true;
    swapcontext(&block.self_->context, &block.scheduler_);
  }

  void start(Fiber& fiber, int index) {
    fiber.index = index;
    fiber.stack.reset(new char[kStackBytes]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber.context, &Block::enter, 0);
  }

  // Whether there is more to do.
  bool run_round(const std::vector<int>& order) {
    bool has_run = false, is_alive = false;
    for (const int index : order) {
      Fiber& fiber = fibers_[index];
      if (fiber.is_done) continue;
      is_alive = true;
      if (index >= first_sleeper_ && index < end_of_sleepers_) continue;
      if (fiber.ready && !fiber.ready()) continue;
      fiber.ready = nullptr;
      self_ = &fiber;
      swapcontext(&scheduler_, &fiber.context);
      self_ = nullptr;
      if (!error_.empty()) throw ProtocolError(error_);
      has_run = true;
    }
    if (!is_alive) return false;
    const bool lucky = timing_ == CopyTiming::kAnyTime && random_() % 2 == 0;
    if (!copies_.empty() && (lucky || !has_run)) {
      complete_one();
    } else if (!has_run && end_of_sleepers_ > 0) {
      end_of_sleepers_ = 0;
    } else if (!has_run) {
      throw ProtocolError(deadlock());
    }
    return true;
  }

  // A warp group, or a warp, that does not run for a while: others get as far ahead as they can.
  void choose_sleepers() {
    const int size = random_() % 2 == 0 ? 128 : 32;
    first_sleeper_ = static_cast<int>(random_() % fibers_.size()) / size * size;
    end_of_sleepers_ = first_sleeper_ + size;
  }

  void complete_one() {
    const size_t chosen = timing_ == CopyTiming::kAnyTime ? random_() % copies_.size() : 0;
    const auto complete = std::move(copies_[chosen]);
    copies_.erase(copies_.begin() + static_cast<long>(chosen));
    complete();
  }

  std::string deadlock() const {
    std::map<std::string, std::pair<int, int>> waiting;  // first thread and count
    for (const Fiber& fiber : fibers_) {
      if (fiber.is_done) continue;
      auto& entry = waiting.try_emplace(fiber.waits_for, fiber.index, 0).first->second;
      ++entry.second;
    }
    std::string text = "block " + std::to_string(index_) + ": deadlock";
    for (const auto& [what, entry] : waiting)
      text += "; " + std::to_string(entry.second) + " threads from " + std::to_string(entry.first) +
              " wait for " + what;
    return text;
  }

  static inline Block* current_ = nullptr;
  int index_, grid_;
  std::mt19937 random_;
  CopyTiming timing_ = CopyTiming::kAnyTime;
  int first_sleeper_ = 0, end_of_sleepers_ = 0;
  std::vector<uint8_t> shared_;     // all bits set: NaN in every type
  std::vector<uint16_t> unfenced_;  // per word: 1 + the thread that stored it
  std::set<int> stored_;            // threads with stores behind which no fence is yet
  std::vector<Fiber> fibers_;
  Fiber* self_ = nullptr;
  ucontext_t scheduler_ = {};
  std::function<void()> kernel_;
  std::vector<std::function<void()>> copies_;
  std::map<const void*, std::shared_ptr<void>> states_;
  std::string error_;
};

}  // namespace mbt_fast::cuda::emulated
