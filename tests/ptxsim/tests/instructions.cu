// One kernel a family of instructions; test_instructions.py runs them for sm_75 and sm_80.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#define KERNEL extern "C" __global__ void
__device__ inline unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// ---- matrices: the registers of every lane go to o[register][lane]
#define LDMATRIX(name, form, n, ...)                                                       \
  KERNEL name(const uint16_t* x, unsigned* o) {                                            \
    __shared__ __align__(16) uint16_t s[32 * 8];                                           \
    int l = threadIdx.x;                                                                   \
    for (int i = 0; i < 8; i++) s[l * 8 + i] = x[l * 8 + i];                               \
    __syncthreads();                                                                       \
    unsigned r[4];                                                                         \
    asm volatile("ldmatrix.sync.aligned.m8n8." form ".shared.b16 {" __VA_ARGS__ "}, [%4];" \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                          \
                 : "r"(shared_address(s + l * 8)));                                        \
    for (int i = 0; i < n; i++) o[i * 32 + l] = r[i];                                      \
  }
LDMATRIX(ldmatrix_x1, "x1", 1, "%0")
LDMATRIX(ldmatrix_x2, "x2", 2, "%0,%1")
LDMATRIX(ldmatrix_x4, "x4", 4, "%0,%1,%2,%3")
LDMATRIX(ldmatrix_x1_trans, "x1.trans", 1, "%0")
LDMATRIX(ldmatrix_x2_trans, "x2.trans", 2, "%0,%1")
LDMATRIX(ldmatrix_x4_trans, "x4.trans", 4, "%0,%1,%2,%3")

// a, b, c, d: fragments as the instruction takes them, [register][lane]
#define MMA(name, form, na, nb, A, B)                                                        \
  KERNEL name(const unsigned* a, const unsigned* b, const float* c, float* d) {              \
    int l = threadIdx.x;                                                                     \
    float r[4];                                                                              \
    unsigned x[4], y[2];                                                                     \
    for (int i = 0; i < 4; i++) r[i] = c[i * 32 + l];                                        \
    for (int i = 0; i < 4; i++) x[i] = i < na ? a[i * 32 + l] : 0;                           \
    for (int i = 0; i < 2; i++) y[i] = i < nb ? b[i * 32 + l] : 0;                           \
    asm volatile("mma.sync.aligned." form " {%0,%1,%2,%3}, {" A "}, {" B "}, {%0,%1,%2,%3};" \
                 : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3])                            \
                 : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));        \
    for (int i = 0; i < 4; i++) d[i * 32 + l] = r[i];                                        \
  }
MMA(mma_f16_k8, "m16n8k8.row.col.f32.f16.f16.f32", 2, 1, "%4,%5", "%8")
#if __CUDA_ARCH__ >= 800
MMA(mma_f16_k16, "m16n8k16.row.col.f32.f16.f16.f32", 4, 2, "%4,%5,%6,%7", "%8,%9")
MMA(mma_bf16_k8, "m16n8k8.row.col.f32.bf16.bf16.f32", 2, 1, "%4,%5", "%8")
MMA(mma_bf16_k16, "m16n8k16.row.col.f32.bf16.bf16.f32", 4, 2, "%4,%5,%6,%7", "%8,%9")
MMA(mma_tf32_k8, "m16n8k8.row.col.f32.tf32.tf32.f32", 4, 2, "%4,%5,%6,%7", "%8,%9")
KERNEL narrow(const float* x, const float* y, unsigned* o, int n) {
  for (int i = threadIdx.x; i < n; i += 32) {
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(o[i]) : "f"(x[i]));
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(o[n + i]) : "f"(x[i]), "f"(y[i]));
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(o[2 * n + i]) : "f"(x[i]), "f"(y[i]));
  }
}
KERNEL redux(const int* x, int* o) {
  int l = threadIdx.x, v = x[l];
  o[l] = __reduce_add_sync(~0u, v);
  o[32 + l] = __reduce_min_sync(~0u, v);
  o[64 + l] = __reduce_max_sync(~0u, v);
  o[96 + l] = __reduce_min_sync(~0u, (unsigned)v);
  o[128 + l] = __reduce_and_sync(~0u, (unsigned)v);
  o[160 + l] = __reduce_or_sync(~0u, (unsigned)v);
  o[192 + l] = __reduce_xor_sync(~0u, (unsigned)v);
  if (l < 12) o[224 + l] = __reduce_add_sync(0xfffu, v);
}
#endif

