// The inner kernels of own_gemm() (gemm.cpp): packing, and the product of a block of rows with packed panels.
#pragma once
#include <cstdint>

namespace ffkern::cpu {

/// B of a product, packed: panels of two vectors of columns, [k][2 lanes] each, and a last panel of one vector,
/// [k][lanes], when the number of vectors is odd. Missing columns are zero.
struct Panels {
  const float* data;
  int64_t k;        // rows of B
  int64_t vectors;  // columns / lanes, rounded up
};

struct GemmKernels {
  const char* name;
  int lanes;

  /// C[rows, vectors * lanes] = (add ? C : 0) + A[rows, k] B. A is row-major with any pitch.
  void (*multiply)(int64_t rows, const float* a, int64_t lda, Panels b, bool add, float* c, int64_t ldc);

  /// Panels [first, last) of X^T: the lanes are rows of x[rows, k].
  void (*pack_rows)(const float* x, int64_t ldx, int64_t rows, int64_t k, int64_t first, int64_t last, float* panels);
  /// Panels [first, last) of X: the lanes are columns of x[k, cols].
  void (*pack_columns)(const float* x, int64_t ldx, int64_t k, int64_t cols, int64_t first, int64_t last,
                       float* panels);
  /// out[c, r] = x[r, c].
  void (*transpose)(const float* x, int64_t ldx, int64_t rows, int64_t cols, float* out, int64_t ldo);
};

/// The kernels of the instruction set in use; see row_kernels().
const GemmKernels& gemm_kernels();

}  // namespace ffkern::cpu
