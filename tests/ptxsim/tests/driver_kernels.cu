#include <cooperative_groups.h>
__device__ int counter = 5;
__constant__ float coef[4] = {1.f, 2.f, 3.f, 4.f};
extern "C" __global__ void scale(float* x, float a, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] *= a * coef[0];
}
extern "C" __global__ void scale_bug(float* x, float a, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  x[i] *= a;
}
extern "C" __global__ void bump(int* out) { *out = atomicAdd(&counter, 1); }
extern "C" __global__ void dyn(float* y, int n) {
  extern __shared__ float s[];
  for (int i = threadIdx.x; i < n; i += blockDim.x) s[i] = i;
  __syncthreads();
  float t = 0;
  if (!threadIdx.x) {
    for (int i = 0; i < n; i += 97) t += s[i];
    *y = t;
  }
}
extern "C" __global__ void __launch_bounds__(64) bounded(int* y) { y[threadIdx.x] = 1; }
extern "C" __global__ void misaligned(char* y) { *(int*)(y + 1) = 1; }
extern "C" __global__ void race(int* y) {
  __shared__ int s[64];
  s[threadIdx.x] = 0;
  __syncthreads();
  s[threadIdx.x] = threadIdx.x;
  y[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void spin(int* y) {
  while (*(volatile int*)y == 0) {
  }
}
extern "C" __global__ void generic(int* y) { asm volatile("st.b32 [%0], 7;" ::"l"(y + threadIdx.x) : "memory"); }
extern "C" __global__ void hello(int v) { printf("value %d\n", v); }
extern "C" __global__ void bytes(struct S16* o, short a, char b, double c, float2 d);
struct S16 {
  double c;
  float dx, dy;
  int a, b;
};
extern "C" __global__ void bytes(S16* o, short a, char b, double c, float2 d) {
  o->a = a;
  o->b = b;
  o->c = c;
  o->dx = d.x;
  o->dy = d.y;
}
extern "C" __global__ void gridsync(int* y, unsigned* bar) {
  y[blockIdx.x] = blockIdx.x;
  __threadfence();
  atomicAdd(bar, 1);
  while (*(volatile unsigned*)bar < gridDim.x) {
  }
  y[8 + blockIdx.x] = y[(blockIdx.x + 1) % gridDim.x];
}
#if __CUDA_ARCH__ >= 900
extern "C" __global__ void ranks(int* y) {
  unsigned r, n;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
  y[blockIdx.x] = r * 16 + n;
}
#endif
