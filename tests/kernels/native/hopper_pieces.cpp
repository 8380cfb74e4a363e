// What tests/kernels/cuda/test_emulation.py calls: a kernel per instruction, and programs that misuse it.
#include <cstring>
#include <string>

#include "cuda/hopper/instructions.cuh"

using namespace mbt_fast::cuda;
namespace em = mbt_fast::cuda::emulated;

namespace {

TensorMap matrix(void* base, int64_t rows, int64_t columns, uint32_t box_rows) {
  const uint64_t width = columns, height = rows, pitch = 2 * columns;
  return make_tensor_map("matrix", {MapElement::kBfloat16,
                                    base,
                                    {width, height, 1, 1, 1},
                                    {pitch, pitch, pitch, pitch},
                                    {64, box_rows, 1, 1, 1},
                                    true});
}

struct ProductCall {
  void *a, *b;
  float* d;
  int depth;
};

// d [64, N] += a b, as one warp group. A matrix that is major in MN is stored [depth, columns].
template <class Element, Major kA, Major kB, bool kRegisters, int kN>
void product(const ProductCall& call) {
  const uint32_t a_rows = kA == Major::kK ? 64 : call.depth, a_columns = 64 + call.depth - a_rows;
  const uint32_t b_rows = kB == Major::kK ? kN : call.depth, b_columns = kN + call.depth - b_rows;
  const TensorMap a_map = matrix(call.a, a_rows, a_columns, a_rows);
  const TensorMap b_map = matrix(call.b, b_rows, b_columns, b_rows);
  em::launch(1, kWarpGroup, kSharedMemory, [&] {
    const SharedAddress barrier = shared_memory(), a = barrier + 1024;
    const SharedAddress b = a + (a_columns + 63) / 64 * a_rows * kPanelRowBytes;
    if (thread_index() == 0) {
      barrier_init(barrier, 1);
      fence_barrier_init();
    }
    sync_threads();
    if (thread_index() == 0) {
      const uint32_t a_panels = (a_columns + 63) / 64, b_panels = (b_columns + 63) / 64;
      barrier_arrive_expect(barrier, (a_panels * a_rows + b_panels * b_rows) * kPanelRowBytes);
      for (uint32_t i = 0; i < a_panels; ++i)
        tensor_load(a + i * a_rows * kPanelRowBytes, a_map, barrier, i * 64, 0, 0, 0, 0);
      for (uint32_t i = 0; i < b_panels; ++i)
        tensor_load(b + i * b_rows * kPanelRowBytes, b_map, barrier, i * 64, 0, 0, 0, 0);
    }
    barrier_wait(barrier, 0);
    float d[kN / 2];
    const int lane = thread_index();
    for (int i = 0; i < kN / 2; ++i)
      d[i] = call.d[em::fragment_row(lane, i) * kN + em::fragment_column(lane, i)];
    uint32_t fragment[16][4];
    wgmma_fence();
    for (int step = 0; step < call.depth / static_cast<int>(kStep); ++step) {
      const uint64_t right = operand<kB>(b, b_rows, step);
      if constexpr (kRegisters) {
        const auto* from = static_cast<const uint16_t*>(call.a) + step * kStep;
        for (int i = 0; i < 8; i += 2)
          std::memcpy(&fragment[step][i / 2],
                      from + em::fragment_row(lane, i) * call.depth + em::fragment_column(lane, i),
                      4);
        wgmma<Element, kB>(d, fragment[step], right, true);
      } else {
        wgmma<Element, kA, kB>(d, operand<kA>(a, a_rows, step), right, true);
      }
    }
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < kN / 2; ++i)
      call.d[em::fragment_row(lane, i) * kN + em::fragment_column(lane, i)] = d[i];
  });
}

template <class Element, int kN>
void product_of(int a_major, int b_major, bool registers, const ProductCall& call) {
  constexpr Major kK = Major::kK, kMN = Major::kMN;
  if (registers && b_major) return product<Element, kK, kMN, true, kN>(call);
  if (registers) return product<Element, kK, kK, true, kN>(call);
  if (a_major && b_major) return product<Element, kMN, kMN, false, kN>(call);
  if (a_major) return product<Element, kMN, kK, false, kN>(call);
  if (b_major) return product<Element, kK, kMN, false, kN>(call);
  return product<Element, kK, kK, false, kN>(call);
}

