// A blocked float32 product for builds without a BLAS (NumPy and C++ users), and a second opinion for tests.
//
//          kBlockK                  n
//        +---------+        +---------------+          C is cut into slices of rows, one task each. Within a slice,
//   m    | A block |   x    | B block       | kBlockK  blocks of A (kBlockM x kBlockK, second-level cache) meet
//        +---------+        +---------------+          panels of B (kBlockK x tile columns, first-level cache).
//
// Both operands are packed so that the inner tile (row_kernels.cpp) reads them in order. The k-blocks are added to C
// one after the other: the order of every sum is fixed by the sizes alone, whatever the threads do.
#include <cstdlib>
#include <memory>
#include <new>

#include "provider.h"
#include "row_kernels.h"

namespace ffkern::cpu {
namespace {

constexpr int64_t kBlockM = 120;  // a multiple of every tile height (4, 6, 12)
constexpr int64_t kBlockK = 256;
constexpr int64_t kBlockN = 512;

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

Buffer allocate(int64_t floats) {
  void* p = std::aligned_alloc(64, static_cast<size_t>((floats * 4 + 63) / 64 * 64));
  if (p == nullptr) throw std::bad_alloc();
  return Buffer(static_cast<float*>(p));
}

/// Element (i, j) of op(X).
inline float at(const float* x, int64_t ld, bool transposed, int64_t i, int64_t j) {
  return transposed ? x[j * ld + i] : x[i * ld + j];
}

/// Packs op(A)[i0.., k0..] as panels of `tile` rows, k-major, the last one filled up with zeros.
void pack_a(const Gemm& g, int64_t i0, int64_t rows, int64_t k0, int64_t k, int tile, float* out) {
  for (int64_t i = 0; i < rows; i += tile) {
    for (int64_t p = 0; p < k; ++p) {
      for (int t = 0; t < tile; ++t) *out++ = i + t < rows ? at(g.a, g.lda, g.trans_a, i0 + i + t, k0 + p) : 0.0f;
    }
  }
}

void pack_b(const Gemm& g, int64_t j0, int64_t cols, int64_t k0, int64_t k, int tile, float* out) {
  for (int64_t j = 0; j < cols; j += tile) {
    for (int64_t p = 0; p < k; ++p) {
      for (int t = 0; t < tile; ++t) *out++ = j + t < cols ? at(g.b, g.ldb, g.trans_b, k0 + p, j0 + j + t) : 0.0f;
    }
  }
}

void multiply_slice(const Gemm& g, const RowKernels& kernels, int64_t begin, int64_t end) {
  const int64_t tr = kernels.tile_rows, tc = kernels.tile_cols;
  Buffer a = allocate(kBlockM * kBlockK), b = allocate((kBlockN + tc) * kBlockK);
  for (int64_t j = 0; j < g.n; j += kBlockN) {
    const int64_t cols = g.n - j < kBlockN ? g.n - j : kBlockN;
    for (int64_t p = 0; p < g.k; p += kBlockK) {
      const int64_t depth = g.k - p < kBlockK ? g.k - p : kBlockK;
      const bool add = p > 0 || g.beta != 0.0f;
      pack_b(g, j, cols, p, depth, static_cast<int>(tc), b.get());
      for (int64_t i = begin; i < end; i += kBlockM) {
        const int64_t rows = end - i < kBlockM ? end - i : kBlockM;
        pack_a(g, i, rows, p, depth, static_cast<int>(tr), a.get());
        for (int64_t jj = 0; jj < cols; jj += tc) {
          for (int64_t ii = 0; ii < rows; ii += tr) {
            kernels.gemm_tile(depth, a.get() + ii * depth, b.get() + jj * depth, add, g.c + (i + ii) * g.ldc + j + jj,
                              g.ldc, rows - ii < tr ? rows - ii : tr, cols - jj < tc ? cols - jj : tc);
          }
        }
      }
    }
  }
}

}  // namespace

void own_gemm(const Provider& provider, const Gemm& g) {
  const RowKernels& kernels = row_kernels();
  if (g.k == 0 && g.beta == 0.0f) {
    for (int64_t i = 0; i < g.m; ++i) {
      for (int64_t j = 0; j < g.n; ++j) g.c[i * g.ldc + j] = 0.0f;
    }
    return;
  }
  const int64_t slices = slice_count(provider, g.m, g.n * g.k);
  parallel_tasks(provider, slices, [&](int64_t s) {
    multiply_slice(g, kernels, slice_begin(g.m, slices, s), slice_begin(g.m, slices, s + 1));
  });
}

}  // namespace ffkern::cpu
