#include <cuda.h>
#include <cuda_bf16.h>
#include <stdint.h>
#define S32(p) ((unsigned)__cvta_generic_to_shared(p))
__device__ inline uint64_t desc(unsigned a, int lbo, int sbo, int mode) {
  return (uint64_t)((a & 0x3ffff) >> 4) | (uint64_t)(lbo >> 4) << 16 | (uint64_t)(sbo >> 4) << 32 |
         (uint64_t)mode << 62;
}
__device__ inline void mb_init(uint64_t* b, int n) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(S32(b)), "r"(n));
}
__device__ inline void mb_expect(uint64_t* b, int n) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(S32(b)), "r"(n) : "memory");
}
__device__ inline void mb_arrive(uint64_t* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(S32(b)) : "memory");
}
__device__ inline void mb_wait(uint64_t* b, int ph) {
  asm volatile(
      "{\n.reg .pred p;\nLAB:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra "
      "DONE;\nbra LAB;\nDONE:\n}" ::"r"(S32(b)),
      "r"(ph)
      : "memory");
}
__device__ inline void tma2(void* d, const CUtensorMap* m, int x, int y, uint64_t* b) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%2, %3}], [%4];" ::"r"(S32(d)),
      "l"(m), "r"(x), "r"(y), "r"(S32(b))
      : "memory");
}
#define WG_FENCE asm volatile("wgmma.fence.sync.aligned;" ::: "memory")
#define WG_COMMIT asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory")
#define WG_WAIT(n) asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory")
#define D32(c)                                                                                   \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%" \
  "25,%26,%27,%28,%29,%30,%31}"
#define DO(d)                                                                                                       \
  c(d[0]), c(d[1]), c(d[2]), c(d[3]), c(d[4]), c(d[5]), c(d[6]), c(d[7]), c(d[8]), c(d[9]), c(d[10]), c(d[11]),     \
      c(d[12]), c(d[13]), c(d[14]), c(d[15]), c(d[16]), c(d[17]), c(d[18]), c(d[19]), c(d[20]), c(d[21]), c(d[22]), \
      c(d[23]), c(d[24]), c(d[25]), c(d[26]), c(d[27]), c(d[28]), c(d[29]), c(d[30]), c(d[31])