// ---- arithmetic
KERNEL doubles(const double* x, const double* y, double* o, int n) {
  for (int i = threadIdx.x; i < n; i += 32) {
    double a = x[i], b = y[i];
    double r[] = {a + b,  a * b,        fma(a, b, 0.1), a / b,           sqrt(fabs(a)),
                  exp(a), log(fabs(a)), log1p(fabs(a)), __dadd_rz(a, b), __dmul_ru(a, b)};
    for (int j = 0; j < 10; j++) o[j * n + i] = r[j];
  }
}
KERNEL floats(const float* x, float* o, int n) {
  for (int i = threadIdx.x; i < n; i += 32) {
    float a = x[i], r[10];
    asm("ex2.approx.f32 %0, %1;" : "=f"(r[0]) : "f"(a));
    asm("lg2.approx.f32 %0, %1;" : "=f"(r[1]) : "f"(fabsf(a)));
    asm("rcp.approx.f32 %0, %1;" : "=f"(r[2]) : "f"(a));
    asm("rsqrt.approx.f32 %0, %1;" : "=f"(r[3]) : "f"(fabsf(a)));
    asm("sqrt.approx.f32 %0, %1;" : "=f"(r[4]) : "f"(fabsf(a)));
    r[5] = expf(a);
    r[6] = logf(fabsf(a));
    r[7] = log1pf(fabsf(a));
    r[8] = __expf(a);
    r[9] = tanhf(a);
    for (int j = 0; j < 10; j++) o[j * n + i] = r[j];
  }
}
KERNEL integers(const unsigned* x, const unsigned* y, const unsigned* z, uint64_t* o, int n) {
  for (int i = threadIdx.x; i < n; i += 32) {
    unsigned a = x[i], b = y[i], c = z[i], r[10];
    uint64_t A = (uint64_t)a << 32 | b, B = (uint64_t)b << 32 | c;
    asm("shf.l.clamp.b32 %0, %1, %2, %3;" : "=r"(r[0]) : "r"(a), "r"(b), "r"(c & 63));
    asm("shf.r.clamp.b32 %0, %1, %2, %3;" : "=r"(r[1]) : "r"(a), "r"(b), "r"(c & 63));
    asm("shf.l.wrap.b32 %0, %1, %2, %3;" : "=r"(r[2]) : "r"(a), "r"(b), "r"(c & 63));
    asm("shf.r.wrap.b32 %0, %1, %2, %3;" : "=r"(r[3]) : "r"(a), "r"(b), "r"(c & 63));
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r[4]) : "r"(a), "r"(b), "r"(c & 0xffff));
    asm("prmt.b32.f4e %0, %1, %2, %3;" : "=r"(r[5]) : "r"(a), "r"(b), "r"(c & 3));
    asm("bfe.u32 %0, %1, %2, %3;" : "=r"(r[6]) : "r"(a), "r"(b & 31), "r"(c & 31));
    asm("bfe.s32 %0, %1, %2, %3;" : "=r"(r[7]) : "r"(a), "r"(b & 31), "r"(c & 31));
    asm("bfi.b32 %0, %1, %2, %3, %4;" : "=r"(r[8]) : "r"(a), "r"(b), "r"(c & 31), "r"(c >> 5 & 31));
    asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(r[9]) : "r"(a), "r"(b), "r"(c));
    uint64_t w[] = {r[0],
                    r[1],
                    r[2],
                    r[3],
                    r[4],
                    r[5],
                    r[6],
                    r[7],
                    r[8],
                    r[9],
                    __umulhi(a, b),
                    (unsigned)__mulhi((int)a, (int)b),
                    __umul64hi(A, B),
                    (uint64_t)__mul64hi((int64_t)A, (int64_t)B),
                    0,
                    0};
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(w[14]) : "r"(a), "r"(b));
    asm("mul.wide.s32 %0, %1, %2;" : "=l"(w[15]) : "r"(a), "r"(b));
    for (int j = 0; j < 16; j++) o[j * n + i] = w[j];
  }
}

// ---- between lanes
KERNEL shuffles(const int* x, int* o) {
  int l = threadIdx.x, v = x[l], j = 0;
  for (int width = 32; width >= 4; width /= 2) {
    o[32 * j++ + l] = __shfl_up_sync(~0u, v, 3, width);
    o[32 * j++ + l] = __shfl_down_sync(~0u, v, 2, width);
    o[32 * j++ + l] = __shfl_xor_sync(~0u, v, 3, width);
    o[32 * j++ + l] = __shfl_sync(~0u, v, l * 7 % 32, width);
  }
}
KERNEL votes(const int* x, unsigned* o) {
  int l = threadIdx.x, v = x[l], same;
  o[l] = __all_sync(~0u, v >= 0);
  o[32 + l] = __any_sync(~0u, v == 3);
  o[64 + l] = __ballot_sync(~0u, v & 1);
  o[96 + l] = __uni_sync(~0u, v & 1);
  o[128 + l] = __match_any_sync(~0u, v);
  o[160 + l] = __match_all_sync(~0u, v, &same);
  o[192 + l] = same;
  o[224 + l] = __match_all_sync(~0u, 5, &same);
}
// A lock that the lanes of a warp take one after the other: needs each of them to make progress.
KERNEL locked(int* lock, int* count) {
  for (bool done = false; !done;)
    if (atomicCAS(lock, 0, 1) == 0) {
      *(volatile int*)count += 1;
      __threadfence();
      atomicExch(lock, 0);
      done = true;
    }
}

// ---- memory
KERNEL vectors(const float4* x4, const float2* x2, const double2* d2, float4* o4, float2* o2, double2* od) {
  __shared__ float4 s4[32];
  __shared__ float2 s2[32];
  __shared__ double2 sd[32];
  int l = threadIdx.x, r = 31 - l;
  float4 u;
  asm volatile("ld.global.nc.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(u.x), "=f"(u.y), "=f"(u.z), "=f"(u.w) : "l"(x4 + l));
  s4[l] = u;
  s2[l] = __ldg(x2 + l);
  sd[l] = d2[l];
  __syncthreads();
  o4[l] = s4[r];
  o2[l] = s2[r];
  od[l] = sd[r];
}
