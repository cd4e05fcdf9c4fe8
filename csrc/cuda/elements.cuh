// Elements of a matrix whose storage is known at run time only, as float32. A uniform branch an element: for kernels
// that move rows, not for products.
#pragma once
#include "../core/types.h"
#include "ptx.cuh"

namespace ffkern::cuda {

__device__ __forceinline__ float load_element(const void* matrix, Storage storage, int64_t index) {
  if (storage == Storage::kFloat32) return static_cast<const float*>(matrix)[index];
  const uint16_t bits = static_cast<const uint16_t*>(matrix)[index];
  return storage == Storage::kBfloat16 ? low_bf16(bits) : from_f16(bits);
}

__device__ __forceinline__ void store_element(void* matrix, Storage storage, int64_t index, float value) {
  if (storage == Storage::kFloat32) {
    static_cast<float*>(matrix)[index] = value;
  } else {
    const uint32_t bits = storage == Storage::kBfloat16 ? pack_bf16(value, 0.0f) : pack_f16(value, 0.0f);
    static_cast<uint16_t*>(matrix)[index] = static_cast<uint16_t>(bits);
  }
}

}  // namespace ffkern::cuda
