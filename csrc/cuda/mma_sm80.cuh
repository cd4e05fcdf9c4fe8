// The sm_80 instructions that the kernels use, one PTX statement a wrapper: asynchronous copies,
// ldmatrix, mma.sync, bf16 conversion. Nothing else in the kernels is written in PTX, so a wrapper
// can be checked against the PTX manual by itself, and the machine code can be checked for the
// opcode it must become (LDGSTS, LDSM, HMMA, F2FP).
//
// Shared-memory operands are 32-bit addresses of the shared window; see `shared_address`.
#pragma once
#include <cstdint>

namespace ffkern::cuda {

/// Address of a shared-memory object in the shared window, as the instructions below take it.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Starts an asynchronous copy of `kBytes` from global to shared memory, both addresses aligned to
/// `kBytes`. Only the first `valid` bytes are read; the rest of the destination is filled with
/// zeros. `valid` = 0 reads nothing.
/// @tparam kBytes 16 (through L2 only: a tile is read once by a block), 8 or 4.
template <int kBytes>
__device__ __forceinline__ void copy_async(uint32_t destination, const void* source, int valid) {
  static_assert(kBytes == 16 || kBytes == 8 || kBytes == 4, "cp.async copies 4, 8 or 16 bytes");
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source), "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(destination), "l"(source), "r"(valid),
                 "n"(kBytes)
                 : "memory");
  }
}

/// Closes the group of the copies that this thread has started since the last call.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most `kPending` of this thread's newest groups are still under way.
/// Other threads see the data only after a barrier that follows.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Stores 16 bytes to shared memory.
__device__ __forceinline__ void store_shared(uint32_t destination, uint4 value) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(destination), "r"(value.x), "r"(value.y), "r"(value.z),
               "r"(value.w)
               : "memory");
}

/// Loads four 8x8 matrices of 2-byte elements. Lane l gives the address of row l % 8 of matrix l /
/// 8 (16 bytes) and receives of every matrix the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&matrix)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(row_address)
               : "memory");
}

/// d += a b for one 16x8 tile, 16 products deep; a and b bf16, d float32. With g = lane / 4 and t =
/// lane % 4 a lane holds
///   a[0] (g, 2t..)  a[1] (g + 8, 2t..)  a[2] (g, 2t + 8..)  a[3] (g + 8, 2t + 8..)      two
///   neighbours a register b[0] (2t.., g)  b[1] (2t + 8.., g) d[0] (g, 2t)  d[1] (g, 2t + 1)  d[2]
///   (g + 8, 2t)  d[3] (g + 8, 2t + 1)
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Two floats rounded to nearest even bf16; `low` in the lower half, which comes first in memory.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// The two bf16 of a register as floats; exact, since bf16 is the upper half of a float.
__device__ __forceinline__ float low_bf16(uint32_t packed) { return __uint_as_float(packed << 16); }
__device__ __forceinline__ float high_bf16(uint32_t packed) { return __uint_as_float(packed & 0xffff0000u); }

}  // namespace ffkern::cuda
