// Tensor maps (the opaque CUtensorMap) and the swizzle of shared memory. ptxsim/tensor_map.py packs the same struct.
#pragma once
#include "../ptx/types.h"

namespace ptx {

struct TensorMap {
  char magic[8];
  u8 dtype, rank, swizzle, interleave, oob, esize, pad[2];
  u64 addr;
  u64 dims[5];
  u64 strides[4];
  u16 box[5];
  u8 estr[5];
};
static_assert(sizeof(TensorMap) <= 128);
constexpr u8 TENSOR_TF32 = 11;  // CU_TENSOR_MAP_DATA_TYPE_TFLOAT32: floats that loads round
constexpr char TENSOR_MAP_MAGIC[] = "PTXSIMTM";

// Chunks of 16 bytes change places within spans of 32, 64 or 128 bytes (modes 1 to 3), by the number of the row.
inline u32 swizzled(u32 at, int mode) { return at ^ (((at >> 7) & ((1u << mode) - 1)) << 4); }
}  // namespace ptx