struct Map5 {
  void* base;
  int64_t sizes[5], strides[4];
  int32_t box[5], at[5];
};

// The programs that the emulation must refuse; each does one thing wrong.
void misuse(const std::string& name) {
  static uint16_t zeros[64 * 64];
  static float sums[64];
  const TensorMap map = matrix(zeros, 64, 64, 64);
  em::launch(1, 2 * kWarpGroup, kSharedMemory, [&] {
    const SharedAddress barrier = shared_memory(), panel = barrier + 1024;
    const uint64_t a = operand<Major::kK>(panel, 64, 0);
    const auto multiply = [](float (&d)[32], uint64_t left, uint64_t right) {
      wgmma<Bfloat16, Major::kK, Major::kK>(d, left, right, false);
    };
    float d[32] = {};
    const bool is_first = thread_index() == 0, is_first_group = thread_index() < kWarpGroup;
    if (is_first) barrier_init(barrier, 1);
    if (is_first && name != "barrier without fence") fence_barrier_init();
    if (name != "barrier not yet visible") sync_threads();
    if (name == "barrier not yet visible") barrier_wait(barrier, 0);
    if (name == "nobody arrives") barrier_wait(barrier, 0);
    if (name == "barrier without initialisation") barrier_arrive(barrier + 8);
    if (name == "too many arrive" && is_first) {
      barrier_init(barrier + 8, 2);
      for (int i = 0; i < 3; ++i) barrier_arrive_expect(barrier + 8, 16);
    }
    if (name == "barrier overwritten" && is_first) {
      store_shared(barrier, 1u);
      barrier_arrive(barrier);
    }
    if (name == "barrier without fence" && is_first)
      tensor_load(panel, map, barrier, 0, 0, 0, 0, 0);
    if (name == "copy outlives block" && is_first) {
      barrier_arrive_expect(barrier, 64 * kPanelRowBytes);
      tensor_load(panel, map, barrier, 0, 0, 0, 0, 0);
    }
    if (name == "box not aligned" && is_first)
      tensor_load(panel + 128, map, barrier, 0, 0, 0, 0, 0);
    if (name == "store outlives block" && is_first) {
      bulk_add(sums, panel, 256);
      bulk_commit();
    }
    if (name == "memory not aligned") require_aligned(barrier + 512);
    if (name == "outside shared memory") store_shared(kSharedMemory + 1024, 1u);
    if (name == "named barrier counts") named_barrier_sync(1, is_first ? 128 : 256);
    if (name == "named barrier of some" && is_first_group) named_barrier_sync(1, 256);
    if (name == "warp of some" && is_first) sync_warp();
    if (name == "wgmma of some" && is_first) {
      wgmma_fence();
      multiply(d, a, a);
      wgmma_commit();
      wgmma_wait<0>();
    }
    if (name == "wgmma without fence") multiply(d, a, a);
    if (name == "wgmma without wait") {
      wgmma_fence();
      multiply(d, a, a);
      wgmma_commit();
    }
    if (name == "wgmma without commit") {
      wgmma_fence();
      multiply(d, a, a);
      wgmma_wait<0>();
    }
    if (name == "lanes disagree") {
      wgmma_fence();
      multiply(d, a, is_first ? a + 2 : a);
      wgmma_commit();
      wgmma_wait<0>();
    }
    if (name == "accumulator touched") {
      wgmma_fence();
      multiply(d, a, a);
      wgmma_commit();
      d[3] = 1;
      wgmma_wait<0>();
    }
    if (name == "register touched") {
      uint32_t fragment[4] = {};
      wgmma_fence();
      wgmma<Bfloat16, Major::kK>(d, fragment, a, false);
      wgmma_commit();
      fragment[2] = 1;
      wgmma_wait<0>();
    }
    if (name == "operand overwritten") {
      wgmma_fence();
      multiply(d, a, a);
      wgmma_commit();
      store_shared(panel + 16 * thread_index(), 1u);
      fence_async_proxy();
      wgmma_wait<0>();
    }
    if (name == "store without fence") {
      store_shared(panel + 16 * thread_index(), 1u);
      sync_threads();
      wgmma_fence();
      multiply(d, a, a);
    }
  });
}

}  // namespace

