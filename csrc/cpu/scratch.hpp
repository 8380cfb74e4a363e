// Scratch memory of the threads of a call.
#pragma once

#include <omp.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "arena.hpp"

namespace mbt_fast::cpu {

// One piece for each thread, allocated before they start, so that a failure can be reported. Large
// blocks ask for huge pages: else the first touch of each small page is most of a short call.
class Scratch {
 public:
  Scratch(int threads, int64_t bytes_each) : bytes_each_(round_up(bytes_each, kHugePage / 16)) {
    const int64_t all = threads * bytes_each_;
    const int64_t alignment = all >= kHugePage ? kHugePage : kAlignment;
    block_.reset(std::aligned_alloc(alignment, round_up(all, alignment)));
    if (all && !block_) throw std::bad_alloc();
#if defined(__linux__)
    if (all >= kHugePage) madvise(block_.get(), round_up(all, alignment), MADV_HUGEPAGE);
#endif
#if defined(MBT_FAST_POISON)  // tests: bytes of 0xff are NaN in every type
    std::memset(block_.get(), 0xff, all);
#endif
  }
  void* of_this_thread() const {
    return static_cast<char*>(block_.get()) + omp_get_thread_num() * bytes_each_;
  }

 private:
  static constexpr int64_t kHugePage = 2 << 20;
  struct Free {
    void operator()(void* block) const { std::free(block); }
  };
  int64_t bytes_each_;
  std::unique_ptr<void, Free> block_;
};

}  // namespace mbt_fast::cpu
