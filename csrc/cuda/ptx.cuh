// The PTX instructions that the kernels use, one statement a wrapper: asynchronous copies, ldmatrix, mma.sync,
// conversions. Nothing else in the kernels is written in PTX, so a wrapper can be checked against the PTX manual by
// itself, and the machine code can be checked for the opcode it must become (LDGSTS, LDSM, HMMA, F2FP).
//
// sm_75 has ldmatrix and a float16 mma of half the depth, but neither asynchronous copies nor bfloat16 or tf32: there a
// copy goes through registers at once, and one float16 product is two instructions. The callers see no difference.
//
// Shared-memory operands are 32-bit addresses of the shared window; see `shared_address`.
#pragma once
#include <cstdint>

namespace ffkern::cuda {

/// Address of a shared-memory object in the shared window, as the instructions below take it.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Stores to shared memory.
__device__ __forceinline__ void store_shared(uint32_t destination, uint4 value) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(destination), "r"(value.x), "r"(value.y), "r"(value.z),
               "r"(value.w)
               : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t destination, uint2 value) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(destination), "r"(value.x), "r"(value.y) : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t destination, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(destination), "r"(value) : "memory");
}

/// Loads from shared memory.
__device__ __forceinline__ float load_shared(uint32_t source) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(source) : "memory");
  return value;
}
__device__ __forceinline__ float2 load_shared2(uint32_t source) {
  float2 value;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(value.x), "=f"(value.y) : "r"(source) : "memory");
  return value;
}
__device__ __forceinline__ float4 load_shared4(uint32_t source) {
  float4 value;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(source)
               : "memory");
  return value;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

/// Starts an asynchronous copy of `kBytes` from global to shared memory, both addresses aligned to
/// `kBytes`. With valid = kBytes all are read; with valid = 0 none, and the destination is filled with zeros.
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

#else

template <int kBytes>
__device__ __forceinline__ void copy_async(uint32_t destination, const void* source, int valid) {
  if constexpr (kBytes == 16) {
    store_shared(destination, valid ? *static_cast<const uint4*>(source) : uint4{});
  } else if constexpr (kBytes == 8) {
    store_shared(destination, valid ? *static_cast<const uint2*>(source) : uint2{});
  } else {
    store_shared(destination, valid ? *static_cast<const uint32_t*>(source) : 0u);
  }
}
__device__ __forceinline__ void commit_copies() {}
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {}

#endif

/// Loads four 8x8 matrices of 2-byte elements. Lane l gives the address of row l % 8 of matrix l /
/// 8 (16 bytes) and receives of every matrix the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&matrix)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(row_address)
               : "memory");
}

/// The same of matrices that are stored transposed: lane l gives the address of row l % 8 and receives elements
/// (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4) as they are stored.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&matrix)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(row_address)
               : "memory");
}

// d += a b for one 16x8 tile. With g = lane / 4 and t = lane % 4 a lane holds
//   d[0] (g, 2t)   d[1] (g, 2t + 1)   d[2] (g + 8, 2t)   d[3] (g + 8, 2t + 1)
// and of 16 products deep 2-byte operands, two neighbours a register,
//   a[0] (g, 2t..)  a[1] (g + 8, 2t..)  a[2] (g, 2t + 8..)  a[3] (g + 8, 2t + 8..)
//   b0 (2t.., g)  b1 (2t + 8.., g)
// or of 8 products deep tf32
//   a[0] (g, t)  a[1] (g + 8, t)  a[2] (g, t + 4)  a[3] (g + 8, t + 4)      b0 (t, g)  b1 (t + 4, g)

__device__ __forceinline__ void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Half the depth of a float16 product, sm_75's: a (g, 2t..) and (g + 8, 2t..), b (2t.., g).
__device__ __forceinline__ void multiply_f16_half(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(b));
}

__device__ __forceinline__ void multiply_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  multiply_f16_half(d, a[0], a[1], b0);
  multiply_f16_half(d, a[2], a[3], b1);
#endif
}

/// A float rounded to tf32 (10 bits of mantissa), to nearest, ties away from zero.
__device__ __forceinline__ uint32_t round_tf32(float value) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded;
}

/// Two floats rounded to nearest even; `low` in the lower half, which comes first in memory.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
#else  // storage only: nothing multiplies bfloat16 there
  const auto round = [](float value) {
    const uint32_t bits = __float_as_uint(value);
    return value != value ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  };
  packed = round(low) | round(high) << 16;
#endif
  return packed;
}

__device__ __forceinline__ uint16_t to_f16(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
  return to_f16(low) | static_cast<uint32_t>(to_f16(high)) << 16;
}

__device__ __forceinline__ float from_f16(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

/// The two bf16 of a register as floats; exact, since bf16 is the upper half of a float.
__device__ __forceinline__ float low_bf16(uint32_t packed) { return __uint_as_float(packed << 16); }
__device__ __forceinline__ float high_bf16(uint32_t packed) { return __uint_as_float(packed & 0xffff0000u); }

}  // namespace ffkern::cuda