extern "C" {

void set_seed(uint32_t seed) { em::settings.seed = seed; }

void multiply(bool is_half, int columns, int a_major, int b_major, bool registers, void* a, void* b,
              float* d, int depth) {
  const ProductCall call = {a, b, d, depth};
  if (is_half) return product_of<Float16, 64>(a_major, b_major, registers, call);
  if (columns == 64) return product_of<Bfloat16, 64>(a_major, b_major, registers, call);
  if (columns == 128) return product_of<Bfloat16, 128>(a_major, b_major, registers, call);
  if (b_major == 0) {
    if (columns == 176) return product<Bfloat16, Major::kK, Major::kK, false, 176>(call);
    return product<Bfloat16, Major::kK, Major::kK, false, 208>(call);
  }
}

// One box to shared memory, and what lies there, to `out`.
void load_box(const Map5* map, bool swizzle, uint8_t* out, int bytes) {
  TensorMapArguments arguments = {MapElement::kBfloat16, map->base, {}, {}, {}, swizzle};
  std::copy_n(map->sizes, 5, arguments.sizes);
  std::copy_n(map->strides, 4, arguments.strides);
  std::copy_n(map->box, 5, arguments.box);
  const TensorMap made = make_tensor_map("map", arguments);
  em::launch(1, kWarp, kSharedMemory, [&] {
    const SharedAddress barrier = shared_memory(), place = barrier + 1024;
    if (thread_index() == 0) {
      barrier_init(barrier, 1);
      fence_barrier_init();
    }
    sync_threads();
    if (thread_index() == 0) {
      const int32_t* at = map->at;
      barrier_arrive_expect(barrier, bytes);
      tensor_load(place, made, barrier, at[0], at[1], at[2], at[3], at[4]);
      barrier_wait(barrier, 0);
      std::memcpy(out, em::Block::current().bytes(place, bytes), bytes);
    }
  });
}

// sums += values, through shared memory.
void add_bulk(float* sums, const float* values, int count) {
  em::launch(1, kWarp, kSharedMemory, [&] {
    for (int i = thread_index(); i < count; i += kWarp)
      store_shared(shared_memory() + 4 * i, values[i]);
    fence_async_proxy();
    sync_warp();
    if (thread_index() == 0) {
      bulk_add(sums, shared_memory(), 4 * count);
      bulk_commit();
      bulk_wait<0>();
    }
  });
}

// Four matrices of 8 x 8; element j of row r of matrix i is 64 i + 8 r + j. The row that lane n names
// is at chunk 5 n modulo 32.
void store_numbered_matrices(uint16_t* out) {
  em::launch(1, kWarp, kSharedMemory, [&] {
    const uint32_t lane = thread_index();
    uint32_t matrices[4];
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t number = 64 * i + 2 * lane;
      matrices[i] = number | (number + 1) << 16;
    }
    store_matrices(shared_memory() + 5 * lane % 32 * 16, matrices);
    sync_warp();
    if (lane == 0) std::memcpy(out, em::Block::current().bytes(shared_memory(), 512), 512);
  });
}

void round_trip(bool is_half, const float* values, uint16_t* bits, float* back, int count) {
  for (int i = 0; i < count; ++i) {
    bits[i] = is_half ? rounded<Float16>(values[i]) : rounded<Bfloat16>(values[i]);
    back[i] = is_half ? to_float<Float16>(bits[i]) : to_float<Bfloat16>(bits[i]);
  }
}

// The error's message, or "".
const char* error_of(const char* name) {
  static std::string message;
  message.clear();
  try {
    misuse(name);
  } catch (const em::ProtocolError& error) {
    message = error.what();
  }
  return message.c_str();
}
}
