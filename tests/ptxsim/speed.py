"""Emulated warp instructions per second, for three kernels that load different parts of the emulator.

PYTHONPATH=tests/ptxsim python tests/ptxsim/speed.py
"""

import time

import numpy as np
from ptxsim import In, Module, Out

SOURCE = r"""
#include <cuda_bf16.h>
// Dependent fused multiply-adds in registers.
extern "C" __global__ void fma_chain(const float* x, float* y, int n) {
  float a[8], b = x[threadIdx.x];
  for (int i = 0; i < 8; i++) a[i] = i;
  for (int k = 0; k < n; k++)
#pragma unroll
    for (int i = 0; i < 8; i++) a[i] = a[i] * b + 0.5f;
  float s = 0;
  for (int i = 0; i < 8; i++) s += a[i];
  y[blockIdx.x * blockDim.x + threadIdx.x] = s;
}
// float32 matrix product in 64x64 tiles of shared memory: loads, FFMAs and barriers.
extern "C" __global__ void tiled(const float* a, const float* b, float* c, int n) {
  __shared__ float as[16][64], bs[16][64];
  int t = threadIdx.x, tx = t % 16, ty = t / 16, row = blockIdx.y * 64, col = blockIdx.x * 64;
  float acc[4][4] = {};
  for (int k0 = 0; k0 < n; k0 += 16) {
    for (int i = t; i < 1024; i += 256) {
      as[i % 16][i / 16] = a[(row + i / 16) * n + k0 + i % 16];
      bs[i / 64][i % 64] = b[(k0 + i / 64) * n + col + i % 64];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 16; k++) {
      float4 u = *(float4*)&as[k][ty * 4], v = *(float4*)&bs[k][tx * 4];
      float p[4] = {u.x, u.y, u.z, u.w}, q[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 16; i++) acc[i / 4][i % 4] += p[i / 4] * q[i % 4];
    }
    __syncthreads();
  }
  for (int i = 0; i < 16; i++) c[(row + ty * 4 + i / 4) * n + col + tx * 4 + i % 4] = acc[i / 4][i % 4];
}
// ldmatrix and mma on one tile of shared memory.
extern "C" __global__ void mma_tile(float* y, int n) {
  __shared__ __align__(16) __nv_bfloat16 s[16 * 24 * 4];
  for (int i = threadIdx.x; i < 16 * 24 * 4; i += blockDim.x) s[i] = __float2bfloat16(i % 7);
  __syncthreads();
  int l = threadIdx.x % 32;
  unsigned at = (unsigned)__cvta_generic_to_shared(s + (l % 16) * 24 + l / 16 * 8), a[4], b[4];
  float c[4][4] = {};
  for (int k = 0; k < n; k++) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(at));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(at + 768));
#pragma unroll
    for (int i = 0; i < 4; i++)
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                   "{%0,%1,%2,%3};"
                   : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[i & 2]), "r"(b[(i & 2) + 1]));
  }
  for (int i = 0; i < 16; i++) y[(blockIdx.x * blockDim.x + threadIdx.x) * 16 + i] = c[i / 4][i % 4];
}
"""


def main() -> None:
    module = Module.from_cuda(SOURCE, arch="sm_80")
    rng = np.random.default_rng(0)
    x = rng.random(256, "f4")
    a, b = rng.random((256, 256), "f4"), rng.random((256, 256), "f4")
    runs = {
        "fma_chain": (16, 256, [In(x), Out(np.empty(4096, "f4")), 2000]),
        "tiled": ((4, 4), 256, [In(a), In(b), Out(np.empty((256, 256), "f4")), 256]),
        "mma_tile": (16, 128, [Out(np.empty(16 * 128 * 16, "f4")), 500]),
    }
    for name, (grid, block, arguments) in runs.items():
        module.info(name)  # decoded before the clock starts
        best = 1e9
        for _ in range(3):
            start = time.perf_counter()
            stats = module.launch(name, grid, block, arguments, threads=1)
            best = min(best, time.perf_counter() - start)
        count = stats["warp_instructions"]
        print(f"{name:9} {count / 1e6:6.2f} M warp instructions  {count / best / 1e6:7.2f} M/s on one thread")


if __name__ == "__main__":
    main()
