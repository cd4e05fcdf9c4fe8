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
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "gemm_kernels.h"
#include "provider.h"

namespace ffkern::cpu {
namespace {

constexpr int64_t kColumns = 512;  // of C at once: the packed block of B stays in cache
constexpr int64_t kDepth = 2304;   // steps of k at once, for the same reason: a multiple of kBlockK
constexpr int64_t kStrip = 12;     // rows that stay together: whole tiles of every instruction set

constexpr int64_t parts(int64_t size, int64_t part) { return (size + part - 1) / part; }

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

Buffer allocate(int64_t floats) {
  void* p = std::aligned_alloc(64, static_cast<size_t>((floats * 4 + 63) / 64 * 64 + 64));
  if (p == nullptr) throw std::bad_alloc();
  return Buffer(static_cast<float*>(p));
}

struct Range {
  int64_t begin, end;
};

/// Part s of `count` things in `slices` parts, as elements: `size` of them, `each` a thing.
Range cut(int64_t count, int64_t slices, int64_t s, int64_t each, int64_t size) {
  return {slice_begin(count, slices, s) * each, std::min(slice_begin(count, slices, s + 1) * each, size)};
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

/// How many parts C falls into, by rows and by columns.
struct Grid {
  int64_t rows, columns;
};

/// The grid whose largest part has the least to do, in multiply-adds a step of k. Parts of a row pack the same A, parts
/// of a column the same B, and a part has whole strips and panels.
Grid choose_grid(const Provider& provider, const Gemm& g, int64_t strips, int64_t panels, int64_t panel) {
  constexpr int64_t kWorthATask = 1 << 20;  // multiply-adds that pay for waking a thread
  constexpr int64_t kPack = 16;             // multiply-adds in the time that packing an element takes
  const int64_t worth = g.m * g.n * std::max(g.k, int64_t{1}) / kWorthATask;
  const int64_t tasks = std::clamp(worth, int64_t{1}, int64_t{provider.threads});
  Grid best{1, 1};
  int64_t least = INT64_MAX;
  for (int64_t rows = 1; rows <= std::min(tasks, strips); ++rows) {
    const int64_t columns = std::min(tasks / rows, panels);
    const int64_t height = parts(strips, rows) * kStrip, width = parts(panels, columns) * panel;
    const int64_t work = height * width + kPack * (width + (g.trans_a ? height * parts(width, kColumns) : 0));
    if (work < least) {
      least = work;
      best = {rows, columns};
    }
  }
  return best;
}

}  // namespace

void own_gemm(const Provider& provider, const Gemm& g) {
  if (g.m == 0 || g.n == 0) return;
  const GemmKernels& kernels = gemm_kernels();
  const int64_t panel = 2 * kernels.lanes, panels = parts(g.n, panel), strips = parts(g.m, kStrip);
  const Grid grid = choose_grid(provider, g, strips, panels, panel);
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
