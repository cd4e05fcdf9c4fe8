// The inner kernels of own_gemm() (gemm.cpp): packing of B, and the product of a block of rows with packed panels.
#pragma once
#include <cstdint>

namespace ffkern::cpu {

/// B of a product, packed: panels of two vectors of columns, [k][2 lanes] each, and a last panel of one vector,
/// [k][lanes], when the number of vectors is odd. Missing columns are zero.
struct Panels {
  const float* data;
  int64_t k;        // rows of B, idle ones included
  int64_t vectors;  // columns / lanes, rounded up
};

/// A of a product, as it lies in memory.
struct Left {
  const float* data;
  int64_t ld;
  bool transposed;      // element (i, p) is data[p * ld + i] instead of data[i * ld + p]
  const uint8_t* idle;  // [k] steps that are not packed (Gemm::idle), or null
};

constexpr int64_t kBlockRows = 96;  // of A that a call of multiply() takes at most
constexpr int64_t kBlockK = 192;    // steps of k that add up in registers

struct GemmKernels {
  const char* name;
  int lanes;

  /// C[rows, vectors * lanes] = A[rows, k] B, rows <= kBlockRows. scratch: kBlockRows * kBlockK floats where A is
  /// transposed.
  void (*multiply)(int64_t rows, Left a, Panels b, float* scratch, float* c, int64_t ldc);

  /// Panels [first, last) of X^T: the lanes are rows of x[rows, k].
  void (*pack_rows)(const float* x, int64_t ldx, int64_t rows, int64_t k, int64_t first, int64_t last, float* panels);
  /// Panels [first, last) of X: the lanes are columns of x[k, cols]. The steps that are not idle lie at the front.
  void (*pack_columns)(const float* x, int64_t ldx, int64_t k, const uint8_t* idle, int64_t cols, int64_t first,
                       int64_t last, float* panels);
};

/// The kernels of the instruction set in use; see row_kernels().
const GemmKernels& gemm_kernels();

}  // namespace ffkern::cpu
