// cuTensorMapEncodeTiled: the rules of the driver, and the encoding of the emulator.
#include "../exec/tensor_map.h"

#include "driver.h"

API CUresult cuTensorMapEncodeTiled(CUtensorMap* tm, CUtensorMapDataType dt, cuuint32_t rank, void* addr,
                                    const cuuint64_t* dims, const cuuint64_t* strides, const cuuint32_t* box,
                                    const cuuint32_t* est, CUtensorMapInterleave il, CUtensorMapSwizzle sw,
                                    CUtensorMapL2promotion l2, CUtensorMapFloatOOBfill oob) {
  ENTER();
  static const u8 es[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  const char* bad = nullptr;
  u64 base = (u64)addr;
  int d = (int)dt, s = (int)sw;
  if (!tm || ((u64)tm & 63))
    bad = "the tensor map must be 64-byte aligned";
  else if (d < 0 || d > 12)
    bad = "data type";
  else if (rank < 1 || rank > 5 || !dims || !box || !est || (rank > 1 && !strides))
    bad = "rank or null array";
  else if (il != CU_TENSOR_MAP_INTERLEAVE_NONE)
    return err(CUDA_ERROR_NOT_SUPPORTED, "interleaved layouts are not emulated");
  else if (!base || base % 16)
    bad = "the global address must be 16-byte aligned";
  else if (s < 0 || s > 3)
    bad = "swizzle mode";
  else if ((int)l2 < 0 || (int)l2 > 3)
    bad = "L2 promotion";
  else if ((int)oob < 0 || (int)oob > 1 || (oob && d < 6))
    bad = "out-of-bounds fill";
  for (u32 i = 0; !bad && i < rank; i++) {
    if (!dims[i] || dims[i] > 1ull << 32) bad = "a dimension is out of range (1..2^32)";
    if (!box[i] || box[i] > 256) bad = "a box dimension is out of range (1..256)";
    if (!est[i] || est[i] > 8) bad = "an element stride is out of range (1..8)";
    if (i + 1 < rank && (strides[i] % 16 || !strides[i] || strides[i] >= 1ull << 40))
      bad = "strides must be multiples of 16 below 2^40";
  }
  if (!bad && box[0] * es[d] % 16) bad = "the inner box must be a multiple of 16 bytes";
  if (!bad && s && box[0] * es[d] > (16u << s)) bad = "the inner box exceeds the swizzle span";
  if (bad) return err(CUDA_ERROR_INVALID_VALUE, "%s", bad);
  TensorMap t = {};
  memcpy(t.magic, TENSOR_MAP_MAGIC, 8);
  t.dtype = d;
  t.rank = rank;
  t.swizzle = s;
  t.oob = (u8)oob;
  t.esize = es[d];
  t.addr = base;
  for (u32 i = 0; i < 5; i++) {
    t.dims[i] = i < rank ? dims[i] : 1;
    if (i < 4) t.strides[i] = i + 1 < rank ? strides[i] : 0;
    t.box[i] = i < rank ? box[i] : 1;
    t.estr[i] = i < rank ? est[i] : 1;
  }
  static_assert(sizeof t <= sizeof(CUtensorMap));
  memset(tm, 0, sizeof *tm);
  memcpy(tm, &t, sizeof t);
  return CUDA_SUCCESS;
}
