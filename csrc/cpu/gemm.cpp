// A float32 product for builds without a BLAS (NumPy and C++ users), and a second opinion for tests.
//
// C is cut into slices of rows, one task each; A is used as it lies unless it has to be transposed; B is packed into
// panels, block of columns by block of columns. The order of every sum is fixed by the sizes alone, whatever the
// threads do.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "gemm_kernels.h"
#include "provider.h"

namespace ffkern::cpu {
namespace {

constexpr int64_t kColumns = 512;  // of C at once: the packed block of B stays in cache
constexpr int64_t kRows = 96;

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

Buffer allocate(int64_t floats) {
  void* p = std::aligned_alloc(64, static_cast<size_t>((floats * 4 + 63) / 64 * 64 + 64));
  if (p == nullptr) throw std::bad_alloc();
  return Buffer(static_cast<float*>(p));
}

void multiply_slice(const Gemm& g, const GemmKernels& kernels, int64_t begin, int64_t end) {
  const int64_t lanes = kernels.lanes;
  const Buffer panels = allocate(g.k * kColumns), part = allocate(kRows * kColumns);
  const Buffer rows = g.trans_a ? allocate(kRows * g.k) : nullptr;
  for (int64_t j = 0; j < g.n; j += kColumns) {
    const int64_t cols = g.n - j < kColumns ? g.n - j : kColumns, vectors = (cols + lanes - 1) / lanes;
    if (g.trans_b) {
      kernels.pack_rows(g.b + j * g.ldb, g.ldb, cols, g.k, 0, (vectors + 1) / 2, panels.get());
    } else {
      kernels.pack_columns(g.b + j, g.ldb, g.k, cols, 0, (vectors + 1) / 2, panels.get());
    }
    for (int64_t i = begin; i < end; i += kRows) {
      const int64_t units = end - i < kRows ? end - i : kRows;
      const float* a = g.a + i * g.lda;
      int64_t lda = g.lda;
      if (g.trans_a) {
        kernels.transpose(g.a + i, g.lda, g.k, units, rows.get(), g.k);
        a = rows.get();
        lda = g.k;
      }
      kernels.multiply(units, a, lda, {panels.get(), g.k, vectors}, false, part.get(), kColumns);
      for (int64_t r = 0; r < units; ++r) {
        float* c = g.c + (i + r) * g.ldc + j;
        const float* from = part.get() + r * kColumns;
        if (g.beta == 0.0f) {
          std::memcpy(c, from, sizeof(float) * cols);
        } else {
          for (int64_t q = 0; q < cols; ++q) c[q] += from[q];
        }
      }
    }
  }
}

}  // namespace

void own_gemm(const Provider& provider, const Gemm& g) {
  const GemmKernels& kernels = gemm_kernels();
  const int64_t slices = slice_count(provider, g.m, g.n * g.k);
  parallel_tasks(provider, slices, [&](int64_t s) {
    multiply_slice(g, kernels, slice_begin(g.m, slices, s), slice_begin(g.m, slices, s + 1));
  });
}

}  // namespace ffkern::cpu