#define c(x) "+f"(x)
template <int TA, int TB>
__device__ inline void wg64(float* d, uint64_t a, uint64_t b, int sd) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " D32() ", %32, %33, p, 1, 1, %35, %36;\n}" : DO(d) : "l"(a), "l"(b), "r"(sd), "n"(TA), "n"(TB));
}
__device__ inline void wg64rs(float* d, const unsigned* a, uint64_t b, int sd) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " D32() ", {%32,%33,%34,%35}, %36, p, 1, 1, 0;\n}" : DO(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(sd));
}
__device__ inline void wg64tf(float* d, uint64_t a, uint64_t b, int sd) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, "
      "0;\nwgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 " D32() ", %32, %33, p, 1, -1;\n}"
      : DO(d)
      : "l"(a), "l"(b), "r"(sd));
}
#undef c
__device__ inline void put(float* o, const float* d) {
  int t = threadIdx.x, r = t / 32 * 16 + t % 32 / 4, q = t % 4 * 2;
  for (int j = 0; j < 8; j++) {
    o[r * 64 + j * 8 + q] = d[4 * j];
    o[r * 64 + j * 8 + q + 1] = d[4 * j + 1];
    o[(r + 8) * 64 + j * 8 + q] = d[4 * j + 2];
    o[(r + 8) * 64 + j * 8 + q + 1] = d[4 * j + 3];
  }
}
// K-major operands through TMA; SWB = swizzle span in bytes.  bug: 1 no mbarrier wait, 2 no wgmma
// wait, 3 arithmetic on the accumulator before the wait
template <int SWB, int BUG>
__device__ void kmajor(const CUtensorMap& ma, const CUtensorMap& mb, float* o, int K) {
  extern __shared__ __align__(1024) unsigned char sm[];
  unsigned char *sa = sm, *sb = sm + 8192;
  __shared__ uint64_t bar;
  constexpr int KT = SWB / 2, MODE = SWB == 128 ? 1 : SWB == 64 ? 2 : 3;
  if (threadIdx.x == 0) {
    mb_init(&bar, 1);
  }
  __syncthreads();
  float d[32];
  for (int i = 0; i < 32; i++) d[i] = 7;
  int ph = 0;
  for (int k = 0; k < K; k += KT) {
    if (threadIdx.x == 0) {
      mb_expect(&bar, 128 * SWB);
      tma2(sa, &ma, k, 0, &bar);
      tma2(sb, &mb, k, 0, &bar);
    }
    if (BUG != 1) mb_wait(&bar, ph);
    ph ^= 1;
    WG_FENCE;
    for (int s = 0; s < KT / 16; s++)
      wg64<0, 0>(d, desc(S32(sa) + s * 32, 16, 8 * SWB, MODE), desc(S32(sb) + s * 32, 16, 8 * SWB, MODE), k + s > 0);
    WG_COMMIT;
    if (BUG == 3) d[0] += 1;
    if (BUG != 2) WG_WAIT(0);
    __syncthreads();
  }
  put(o, d);
}
extern "C" __global__ void k128(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* o,
                                int K) {
  kmajor<128, 0>(a, b, o, K);
}
extern "C" __global__ void k64(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* o,
                               int K) {
  kmajor<64, 0>(a, b, o, K);
}
extern "C" __global__ void k32(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* o,
                               int K) {
  kmajor<32, 0>(a, b, o, K);
}
extern "C" __global__ void kbug1(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* o,
                                 int K) {
  kmajor<128, 1>(a, b, o, K);
}
extern "C" __global__ void kbug2(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* o,
                                 int K) {
  kmajor<128, 2>(a, b, o, K);
}
extern "C" __global__ void kbug3(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* o,
                                 int K) {
  kmajor<128, 3>(a, b, o, K);
}
// MN-major operands: A stored [K][64], B stored [K][64]
extern "C" __global__ void mnmajor(const __grid_constant__ CUtensorMap ma, const __grid_constant__ CUtensorMap mb,
                                   float* o) {
  extern __shared__ __align__(1024) unsigned char sm[];
  unsigned char *sa = sm, *sb = sm + 8192;
  __shared__ uint64_t bar;
  if (threadIdx.x == 0) {
    mb_init(&bar, 1);
    mb_expect(&bar, 16384);
    tma2(sa, &ma, 0, 0, &bar);
    tma2(sb, &mb, 0, 0, &bar);
  }
  __syncthreads();
  mb_wait(&bar, 0);
  float d[32];
  WG_FENCE;
  for (int s = 0; s < 4; s++)
    wg64<1, 1>(d, desc(S32(sa) + s * 2048, 8192, 1024, 1), desc(S32(sb) + s * 2048, 8192, 1024, 1), s);
  WG_COMMIT;
  WG_WAIT(0);
  put(o, d);
}
// no swizzle, operands written by ordinary stores; A also from registers; fence: 0 leaves out
// fence.proxy.async
extern "C" __global__ void plain(const __nv_bfloat16* A, const __nv_bfloat16* B, float* o, int fence, int areg) {
  __shared__ __align__(128) __nv_bfloat16 sa[64 * 16], sb[64 * 16];
  int t = threadIdx.x;
  for (int i = t; i < 1024; i += 128) {
    int r = i / 16, k = i % 16, p = (r / 8) * 128 + (k / 8) * 64 + (r % 8) * 8 + k % 8;
    sa[p] = A[i];
    sb[p] = B[i];
  }
  if (fence) asm volatile("fence.proxy.async;" ::: "memory");
  __syncthreads();
  float d[32];
  WG_FENCE;
  if (areg) {
    unsigned a[4];
    int r = t / 32 * 16 + t % 32 / 4, c = t % 4 * 2;
    const unsigned* P = (const unsigned*)A;
    a[0] = P[(r * 16 + c) / 2];
    a[1] = P[((r + 8) * 16 + c) / 2];
    a[2] = P[(r * 16 + c + 8) / 2];
    a[3] = P[((r + 8) * 16 + c + 8) / 2];
    WG_FENCE;
    wg64rs(d, a, desc(S32(sb), 128, 256, 0), 0);
  } else
    wg64<0, 0>(d, desc(S32(sa), 128, 256, 0), desc(S32(sb), 128, 256, 0), 0);
  WG_COMMIT;
  WG_WAIT(0);
  put(o, d);
}
extern "C" __global__ void tf32(const __grid_constant__ CUtensorMap ma, const __grid_constant__ CUtensorMap mb,
                                float* o) {
  extern __shared__ __align__(1024) unsigned char sm[];
  unsigned char *sa = sm, *sb = sm + 8192;
  __shared__ uint64_t bar;
  if (threadIdx.x == 0) {
    mb_init(&bar, 1);
    mb_expect(&bar, 16384);
    tma2(sa, &ma, 0, 0, &bar);
    tma2(sb, &mb, 0, 0, &bar);
  }
  __syncthreads();
  mb_wait(&bar, 0);
  float d[32];
  WG_FENCE;
  for (int s = 0; s < 4; s++) wg64tf(d, desc(S32(sa) + s * 32, 16, 1024, 1), desc(S32(sb) + s * 32, 16, 1024, 1), s);
  WG_COMMIT;
  WG_WAIT(0);
  put(o, d);
}
// producer / consumer ring with 1-D bulk copies.  bug: 1 consumer does not wait for full, 2
// producer does not wait for empty
template <int BUG>
__device__ void ring(const float* x, float* o, int n) {
  __shared__ __align__(128) float buf[2][128];
  __shared__ uint64_t full[2], empty[2];
  int t = threadIdx.x;
  if (t == 0)
    for (int i = 0; i < 2; i++) {
      mb_init(&full[i], 1);
      mb_init(&empty[i], 128);
    }
  __syncthreads();
  if (t >= 128) {
    if (t == 128)
      for (int i = 0; i < n; i++) {
        int s = i & 1;
        if (BUG != 2) mb_wait(&empty[s], (i / 2 & 1) ^ 1);
        mb_expect(&full[s], 512);
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 512, "
            "[%2];" ::"r"(S32(buf[s])),
            "l"(x + i * 128), "r"(S32(&full[s]))
            : "memory");
      }
  } else
    for (int i = 0; i < n; i++) {
      int s = i & 1;
      if (BUG != 1) mb_wait(&full[s], i / 2 & 1);
      o[i * 128 + t] = buf[s][127 - t];
      mb_arrive(&empty[s]);
    }
}
extern "C" __global__ void ring0(const float* x, float* o, int n) { ring<0>(x, o, n); }
extern "C" __global__ void ring1(const float* x, float* o, int n) { ring<1>(x, o, n); }
extern "C" __global__ void ring2(const float* x, float* o, int n) { ring<2>(x, o, n); }
extern "C" __global__ void tmacopy(const __grid_constant__ CUtensorMap src, const __grid_constant__ CUtensorMap dst,
                                   float* raw, int x, int y, int fence,
                                   int wait) {  // 16x8 box, shift by (x, y), x2, store
  __shared__ __align__(1024) float s[128];
  __shared__ uint64_t bar;
  int t = threadIdx.x;
  if (t == 0) {
    mb_init(&bar, 1);
    mb_expect(&bar, 512);
    tma2(s, &src, x, y, &bar);
  }
  __syncthreads();
  mb_wait(&bar, 0);
  raw[t] = s[t];
  s[t] *= 2;
  if (fence) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (t == 0) {
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], "
        "[%3];\ncp.async.bulk.commit_group;" ::"l"(&dst),
        "r"(x), "r"(y), "r"(S32(s))
        : "memory");
    if (wait) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    s[0] = -1;
  }
}
extern "C" __global__ void bulkred(float* o) {
  __shared__ __align__(16) float s[64];
  s[threadIdx.x] = threadIdx.x + blockIdx.x;
  asm volatile("fence.proxy.async;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0)
    asm volatile(
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], "
        "256;\ncp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;" ::"l"(o),
        "r"(S32(s))
        : "memory");
}
extern "C" __global__ void __cluster_dims__(4, 1, 1) cluster(const float* x, float* o) {
  __shared__ float s[32];
  int t = threadIdx.x;
  unsigned r, a;
  float v;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  s[t] = x[blockIdx.x * 32 + t];
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(a) : "r"(S32(s + t)), "r"((r + 1) & 3));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(a) : "memory");
  o[blockIdx.x * 32 + t] = v;
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
extern "C" __global__ void __cluster_dims__(2, 1, 1) mcast(const __grid_constant__ CUtensorMap src, float* o) {
  __shared__ __align__(128) float s[128];
  __shared__ uint64_t bar;
  int t = threadIdx.x;
  unsigned r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  if (t == 0) {
    mb_init(&bar, 1);
    mb_expect(&bar, 512);
  }
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
  if (t == 0 && r == 0)
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes."
        "multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(S32(s)),
        "l"(&src), "r"(4), "r"(1), "r"(S32(&bar)), "h"((short)3)
        : "memory");
  mb_wait(&bar, 0);
  o[blockIdx.x * 128 + t] = s[t];
}
extern "C" __global__ void stm(unsigned* o) {
  __shared__ __align__(16) unsigned short s[256];
  int l = threadIdx.x;
  unsigned a[4];
  for (int i = 0; i < 4; i++) a[i] = (l * 8 + i * 2) | (l * 8 + i * 2 + 1) << 16;
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(S32(s + l * 8)), "r"(a[0]),
               "r"(a[1]), "r"(a[2]), "r"(a[3])
               : "memory");
  __syncwarp();
  unsigned b[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(S32(s + l * 8))
               : "memory");
  for (int i = 0; i < 4; i++) o[l * 8 + i] = b[i];
  for (int i = 0; i < 4; i++)
    o[l * 8 + 4 + i] = s[(i * 8 + l / 4) * 8 + l % 4 * 2] | s[(i * 8 + l / 4) * 8 + l % 4 * 2 + 1] << 16;
}
extern "C" __global__ void elect(int* o) {
  unsigned p;
  asm volatile("{\n.reg .pred P;\nelect.sync _|P, 0xffffffff;\nselp.u32 %0, 1, 0, P;\n}" : "=r"(p));
  o[threadIdx.x] = p;
}
