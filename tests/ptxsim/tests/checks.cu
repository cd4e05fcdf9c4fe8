#include <stdint.h>
extern "C" __global__ void rev(const float* x, float* o, int sync) {
  __shared__ float s[256];
  int t = threadIdx.x;
  s[t] = x[t];
  if (sync) __syncthreads();
  o[t] = s[255 - t];
}
extern "C" __global__ void war(const float* x, float* o, int sync) {
  __shared__ float s[256];
  int t = threadIdx.x;
  float a = 0;
  for (int k = 0; k < 3; k++) {
    s[t] = x[t] + k;
    __syncthreads();
    a += s[(t + 32) & 255];
    if (sync) __syncthreads();
  }
  o[t] = a;
}
extern "C" __global__ void warpsync(const float* x, float* o, int sync) {
  __shared__ float s[64];
  int t = threadIdx.x;
  s[t] = x[t];
  if (sync) __syncwarp();
  o[t] = s[t ^ 1];
}
extern "C" __global__ void bytes_(const unsigned char* x, unsigned char* o, int off) {
  __shared__ unsigned char s[256];
  int t = threadIdx.x;
  s[t] = x[t];
  o[t] = s[t + off < 256 && off ? t + off : t];
}
extern "C" __global__ void oob(const float* x, float* o, int off) { o[threadIdx.x] = x[threadIdx.x + off]; }
extern "C" __global__ void oobst(float* o, int off) { o[threadIdx.x + off] = 1; }
extern "C" __global__ void mis(const float* x, float* o, int off) {
  float4 v = *(const float4*)(x + off);
  o[threadIdx.x] = v.x + v.y * v.z + v.w;
}
extern "C" __global__ void shoob(float* o, int n) {
  extern __shared__ float s[];
  s[threadIdx.x] = 1;
  if (threadIdx.x == 0) s[n] = 2;
  __syncthreads();
  o[threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void uninit(float* o, int k) {
  __shared__ float s[64];
  if (threadIdx.x < k) s[threadIdx.x] = 1;
  __syncthreads();
  o[threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void readout(float* o, int k) {
  if (k) o[threadIdx.x] = 0;
  o[threadIdx.x] += 1;
}
extern "C" __global__ void cpw(const float* x, float* o, int wait, int sync) {
  __shared__ __align__(16) float s[128];
  int t = threadIdx.x;
  unsigned d = (unsigned)__cvta_generic_to_shared(s + t * 4);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;\ncp.async.commit_group;" ::"r"(d), "l"(x + t * 4) : "memory");
  if (wait)
    asm volatile("cp.async.wait_group 0;" ::: "memory");
  else
    asm volatile("cp.async.wait_group 1;" ::: "memory");
  if (sync) __syncthreads();
  o[t] = s[sync ? (t * 4 + 17) & 127 : (t * 4 + 17) & 127];
}
extern "C" __global__ void bardiv(float* o, int n) {
  if (threadIdx.x < n) __syncthreads();
  o[threadIdx.x] = 1;
}
extern "C" __global__ void barexit(float* o, int n) {
  if (threadIdx.x >= n) return;
  __syncthreads();
  o[threadIdx.x] = 1;
}
extern "C" __global__ void shflmask(const int* x, int* o, int n) {
  int t = threadIdx.x;
  if (t < n)
    o[t] = __shfl_xor_sync(0xffffffffu, x[t], 1);
  else
    o[t] = 0;
}
extern "C" __global__ void shflsrc(const int* x, int* o, int b) {
  int t = threadIdx.x;
  if (t < 16) o[t] = __shfl_xor_sync(0xffffu, x[t], b);
}
extern "C" __global__ void spin(volatile int* x) {
  while (*x == 0) {
  }
}
extern "C" __global__ void trapk(int n) {
  if (threadIdx.x == n) __trap();
}
#include <assert.h>
extern "C" __global__ void asrt(int n) { assert(threadIdx.x != n); }
extern "C" __global__ void namedrace(const float* x, float* o, int good) {
  __shared__ float s[128];
  int t = threadIdx.x;
  s[t] = x[t];
  if (t < 64)
    asm volatile("bar.sync 1, 64;" ::: "memory");
  else
    asm volatile("bar.sync 2, 64;" ::: "memory");
  o[t] = good ? s[t ^ 63] : s[127 - t];
}
extern "C" __global__ void atomsh(int* o, int bad) {
  __shared__ int c;
  if (threadIdx.x == 0) c = 0;
  __syncthreads();
  atomicAdd(&c, 1);
  if (!bad) __syncthreads();
  o[threadIdx.x] = c;
}
extern "C" __global__ void atomgen(int* o, const int* x) {
  __shared__ int h[8];
  if (threadIdx.x < 8) h[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&h[x[threadIdx.x] & 7], 1);
  __syncthreads();
  if (threadIdx.x < 8) o[threadIdx.x] = h[threadIdx.x];
}
extern "C" __global__ void samev(const float* x, float* o, int k) {
  __shared__ float s;
  int t = threadIdx.x;
  s = x[t * k];
  __syncthreads();
  o[t] = s;
}
extern "C" __global__ void shflord(const float* x, float* o) {
  __shared__ float s;
  int t = threadIdx.x;
  if (t == 0) s = x[0];
  __syncwarp();
  float v = s;
  v = __shfl_xor_sync(~0u, v, 1);
  if (t == 0) s = v + 1;
  __syncwarp();
  o[t] = s;
}
extern "C" __global__ void nullp(float* p) { p[threadIdx.x] = 1; }
