// The functions of instructions.cuh but wgmma, as inline PTX.
#pragma once

namespace mbt_fast::cuda {

MBT_DEVICE int thread_index() { return threadIdx.x; }
MBT_DEVICE int block_index() { return blockIdx.x; }
MBT_DEVICE int grid_size() { return gridDim.x; }

// Begins at a multiple of 1024 where the block has no static shared memory.
MBT_DEVICE SharedAddress shared_memory() {
  extern __shared__ __align__(1024) uint8_t mbt_shared_memory[];
  return static_cast<SharedAddress>(__cvta_generic_to_shared(mbt_shared_memory));
}

// The pattern of the swizzle repeats from there on. The compiler takes the alignment for granted.
MBT_DEVICE void require_aligned(SharedAddress memory) {
  asm volatile("" : "+r"(memory));
  if (memory % kSwizzleBytes != 0) __trap();
}

MBT_DEVICE void store_shared(SharedAddress to, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}
MBT_DEVICE void store_shared(SharedAddress to, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}
MBT_DEVICE void store_shared(SharedAddress to, const Words& value) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}
MBT_DEVICE void store_shared(SharedAddress to, const Floats& value) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(value.x), "f"(value.y),
               "f"(value.z), "f"(value.w)
               : "memory");
}
// Four 8 x 8 matrices of two-byte elements: register i of all lanes is matrix i, as the accumulators
// of a product lie. Lane 8 i + r says where row r of matrix i goes, 16 bytes.
MBT_DEVICE void store_matrices(SharedAddress row, const uint32_t* matrices) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
               : "memory");
}
MBT_DEVICE Pair load_shared_pair(SharedAddress from) {
  Pair value;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
               : "=f"(value.x), "=f"(value.y)
               : "r"(from)
               : "memory");
  return value;
}
MBT_DEVICE float load_shared_float(SharedAddress from) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(from) : "memory");
  return value;
}
MBT_DEVICE Words load_shared_words(SharedAddress from) {
  Words value;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(from)
               : "memory");
  return value;
}

MBT_DEVICE void sync_threads() { __syncthreads(); }
MBT_DEVICE void sync_warp() { __syncwarp(); }
MBT_DEVICE void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
MBT_DEVICE void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
MBT_DEVICE float shuffle_xor(float value, int lanes) {
  return __shfl_xor_sync(0xffffffff, value, lanes);
}
MBT_DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffff, value, lane); }

// A value that all threads of the warp share: the compiler learns that branches do not diverge.
MBT_DEVICE int uniform(int value) { return __shfl_sync(0xffffffff, value, 0); }

// The same value, of which the compiler keeps nothing in registers that it computed before.
MBT_DEVICE int computed_here(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

MBT_DEVICE void barrier_init(SharedAddress barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
MBT_DEVICE void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
MBT_DEVICE void barrier_arrive(SharedAddress barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
MBT_DEVICE void barrier_arrive_expect(SharedAddress barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Returns when the phase of this parity is complete.
MBT_DEVICE void barrier_wait(SharedAddress barrier, uint32_t parity) {
  uint32_t complete = 0;
  while (!complete) {
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
        "selp.u32 %0, 1, 0, complete;\n"
        "}\n"
        : "=r"(complete)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}

MBT_DEVICE void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
MBT_DEVICE void tensor_load(SharedAddress to, const TensorMap& map, SharedAddress barrier, int x0,
                            int x1, int x2, int x3, int x4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
      : "memory");
}
// `bytes` of contiguous memory; addresses and sizes are multiples of 16.
MBT_DEVICE void bulk_load(SharedAddress to, const float* from, uint32_t bytes,
                          SharedAddress barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
MBT_DEVICE void tensor_store(const TensorMap& map, SharedAddress from, int x0, int x1, int x2,
                             int x3, int x4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::
          "l"(&map),
      "r"(from), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
      : "memory");
}
// to[i] += from[i] for `bytes` / 4 floats; atomic, in no order.
MBT_DEVICE void bulk_add(float* to, SharedAddress from, uint32_t bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
      "r"(from), "r"(bytes)
      : "memory");
}
MBT_DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until at most kPending groups of this thread have not yet read their shared memory.
template <int kPending>
MBT_DEVICE void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
// Until at most kPending groups of this thread are not complete.
template <int kPending>
MBT_DEVICE void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}
// Orders this thread's stores to shared memory before what wgmma and the copy engine do with it.
MBT_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int kRegisters>
MBT_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
MBT_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

MBT_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// The larger one; NaN if one is.
MBT_DEVICE float max_or_nan(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}
MBT_DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
MBT_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
MBT_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two elements in one register, the first in its lower half.
template <class Element>
MBT_DEVICE uint32_t pack(float first, float second);
template <>
MBT_DEVICE uint32_t pack<Bfloat16>(float first, float second) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}
template <>
MBT_DEVICE uint32_t pack<Float16>(float first, float second) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}

template <class Element>
MBT_DEVICE float to_float(uint16_t bits);
template <>
MBT_DEVICE float to_float<Bfloat16>(uint16_t bits) {
  return __uint_as_float(uint32_t{bits} << 16);
}
template <>
MBT_DEVICE float to_float<Float16>(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

}  // namespace mbt_fast::cuda
