// wgmma as inline PTX: d += a b, d of 64 rows in the registers of a warp group, kN columns.
//
// An asm statement names each register, so there is one line per width at the end of this file.
#pragma once

namespace mbt_fast::cuda {

// Before the first wgmma, and where registers that it reads or writes were touched.
MBT_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
MBT_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most kPending groups are not complete.
template <int kPending>
MBT_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving reads and writes of registers across a fence or a wait.
template <int kCount>
MBT_DEVICE void keep_in_place(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kCount>
MBT_DEVICE void keep_in_place(uint32_t (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

#define MBT_D1 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MBT_D2 MBT_D1 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define MBT_D3 MBT_D2 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define MBT_D4 MBT_D3 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define MBT_D5 MBT_D4 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define MBT_D6 MBT_D5 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define MBT_D7 MBT_D6 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define MBT_D8 MBT_D7 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define MBT_D9 MBT_D8 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define MBT_D10 MBT_D9 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define MBT_D11 MBT_D10 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define MBT_D12 MBT_D11 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define MBT_D13 MBT_D12 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define MBT_F8(i)                                                                          \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define MBT_F1_ MBT_F8(0)
#define MBT_F2_ MBT_F1_, MBT_F8(8)
#define MBT_F3_ MBT_F2_, MBT_F8(16)
#define MBT_F4_ MBT_F3_, MBT_F8(24)
#define MBT_F5_ MBT_F4_, MBT_F8(32)
#define MBT_F6_ MBT_F5_, MBT_F8(40)
#define MBT_F7_ MBT_F6_, MBT_F8(48)
#define MBT_F8_ MBT_F7_, MBT_F8(56)
#define MBT_F9_ MBT_F8_, MBT_F8(64)
#define MBT_F10_ MBT_F9_, MBT_F8(72)
#define MBT_F11_ MBT_F10_, MBT_F8(80)
#define MBT_F12_ MBT_F11_, MBT_F8(88)
#define MBT_F13_ MBT_F12_, MBT_F8(96)

#define MBT_WGMMA_SHARED(N, CHUNKS, TYPE, I0, I1, I2, I3, I4)                                    \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " I2 ", 0;\n"                                    \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" MBT_D##CHUNKS \
               "}, " I0 ", " I1 ", p, 1, 1, " I3 ", " I4 ";\n}\n"                                 \
               : MBT_F##CHUNKS##_                                                                  \
               : "l"(a), "l"(b), "r"(accumulate), "n"(kTransposeA), "n"(kTransposeB))

#define MBT_WGMMA_REGISTERS(N, CHUNKS, TYPE, I0, I1, I2, I3, I4, I5, I6)                          \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " I5 ", 0;\n"                                    \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" MBT_D##CHUNKS \
               "}, {" I0 ", " I1 ", " I2 ", " I3 "}, " I4 ", p, 1, 1, " I6 ";\n}\n"               \
               : MBT_F##CHUNKS##_                                                                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),              \
                 "n"(kTransposeB))

template <class Element, int kN>
struct Wgmma;

// CHUNKS: N / 16, of eight registers each. I0 to I6: the operands behind the N / 2 of the result.
#define MBT_WGMMA(N, CHUNKS, I0, I1, I2, I3, I4, I5, I6)                                           \
  MBT_WGMMA_OF(Bfloat16, "bf16", N, CHUNKS, I0, I1, I2, I3, I4, I5, I6)                            \
  MBT_WGMMA_OF(Float16, "f16", N, CHUNKS, I0, I1, I2, I3, I4, I5, I6)
#define MBT_WGMMA_OF(ELEMENT, TYPE, N, CHUNKS, I0, I1, I2, I3, I4, I5, I6)                         \
  template <>                                                                                      \
  struct Wgmma<ELEMENT, N> {                                                                       \
    template <int kTransposeA, int kTransposeB>                                                    \
    MBT_DEVICE static void run(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {        \
      MBT_WGMMA_SHARED(N, CHUNKS, TYPE, I0, I1, I2, I3, I4);                                       \
    }                                                                                              \
    template <int kTransposeB>                                                                     \
    MBT_DEVICE static void run(float (&d)[N / 2], const uint32_t* a, uint64_t b, int accumulate) { \
      MBT_WGMMA_REGISTERS(N, CHUNKS, TYPE, I0, I1, I2, I3, I4, I5, I6);                            \
    }                                                                                              \
  };

MBT_WGMMA(64, 4, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
MBT_WGMMA(80, 5, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
MBT_WGMMA(96, 6, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
MBT_WGMMA(112, 7, "%56", "%57", "%58", "%59", "%60", "%61", "%62")
MBT_WGMMA(128, 8, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
MBT_WGMMA(144, 9, "%72", "%73", "%74", "%75", "%76", "%77", "%78")
MBT_WGMMA(160, 10, "%80", "%81", "%82", "%83", "%84", "%85", "%86")
MBT_WGMMA(176, 11, "%88", "%89", "%90", "%91", "%92", "%93", "%94")
MBT_WGMMA(192, 12, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
MBT_WGMMA(208, 13, "%104", "%105", "%106", "%107", "%108", "%109", "%110")

#undef MBT_WGMMA
#undef MBT_WGMMA_OF
#undef MBT_WGMMA_SHARED
#undef MBT_WGMMA_REGISTERS

// Both operands in shared memory.
template <class Element, Major kA, Major kB, int kHalf>
MBT_DEVICE void wgmma(float (&d)[kHalf], uint64_t a, uint64_t b, bool accumulate) {
  Wgmma<Element, 2 * kHalf>::template run<static_cast<int>(kA), static_cast<int>(kB)>(d, a, b,
                                                                                    accumulate);
}
// a: the four registers of a fragment of 64 x 16.
template <class Element, Major kB, int kHalf>
MBT_DEVICE void wgmma(float (&d)[kHalf], const uint32_t* a, uint64_t b, bool accumulate) {
  Wgmma<Element, 2 * kHalf>::template run<static_cast<int>(kB)>(d, a, b, accumulate);
}

}  // namespace mbt_fast::cuda
