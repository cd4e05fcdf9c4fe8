#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>
#include <stdint.h>
#include <stdio.h>
extern "C" __global__ void saxpy(int n, float a, const float* x, float* y) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = a * x[i] + y[i];
}
struct P {
  const float* a;
  float* o;
  int n;
  short k[3];
  double s;
};
extern "C" __global__ void structp(P p) {
  int i = threadIdx.x;
  if (i < p.n) p.o[i] = p.a[i] * (float)p.s + p.k[i % 3];
}
extern "C" __global__ void math(const float* x, float* o, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float v = x[i];
  float* p = o + i * 16;
  p[0] = expf(v);
  p[1] = logf(fabsf(v) + 1e-3f);
  p[2] = sinf(v);
  p[3] = cosf(v);
  p[4] = tanhf(v);
  p[5] = rsqrtf(fabsf(v) + 1.f);
  p[6] = sqrtf(fabsf(v));
  p[7] = v / 3.7f;
  p[8] = floorf(v);
  p[9] = rintf(v);
  p[10] = erff(v);
  p[11] = fmodf(v, 0.7f);
  p[12] = powf(fabsf(v), 1.3f);
  p[13] = __expf(v);
  p[14] = (float)exp((double)v);
  p[15] = log1pf(fabsf(v));
}
extern "C" __global__ void ints(const int* a, const int* b, long long* o, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int x = a[i], y = b[i];
  unsigned ux = x, uy = y;
  long long* p = o + (long)i * 20;
  p[0] = x / y;
  p[1] = x % y;
  p[2] = ux / uy;
  p[3] = ux % uy;
  p[4] = __mulhi(x, y);
  p[5] = __umulhi(ux, uy);
  p[6] = (long long)x * y;
  p[7] = x >> (y & 31);
  p[8] = ux >> (uy & 31);
  p[9] = __popc(x);
  p[10] = __clz(x);
  p[11] = __brev(x);
  p[12] = __ffs(x);
  p[13] = __byte_perm(x, y, 0x2417);
  p[14] = min(x, y);
  p[15] = max(ux, uy);
  p[16] = ((long long)x << 20) / y;
  p[17] = __funnelshift_l(ux, uy, y & 31);
  p[18] = __umul64hi((unsigned long long)ux * 0x9E3779B97F4A7C15ull, (unsigned long long)uy << 13 | 5);
  p[19] = __dp4a(x, y, 7);
}
extern "C" __global__ void reduce(const float* x, float* o, int n) {
  __shared__ float s[32];
  float v = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
  for (int m = 16; m; m >>= 1) v += __shfl_xor_sync(~0u, v, m);
  if ((threadIdx.x & 31) == 0) s[threadIdx.x >> 5] = v;
  __syncthreads();
  if (threadIdx.x < 32) {
    v = threadIdx.x < blockDim.x / 32 ? s[threadIdx.x] : 0;
    for (int m = 16; m; m >>= 1) v += __shfl_down_sync(~0u, v, m);
    if (threadIdx.x == 0) atomicAdd(o, v);
  }
}
extern "C" __global__ void lastblock(const float* x, float* part, float* o, unsigned* cnt) {
  __shared__ float s[128];
  __shared__ bool last;
  s[threadIdx.x] = x[blockIdx.x * 128 + threadIdx.x];
  __syncthreads();
  for (int k = 64; k; k >>= 1) {
    if (threadIdx.x < k) s[threadIdx.x] += s[threadIdx.x + k];
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    part[blockIdx.x] = s[0];
    __threadfence();
    last = atomicInc(cnt, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    float t = 0;
    for (int i = 0; i < gridDim.x; i++) t += ((volatile float*)part)[i];
    *o = t;
  }
}
extern "C" __global__ void gridsync(int* cnt, int* data, int* o) {
  data[blockIdx.x] = blockIdx.x * 3;
  __threadfence();
  atomicAdd(cnt, 1);
  while (atomicAdd(cnt, 0) < gridDim.x) {
  };
  o[blockIdx.x] = data[(blockIdx.x + 1) % gridDim.x];
}
extern "C" __global__ void collatz(const int* x, int* o, int n) {
  int i = threadIdx.x;
  if (i < n) {
    unsigned v = x[i];
    int c = 0;
    while (v != 1) {
      v = v & 1 ? 3 * v + 1 : v >> 1;
      c++;
    }
    o[i] = c;
  }
}
__device__ __noinline__ int fsw(int a, int b) {
  switch (a) {
    case 0:
      return b + 1;
    case 1:
      return b * 3;
    case 2:
      return b - 7;
    case 3:
      return b ^ 55;
    case 4:
      return b << 2;
    case 5:
      return b / 3;
    case 6:
      return -b;
    default:
      return 0;
  }
}
extern "C" __global__ void calls(const int* x, int* o) {
  int i = threadIdx.x;
  int t[8];
  for (int k = 0; k < 8; k++) t[k] = x[(i + k) & 63];
  int s = 0;
  for (int k = 0; k < 8; k++) s += fsw(t[(k * x[i]) & 7] & 7, s + k);
  o[i] = s;
}
extern "C" __global__ void warpops(const int* x, unsigned* o) {
  int i = threadIdx.x, v = x[i];
  unsigned* p = o + i * 12;
  p[0] = __ballot_sync(~0u, v & 1);
  p[1] = __any_sync(~0u, v > 90);
  p[2] = __all_sync(~0u, v >= 0);
  p[3] = __match_any_sync(~0u, v & 7);
  p[4] = __reduce_add_sync(~0u, v);
  p[5] = __reduce_max_sync(~0u, v);
  p[6] = __shfl_up_sync(~0u, v, 3);
  p[7] = __shfl_sync(~0u, v, 5, 8);
  p[8] = __shfl_down_sync(~0u, v, 2, 16);
  p[9] = 0;
  if (v & 1) p[9] = __activemask();
  __syncwarp();
  if (i & 1)
    p[10] = __shfl_xor_sync(0xaaaaaaaa, v, 2);
  else
    p[10] = __shfl_xor_sync(0x55555555, v, 4);
  int pr;
  __match_all_sync(~0u, v & 128, &pr);
  p[11] = pr;
}
extern "C" __global__ void halfs(const __half* a, const __half* b, __half* o, const __nv_bfloat16* c,
                                 const __nv_bfloat16* d, __nv_bfloat16* q, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const __half2 *A = (const __half2*)a, *B = (const __half2*)b;
  __half2* O = (__half2*)o;
  const __nv_bfloat162 *Cc = (const __nv_bfloat162*)c, *D = (const __nv_bfloat162*)d;
  __nv_bfloat162* Q = (__nv_bfloat162*)q;
  O[i] = __hfma2(A[i], B[i], __hadd2(A[i], __hmul2(B[i], B[i])));
  Q[i] = __hfma2(Cc[i], D[i], __hmax2(__hadd2(Cc[i], D[i]), __hneg2(D[i])));
}
extern "C" __global__ void cvts(const float* x, unsigned char* e4, unsigned short* bf, unsigned short* hf, unsigned* tf,
                                int* iv, signed char* i8, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float v = x[i];
  bf[i] = __bfloat16_as_ushort(__float2bfloat16_rn(v));
  hf[i] = __half_as_ushort(__float2half_rn(v));
  unsigned t;
  asm("cvt.rna.tf32.f32 %0,%1;" : "=r"(t) : "f"(v));
  tf[i] = t;
  iv[i] = __float2int_rn(v);
  int s;
  asm("cvt.rni.sat.s8.f32 %0,%1;" : "=r"(s) : "f"(v));
  i8[i] = s;
  e4[i] = (unsigned char)i;
}
extern "C" __global__ void cpasync(const float* x, float* o, int n) {
  extern __shared__ float sm[];
  int t = threadIdx.x;
  for (int k = 0; k < 2; k++) {
    unsigned d = (unsigned)__cvta_generic_to_shared(sm + k * 512 + t * 4);
    int i = k * 512 + t * 4;
    int sz = i + 4 <= n ? 16 : i < n ? (n - i) * 4 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(d), "l"(x + (sz ? i : 0)), "r"(sz));
    asm volatile("cp.async.commit_group;");
  }
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  __syncthreads();
  o[t] = sm[127 * 4 + 3 - t];
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  o[128 + t] = sm[512 + (127 - t) * 4];
}
extern "C" __global__ void mma_bf16(const __nv_bfloat16* A, const __nv_bfloat16* B,
                                    float* Cc) {  // A 16x16 row, B 16x8 (stored as n-major 8x16), via ldmatrix
  __shared__ __align__(16) __nv_bfloat16 sa[256], sb[128];
  int l = threadIdx.x;
  for (int i = l; i < 256; i += 32) sa[i] = A[i];
  for (int i = l; i < 128; i += 32) sb[i] = B[i];
  __syncwarp();
  unsigned a[4], b[2];
  float c[4] = {1, 2, 3, 4};
  unsigned pa = (unsigned)__cvta_generic_to_shared(&sa[(l % 16) * 16 + (l / 16) * 8]),
           pb = (unsigned)__cvta_generic_to_shared(&sb[(l % 8) * 16 + ((l / 8) & 1) * 8]);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(pa));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(b[0]), "=r"(b[1]) : "r"(pb));
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  int g = l / 4, t = l % 4;
  Cc[g * 8 + t * 2] = c[0];
  Cc[g * 8 + t * 2 + 1] = c[1];
  Cc[(g + 8) * 8 + t * 2] = c[2];
  Cc[(g + 8) * 8 + t * 2 + 1] = c[3];
}
extern "C" __global__ void mma_bf16_trans(
    const __nv_bfloat16* A, const __nv_bfloat16* B,
    float* Cc) {  // B stored 16x8 row major, ldmatrix.trans; A 16x16 stored transposed (k-major)
  __shared__ __align__(16) __nv_bfloat16 sa[256], sb[128];
  int l = threadIdx.x;
  for (int i = l; i < 256; i += 32) sa[i] = A[i];
  for (int i = l; i < 128; i += 32) sb[i] = B[i];
  __syncwarp();
  unsigned a[4], b[2];
  float c[4] = {0, 0, 0, 0};
  int mi = l / 8, r = l % 8;
  unsigned pa = (unsigned)__cvta_generic_to_shared(&sa[((mi / 2) * 8 + r) * 16 + (mi & 1) * 8]),
           pb = (unsigned)__cvta_generic_to_shared(&sb[(l % 16) * 8]);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(pa));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(b[0]), "=r"(b[1]) : "r"(pb));
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  int g = l / 4, t = l % 4;
  Cc[g * 8 + t * 2] = c[0];
  Cc[g * 8 + t * 2 + 1] = c[1];
  Cc[(g + 8) * 8 + t * 2] = c[2];
  Cc[(g + 8) * 8 + t * 2 + 1] = c[3];
}
using namespace nvcuda;
template <class T, class L>
__device__ void wm(const T* A, const T* B, float* Cc) {
  wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> a;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, T, L> b;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> c;
  wmma::fill_fragment(c, 0.5f);
  for (int k = 0; k < 32; k += 16) {
    wmma::load_matrix_sync(a, A + k, 32);
    if (std::is_same<L, wmma::row_major>::value)
      wmma::load_matrix_sync(b, B + k * 16, 16);
    else
      wmma::load_matrix_sync(b, B + k, 32);
    wmma::mma_sync(c, a, b, c);
  }
  wmma::store_matrix_sync(Cc, c, 16, wmma::mem_row_major);
}
extern "C" __global__ void wmma_h(const __half* A, const __half* B, float* Cc) {
  wm<__half, wmma::row_major>(A, B, Cc);
}
extern "C" __global__ void wmma_b(const __nv_bfloat16* A, const __nv_bfloat16* B, float* Cc) {
  wm<__nv_bfloat16, wmma::col_major>(A, B, Cc);
}
extern "C" __global__ void wmma_t(const float* A, const float* B, float* Cc) {
  wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> a;
  wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major> b;
  wmma::fragment<wmma::accumulator, 16, 16, 8, float> c;
  wmma::fill_fragment(c, 0.f);
  wmma::load_matrix_sync(a, A, 8);
  wmma::load_matrix_sync(b, B, 16);
  for (int i = 0; i < a.num_elements; i++) a.x[i] = wmma::__float_to_tf32(a.x[i]);
  wmma::mma_sync(c, a, b, c);
  wmma::store_matrix_sync(Cc, c, 16, wmma::mem_row_major);
}
extern "C" __global__ void named(const int* x, int* o) {
  __shared__ int s[64];
  int t = threadIdx.x;
  if (t < 64) {
    s[t] = x[t];
    asm volatile("bar.sync 1, 64;" ::: "memory");
    o[t] = s[63 - t];
    asm volatile("bar.arrive 2, 96;" ::: "memory");
  } else {
    asm volatile("bar.sync 2, 96;" ::: "memory");
    o[t] = s[t - 64] * 2;
  }
}
extern "C" __global__ void hello(int n) {
  if (threadIdx.x == 1) printf("hi %d %5.2f %s\n", n, 1.5, "there");
}
__constant__ float ctab[4] = {1.5f, 2.5f, -3.f, 4.f};
__device__ int counter = 40;
extern "C" __global__ void consts(float* o) {
  o[threadIdx.x] = ctab[threadIdx.x & 3];
  if (threadIdx.x == 0) o[32] = (float)atomicAdd(&counter, 2);
}
extern "C" __global__ void syncor(const int* x, int* o) {
  int t = threadIdx.x;
  o[t] = __syncthreads_count(x[t] > 5) * 100 + __syncthreads_or(x[t] > 98) * 10 + __syncthreads_and(x[t] >= 0);
}
