// Products of bfloat16 rows: the forward one, and the weight gradient. Operands lie as pair_kernels.h says; sums are
// float32.
//
//     forward    z [R, M]  = x W^T        x as it lies in memory; W in panels [M / 16][K / 2][16]
//     gradient   dW [M, K] = (r dz)^T x   pairs of rows: [M / 16][R / 2][16] and [K / 16][R / 2][16]
//
// Bytes: the forward product reads 2 RK + 2 MK and writes 4 RM. Packing for the gradient reads 4 RM + 2 RK and writes
// 2 RM + 2 RK. FLOPs: 2 RKM each.
#pragma once
#include "arena.h"
#include "kernels.h"
#include "pair_kernels.h"
#include "provider.h"

namespace ffkern::cpu {

/// z [images, M] of images [begin, begin + images) without the label columns, from layer.x_low and layer.weight_low.
void low_product(const Provider&, const Layer& layer, int64_t begin, int64_t images, float* z);

/// The rows that a weight gradient sums over: the first `count`, or those of an index, and one more if `more_rdz` is
/// not null.
struct SummedRows {
  int64_t count = 0;
  const int64_t* index = nullptr;
  const float* more_rdz = nullptr;   // [M]
  const uint16_t* more_x = nullptr;  // [K]

  int64_t total() const { return count + (more_rdz != nullptr ? 1 : 0); }
};

/// Operands of a weight gradient in packed form.
struct LowOperands {
  int64_t pairs;  // of rows; a multiple of the kernels' depth_step
  uint32_t *rdz, *x;

  /// Room for `rows` rows, from an arena; pack_operands() sets how many pairs there are.
  LowOperands(Arena& arena, const Layer& layer, int64_t rows);
};

/// Packs r dz [*, M] and the rows of layer.x_low from image `begin` on.
void pack_operands(const Provider&, const Layer& layer, int64_t begin, SummedRows rows, const float* rdz,
                   LowOperands& operands);

/// C [units, K] = (add ? C : 0) + dW of units [first, first + units), all columns; first is a multiple of 16. In the
/// calling thread.
void low_gradient(const Layer& layer, const LowOperands& operands, int64_t first, int64_t units, bool add, float* c);

}  // namespace ffkern::cpu
