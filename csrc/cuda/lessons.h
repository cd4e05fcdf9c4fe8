// Rows that still teach, on CUDA: the bounded half of csrc/cpu/lessons.h, which says what may be left out and why.
//
//     masses   a warp an image     what it would add to dW, as a norm; what it owes to the peer term
//     choose   one block           the bound, the images above it in order, their number, the statistics
//     owed     a thread an input   sums of r x over a slice of the images left out
//     gather   a block an image    rows that are kept move together
//
//     operand [N, M]  ->  the rows kept, then kOwedRows of p      x [N, K]  ->  the rows kept, then a slice's sum each
//
// The number of rows stays on the device, where the gradient product reads it. A slice's sum u = sum of r x is stored
// as u / q, with the factor q = (largest r) (images in it), so that 16 bits can hold both.
//
// Bytes: (K + M) elements an image for the masses (K where the norms of h are known), twice (K + M) an image kept.
#pragma once
#include "../core/types.h"
#include "rows.h"

namespace ffkern::cuda {

constexpr int kOwedRows = 16;  // slices that the images left out are cut into, each a row of the product

/// Argument of ffkern_masses, ffkern_choose, ffkern_owed and ffkern_gather. Rows are variants of images, as elsewhere.
struct LessonsParams {
  Storage storage = Storage::kFloat32;  // of x, h and the operand
  const void* x = nullptr;              // [images, inputs]
  const void* h = nullptr;              // [rows, units]
  const void* operand = nullptr;        // [images, units] of the product: h, or its sum over variants of r dz
  int64_t x_pitch = 0, h_pitch = 0, operand_pitch = 0;
  const float* h_norm = nullptr;       // [rows] norms of h, or null: computed
  const float* coef = nullptr;         // [rows]
  const float* scale = nullptr;        // [rows]
  const float* sign = nullptr;         // [rows] with peer or stats
  const float* peer = nullptr;         // [units] or null
  const float* factor = nullptr;       // [rows] of GradientParams, or null where the operand has none
  const float* peer_factor = nullptr;  // [rows] or null
  const float* power = nullptr;        // [2] that an operand without factors carries, or null
  double tolerance = 0.0;
  int64_t most = 0;  // images that are gathered; with more the product runs over all
  int64_t images = 0;
  int variants = 1, units = 0, inputs = 0, classes = 0;
  Goodness kind = Goodness::kMeanSq;
  double* mass = nullptr;   // [images]
  float* owed = nullptr;    // [images] sum of r over an image's positive rows, with peer
  int* slot = nullptr;      // [images] place among the rows kept, -1: left out
  int* kept = nullptr;      // [1] rows of the product, -1: all images, nothing is gathered
  double* stats = nullptr;  // [kStatCount] the rows left out are taken from the kept ones; or null
  void* kept_operand = nullptr;
  void* kept_x = nullptr;
  int64_t kept_operand_pitch = 0, kept_x_pitch = 0;
  float* kept_factor = nullptr;
  float* kept_peer_factor = nullptr;
};
void leave_out(const Queue&, const LessonsParams&);

}  // namespace ffkern::cuda
