// A float32 product for builds without a BLAS (NumPy and C++ users), and a second opinion for tests.
//
//              B [k, n]                 C is cut into a grid of parts, one task each. A part packs its own columns of B
//           +------+------+             into panels, kColumns at a time, and multiplies its rows of A with them,
//           |      |      |             kBlockRows at a time. A is used as it lies; a transposed one is copied block by
//   A       +------+------+             block on the way.
//   +---+   +------+------+
//   |   |   | task | task |             Every element of C is one sum whose order k alone fixes (gemm_kernels.cpp), so
//   +---+   +------+------+             the grid, and with it the number of threads, cannot change a bit.
//   |   |   | task | task |
//   +---+   +------+------+
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "gemm_kernels.h"
#include "grid.h"

namespace ffkern::cpu {
namespace {

constexpr int64_t kColumns = 512;  // of C at once: the packed block of B stays in cache
constexpr int64_t kDepth = 2304;   // steps of k at once, for the same reason: a multiple of kBlockK
constexpr int64_t kStrip = 12;     // rows that stay together: whole tiles of every instruction set

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

Buffer allocate(int64_t floats) {
  void* p = std::aligned_alloc(64, static_cast<size_t>((floats * 4 + 63) / 64 * 64 + 64));
  if (p == nullptr) throw std::bad_alloc();
  return Buffer(static_cast<float*>(p));
}

void multiply_part(const Gemm& g, const GemmKernels& kernels, Range rows, Range columns) {
  const int64_t lanes = kernels.lanes, most = std::min(kColumns, columns.end - columns.begin);
  const int64_t pitch = parts(most, lanes) * lanes;
  const Buffer panels = allocate(g.k * pitch), block = allocate(kBlockRows * pitch);
  const Buffer scratch = g.trans_a ? allocate(kBlockRows * kBlockK) : nullptr;
  for (int64_t j = columns.begin; j < columns.end; j += kColumns) {
    const int64_t cols = std::min(kColumns, columns.end - j), vectors = parts(cols, lanes);
    if (g.trans_b) {
      kernels.pack_rows(g.b + j * g.ldb, g.ldb, cols, g.k, 0, parts(vectors, 2), panels.get());
    } else {
      kernels.pack_columns(g.b + j, g.ldb, g.k, g.idle, cols, 0, parts(vectors, 2), panels.get());
    }
    for (int64_t i = rows.begin; i < rows.end; i += kBlockRows) {
      const int64_t count = std::min(kBlockRows, rows.end - i);
      const Left a{g.trans_a ? g.a + i : g.a + i * g.lda, g.lda, g.trans_a, g.idle};
      kernels.multiply(count, a, {panels.get(), g.k, vectors}, scratch.get(), block.get(), pitch);
      for (int64_t r = 0; r < count; ++r) {
        float* c = g.c + (i + r) * g.ldc + j;
        const float* from = block.get() + r * pitch;
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
  if (g.m == 0 || g.n == 0) return;
  const GemmKernels& kernels = gemm_kernels();
  const int64_t panel = 2 * kernels.lanes, panels = parts(g.n, panel), strips = parts(g.m, kStrip);
  // Parts of a row pack the same A, parts of a column the same B.
  constexpr int64_t kPack = 16;  // multiply-adds in the time that packing an element takes
  const int64_t tasks = product_tasks(provider, g.m * g.n * std::max(g.k, int64_t{1}));
  const Grid grid = choose_grid(tasks, strips, panels, [&](int64_t part_strips, int64_t part_panels) {
    const int64_t height = part_strips * kStrip, width = part_panels * panel;
    return height * width + kPack * (width + (g.trans_a ? height * parts(width, kColumns) : 0));
  });
  parallel_tasks(provider, grid.rows * grid.columns, [&](int64_t task) {
    const Range rows = cut(strips, grid.rows, task / grid.columns, kStrip, g.m);
    const Range columns = cut(panels, grid.columns, task % grid.columns, panel, g.n);
    Gemm part = g;
    for (int64_t p = 0; p == 0 || p < g.k; p += kDepth) {  // at least once: k = 0 has to write zeros
      part.k = std::min(kDepth, g.k - p);
      part.a = g.a + (g.trans_a ? p * g.lda : p);
      part.b = g.b + (g.trans_b ? p : p * g.ldb);
      if (g.idle != nullptr) part.idle = g.idle + p;
      if (p > 0) part.beta = 1.0f;
      multiply_part(part, kernels, rows, columns);
    }
  });
}

}  // namespace ffkern::cpu
