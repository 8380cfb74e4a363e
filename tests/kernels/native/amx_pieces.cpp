// What test_bottleneck_attention_amx.py calls: pieces of the AMX kernels one by one, and whole heads.
#define MBT_FAST_ISA amx_pieces
#include "cpu/simd/avx512.hpp"
// The vectors, the tiles and their product come before what is written on them, in this order.
#include "cpu/simd/amx_tiles_emulated.hpp"
#include "cpu/simd/amx_multiply.hpp"

#include <vector>

#include "amx_traps.hpp"
#include "cpu/simd/kernels.hpp"
#include "cpu/simd/split.hpp"

namespace {

using namespace mbt_fast::cpu;
using namespace mbt_fast::cpu::amx_pieces;

struct Scratch {
  std::vector<char> bytes;
  explicit Scratch(int64_t size) : bytes(size + 64, '\xff') {}  // NaN in every type
  void* aligned() {
    return bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64);
  }
};

// Part `which` of [count][parts][dim].
template <class AnyRows, class Pointer>
AnyRows rows(Pointer base, int64_t which, int64_t parts, const Head& head, int64_t size) {
  const int64_t stride = parts * head.dim;
  const Pointer own = base + which * head.dim * size;
  return {own, own + head.own * stride * size, stride, stride};
}

void run(const HeadKernels& kernels, Head head, int64_t size, const char* qkv, const char* dout,
         char* out, float* lse, char* dqkv) {
  head.q = rows<Rows>(qkv, 0, 3, head, size);
  head.k = rows<Rows>(qkv, 1, 3, head, size);
  head.v = rows<Rows>(qkv, 2, 3, head, size);
  std::vector<float> shift(head.count), log2_sum(head.count);
  head.shift = shift.data();
  head.log2_sum = log2_sum.data();
  HeadForward forward;
  static_cast<Head&>(forward) = head;
  forward.out = rows<OutRows>(out, 0, 1, head, size);
  forward.lse = lse;
  forward.last = head.count;
  kernels.forward(forward, Scratch(kernels.forward_scratch(head.count, head.dim)).aligned());
  HeadBackward backward;
  static_cast<Head&>(backward) = head;
  backward.out = rows<Rows>(out, 0, 1, head, size);
  backward.dout = rows<Rows>(dout, 0, 1, head, size);
  backward.dq = rows<OutRows>(dqkv, 0, 3, head, size);
  backward.dk = rows<OutRows>(dqkv, 1, 3, head, size);
  backward.dv = rows<OutRows>(dqkv, 2, 3, head, size);
  kernels.backward(backward, Scratch(kernels.backward_scratch(head.count, head.dim)).aligned());
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// to [3][32] bfloat16: the parts of 32 float32.
EXPORT void split(const float* x, uint32_t* to) {
  store_parts(to, 16, Bf16Split<3>::load_along(x, 32));
}

// c [rows][vectors * 16] += a [rows][steps] b [steps][vectors * 16], words of pairs.
EXPORT void multiply_pairs(const uint32_t* a, const uint32_t* b, float* c, int64_t count,
                           int64_t vectors, int64_t steps) {
  const TilesOfThisThread tiles;
  multiply<Bf16Pairs, true>({a, steps}, {b, vectors * 16}, {c, vectors * 16}, count, vectors, steps);
}

// Forward and backward of one head: on emulated tiles, or with the instructions trapped. Returns how
// many were.
EXPORT int64_t run_head(bool emulated, int dtype, int64_t count, int64_t own, int64_t dim,
                        float scale, const char* qkv, const char* dout, char* out, float* lse,
                        char* dqkv) {
  Head head;
  head.own = own;
  head.count = count;
  head.dim = dim;
  head.scale = scale;
  const amx_traps::Traps traps;
  const int64_t before = amx_traps::instructions;
  run(emulated ? kAmxEmulated[dtype] : kAmx[dtype], head, size_of(static_cast<Dtype>(dtype)), qkv,
      dout, out, lse, dqkv);
  return amx_traps::instructions - before;
}
