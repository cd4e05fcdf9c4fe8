// The PTX instructions that only sm_90a has, or that only its kernels use, one wrapper each: bulk copies of tensor
// tiles (TMA), mbarriers, wgmma, registers handed from warpgroup to warpgroup. As in ptx.cuh nothing else is written in
// PTX, and the machine code is checked for the opcode that each must become (UTMALDG, SYNCS, HGMMA, USETMAXREG). Where
// PTX wants a predicate, which C++ cannot name, one more instruction makes it.
#pragma once
#include "product.h"
#include "ptx.cuh"

namespace ffkern::cuda {

// ---------------------------------------------------------------- mbarriers: phases counted by parity

/// A barrier in shared memory (8 bytes) whose phase ends after so many arrivals and all bytes that were announced.
__device__ __forceinline__ void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// Shows initialised barriers to the copies; a __syncthreads() shows them to the other threads.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives and announces the bytes of copies that complete on the barrier.
__device__ __forceinline__ void arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
/// Whether the phase of this parity has ended; waits for it as long as the hardware likes.
__device__ __forceinline__ bool try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p;}"
               : "=r"(done)
               : "r"(barrier), "r"(parity)
               : "memory");
  return done != 0;
}
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
  while (!try_wait(barrier, parity)) {
  }
}

/// Shows what this thread has written to shared memory to wgmma and to the copies; a barrier has to follow.
__device__ __forceinline__ void publish_writes() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---------------------------------------------------------------- TMA: a box of a tensor to shared memory

/// Starts the copy of the box at (column, row); what lies outside of the matrix arrives as zeros. `map` is a tensor map
/// among the kernel's parameters.
__device__ __forceinline__ void copy_box(uint32_t destination, const void* map, int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(destination),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
/// The same of a vector.
__device__ __forceinline__ void copy_piece(uint32_t destination, const void* map, int first, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2}], [%3];" ::"r"(
          destination),
      "l"(map), "r"(first), "r"(barrier)
      : "memory");
}

// ---------------------------------------------------------------- registers

/// Gives registers of the warpgroup back, down to kRegisters a thread.
template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
/// Waits for registers that others have given back.
template <int kRegisters>
__device__ __forceinline__ void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---------------------------------------------------------------- wgmma

/// threadIdx.x, read anew: nothing that follows from it is kept across a loop.
__device__ __forceinline__ int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
/// No instruction: what computes the value stays before this, and what uses it behind. Without it the compiler moves
/// conversions of operands in between wgmma, which then wait for each other, and what does not change in a loop out of
/// it, where registers are few.
__device__ __forceinline__ void pin(uint32_t& value) { asm volatile("" : "+r"(value)::"memory"); }
__device__ __forceinline__ void pin(float& value) { asm volatile("" : "+f"(value)::"memory"); }
__device__ __forceinline__ void pin(int& value) { asm volatile("" : "+r"(value)::"memory"); }

/// Orders the warpgroup's own accesses of registers before the wgmma that follow.
__device__ __forceinline__ void fence_wgmma() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Closes the group of the wgmma since the last call.
__device__ __forceinline__ void commit_wgmma() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most kPending of the newest groups are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_wgmma() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// What wgmma is told of an operand in shared memory that lies in rows of 128 swizzled bytes: its address, and the
/// bytes from one group of eight rows to the next and (for an operand across the depth) from one 128 bytes of columns
/// to the next.
__device__ __forceinline__ uint64_t operand(uint32_t address, int rows_stride, int columns_stride) {
  constexpr uint64_t kSwizzle128 = 1;
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(columns_stride >> 4) << 16 |
         static_cast<uint64_t>(rows_stride >> 4) << 32 | kSwizzle128 << 62;
}

// d += a b for 64 rows and 128 or 256 columns of a warpgroup. A warp has 16 rows: d[4 n + i] and a[i] are those of one
// mma.sync (ptx.cuh) on columns 8 n to 8 n + 7. b is an operand() in shared memory, whose rows run along the depth, or
// (kAcross, 2-byte elements only) across it. Started, not done: neither d nor a may be touched before a wait.

#define FFKERN_SUMS_64                                                                                         \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
  "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "  \
  "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define FFKERN_OUT_64(d)                                                                                      \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
      "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),  \
      "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), \
      "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), \
      "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), \
      "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), \
      "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), \
      "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define FFKERN_SUMS_128                                                                                          \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "   \
  "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "    \
  "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, "    \
  "%65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, "    \
  "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, "   \
  "%106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, " \
  "%124, %125, %126, %127}"
#define FFKERN_OUT_128(d)                                                                                             \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),         \
      "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),          \
      "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),         \
      "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),         \
      "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),         \
      "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),         \
      "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),         \
      "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]),         \
      "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]),         \
      "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]),         \
      "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]),         \
      "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]),         \
      "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]),    \
      "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), \
      "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), \
      "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

#define FFKERN_WGMMA(columns, depth, type, sums, a, last, ...)                                                 \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k" #depth ".f32." #type "." #type " " sums ", " a \
               ", 1, 1, 1" last ";"                                                                            \
               : __VA_ARGS__)
#define FFKERN_IN "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)

template <Product kProduct, bool kAcross>
__device__ __forceinline__ void multiply_wide(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
#define FFKERN_A "{%64, %65, %66, %67}, %68"
  if constexpr (kProduct == Product::kBf16) {
    FFKERN_WGMMA(128, 16, bf16, FFKERN_SUMS_64, FFKERN_A, ", %69", FFKERN_OUT_64(d) : FFKERN_IN, "n"(kAcross ? 1 : 0));
  } else if constexpr (kProduct == Product::kF16) {
    FFKERN_WGMMA(128, 16, f16, FFKERN_SUMS_64, FFKERN_A, ", %69", FFKERN_OUT_64(d) : FFKERN_IN, "n"(kAcross ? 1 : 0));
  } else {
    static_assert(kProduct == Product::kTf32 && !kAcross);
    FFKERN_WGMMA(128, 8, tf32, FFKERN_SUMS_64, FFKERN_A, "", FFKERN_OUT_64(d) : FFKERN_IN);
  }
#undef FFKERN_A
}

template <Product kProduct, bool kAcross>
__device__ __forceinline__ void multiply_wide(float (&d)[128], const uint32_t (&a)[4], uint64_t b) {
#define FFKERN_A "{%128, %129, %130, %131}, %132"
  if constexpr (kProduct == Product::kBf16) {
    FFKERN_WGMMA(256, 16, bf16, FFKERN_SUMS_128, FFKERN_A, ", %133", FFKERN_OUT_128(d) : FFKERN_IN,
                 "n"(kAcross ? 1 : 0));
  } else if constexpr (kProduct == Product::kF16) {
    FFKERN_WGMMA(256, 16, f16, FFKERN_SUMS_128, FFKERN_A, ", %133", FFKERN_OUT_128(d) : FFKERN_IN,
                 "n"(kAcross ? 1 : 0));
  } else {
    static_assert(kProduct == Product::kTf32 && !kAcross);
    FFKERN_WGMMA(256, 8, tf32, FFKERN_SUMS_128, FFKERN_A, "", FFKERN_OUT_128(d) : FFKERN_IN);
  }
#undef FFKERN_A
}

#undef FFKERN_WGMMA
#undef FFKERN_IN
#undef FFKERN_SUMS_64
#undef FFKERN_OUT_64
#undef FFKERN_SUMS_128
#undef FFKERN_OUT_128

}  // namespace ffkern::cuda
