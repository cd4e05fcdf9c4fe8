// One vector type per instruction set, so that each row kernel is written once.
//
// row_kernels.cpp and gemm_kernels.cpp are compiled once with FFKERN_ISA = portable, avx2 and avx512, pair_kernels.cpp
// also with what multiplies bfloat16. Everything here
// lives in a namespace of that name: an inline function shared between the builds would be merged by the linker, and an
// AVX-512 copy could then run on a machine without it. For the same reason this header uses no inline function of the
// standard library.
#pragma once
#include <cstdint>

#define FFKERN_LEVEL_portable 0
#define FFKERN_LEVEL_avx2 1
#define FFKERN_LEVEL_avx512 2
#define FFKERN_LEVEL_avx512_bf16 2
#define FFKERN_LEVEL_amx 2
#define FFKERN_LEVEL_amx_emulated 0
#define FFKERN_JOIN_(a, b) a##b
#define FFKERN_JOIN(a, b) FFKERN_JOIN_(a, b)
#define FFKERN_LEVEL FFKERN_JOIN(FFKERN_LEVEL_, FFKERN_ISA)

#if FFKERN_LEVEL > 0
#include <immintrin.h>
#endif

namespace ffkern::cpu::FFKERN_ISA {

#if FFKERN_LEVEL == 2

struct Vec {
  static constexpr int kLanes = 16;
  __m512 v;
};
inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline Vec zero() { return {_mm512_setzero_ps()}; }
inline Vec splat(float a) { return {_mm512_set1_ps(a)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline void store(float* p, Vec a, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }    // a b + c
inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a b
inline Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
/// a < 0 ? 0 : a. maxps returns its second operand when one is NaN, so NaN survives.
inline Vec relu(Vec a) { return {_mm512_max_ps(_mm512_setzero_ps(), a.v)}; }
/// a where h > 0, else 0; NaN where h is.
inline Vec where_positive(Vec h, Vec a) {
  return {_mm512_mask_mov_ps(relu(h).v, _mm512_cmp_ps_mask(h.v, _mm512_setzero_ps(), _CMP_GT_OQ), a.v)};
}
inline float sum(Vec a) {  // halves, then quarters, and so on: a fixed tree
  const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}

#elif FFKERN_LEVEL == 1

struct Vec {
  static constexpr int kLanes = 8;
  __m256 v;
};
inline __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec zero() { return {_mm256_setzero_ps()}; }
inline Vec splat(float a) { return {_mm256_set1_ps(a)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load(const float* p, int64_t n) { return {_mm256_maskload_ps(p, first_lanes(n))}; }
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline void store(float* p, Vec a, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), a.v); }
inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
inline Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
inline Vec relu(Vec a) { return {_mm256_max_ps(_mm256_setzero_ps(), a.v)}; }
inline Vec where_positive(Vec h, Vec a) {
  return {_mm256_blendv_ps(relu(h).v, a.v, _mm256_cmp_ps(h.v, _mm256_setzero_ps(), _CMP_GT_OQ))};
}
inline float sum(Vec a) {
  __m128 c = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  c = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}

#else  // portable: four lanes in the compiler's own vector type, on any processor

struct Vec {
  static constexpr int kLanes = 4;
  typedef float type __attribute__((vector_size(16), aligned(4), may_alias));
  type v;
};
inline Vec zero() { return {Vec::type{}}; }
inline Vec splat(float a) { return {Vec::type{a, a, a, a}}; }
inline Vec load(const float* p) { return {*reinterpret_cast<const Vec::type*>(p)}; }
inline Vec load(const float* p, int64_t n) {
  Vec r = zero();
  for (int64_t i = 0; i < n; ++i) r.v[i] = p[i];
  return r;
}
inline void store(float* p, Vec a) { *reinterpret_cast<Vec::type*>(p) = a.v; }
inline void store(float* p, Vec a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = a.v[i];
}
inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
inline Vec fnma(Vec a, Vec b, Vec c) { return {c.v - a.v * b.v}; }
inline Vec sqrt(Vec a) {
  for (int i = 0; i < Vec::kLanes; ++i) a.v[i] = __builtin_sqrtf(a.v[i]);
  return a;
}
inline Vec relu(Vec a) { return {a.v < Vec::type{} ? Vec::type{} : a.v}; }
inline Vec where_positive(Vec h, Vec a) { return {h.v > Vec::type{} ? a.v : relu(h).v}; }
inline float sum(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }

#endif

/// Calls body(offset, lanes) over [0, n): whole vectors first, then the rest. `lanes` is a compile-time constant in
/// all but the last call, so whole vectors compile to plain loads and stores.
struct Whole {
  static constexpr bool kWhole = true;
  constexpr operator int64_t() const { return Vec::kLanes; }
};
inline Vec load(const float* p, Whole) { return load(p); }
inline void store(float* p, Vec a, Whole) { store(p, a); }

template <class F>
inline __attribute__((always_inline)) void for_each_vec(int64_t n, F body) {
  int64_t j = 0;
  for (; j + Vec::kLanes <= n; j += Vec::kLanes) body(j, Whole{});
  if (j < n) body(j, n - j);
}

}  // namespace ffkern::cpu::FFKERN_ISA
