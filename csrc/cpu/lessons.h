// Rows that still teach: a product dW = (r dz)^T x over those rows alone.
//
// The coefficient of a row far on its right side of the threshold is next to nothing, and so is its part of dW. With
// Hinton's goodness and threshold that is most rows, soon. The part of image i has the norm
//
//     mass_i = sum over its variants of |c| |dg/dh factor| r ||h|| ||x||        (the norm of an outer product)
//
// and the image is left out where N mass_i <= tolerance * (sum of all masses). What is left out then amounts to at most
// tolerance * sum of masses. At 2^-24 that is below the rounding of the sum itself, whose bound is the same sum times
// a multiple of 2^-24. Fit for SGD and EMA, whose step is linear in dW; Adam divides small gradients by their own size.
//
// The peer term p of a positive row does not fade with its coefficient. It is one vector for all of them, so what the
// rows left out owe is p u^T with u = sum of their r x: one more row of the product.
//
//     r dz [N,M]  ->  the rows kept, moved up in place, then p        x [N,K]  ->  gathered, then u
//
// Bytes: (kept rows) (K + M) floats copied, against 2 N M K FLOPs of the full product. More than half of the rows
// kept: the full product runs, on the same bits as with tolerance 0.
#pragma once
#include <cmath>
#include <cstring>

#include "../core/math.h"
#include "arena.h"
#include "kernels.h"
#include "pairs.h"
#include "row_kernels.h"

namespace ffkern::cpu {

/// The rows that a weight product runs over.
struct ProductRows {
  int64_t count;
  const float* x;
  int64_t ldx;
};

class Lessons {
 public:
  Lessons(Arena& arena, const Layer& layer)
      : capacity_(layer.images / 2 < kMostKept ? layer.images / 2 : kMostKept),
        mass_(arena.take_doubles(layer.images)),
        owed_(arena.take(layer.images)),
        x_(arena.take((capacity_ + 2) * layer.inputs)) {
    if (layer.x_low == nullptr) return;
    index_ = reinterpret_cast<int64_t*>(arena.take_doubles(layer.images));
    low_u_ = reinterpret_cast<uint16_t*>(arena.take(pairs_of(layer.inputs)));
  }

  /// Notes one row of image i. `owes` rows are positive ones of a layer with a peer term.
  void note(const Layer& layer, int64_t i, bool first, float coef, float scale, float h_norm, float x_norm,
            bool owes) const {
    const float dh = layer.kind.goodness == Goodness::kSumAbs ? std::sqrt(static_cast<float>(layer.units)) : h_norm;
    const double slope = std::fabs(static_cast<double>(coef) * goodness_slope(layer.kind.goodness, layer.units));
    mass_[i] = (first ? 0.0 : mass_[i]) + slope * dh * scale * x_norm;
    owed_[i] = (first ? 0.0f : owed_[i]) + (owes ? scale : 0.0f);
  }

  /// The rows of bfloat16 that still teach, by index: packing them for the product copies no others. p [M] is the peer
  /// term or null.
  SummedRows keep_low(const RowKernels& kernels, const Layer& layer, double tolerance, const float* p) const {
    const SummedRows all{layer.images};
    if (!(tolerance > 0)) return all;
    double total = 0;
    for (int64_t i = 0; i < layer.images; ++i) total += mass_[i];
    if (!std::isfinite(total)) return all;
    const double least = tolerance * total / static_cast<double>(layer.images);
    int64_t kept = 0;
    float *u = x_, *wide = x_ + layer.inputs;
    if (p != nullptr) std::memset(u, 0, sizeof(float) * layer.inputs);
    for (int64_t i = 0; i < layer.images; ++i) {
      if (mass_[i] > least) {
        index_[kept++] = i;
      } else if (p != nullptr && owed_[i] != 0) {
        pair_kernels().widen(layer.x_low + i * layer.ldx, wide, layer.inputs);
        kernels.axpy(owed_[i], wide, u, layer.inputs);
      }
    }
    if (p == nullptr || kept == layer.images) return {kept, index_};
    pair_kernels().narrow(u, low_u_, layer.inputs);
    return {kept, index_, p, low_u_};
  }

  /// Moves the rows that still teach to the front of rdz; all rows stay where they are if too many do, or if any mass
  /// is not finite. p [M] is the peer term or null.
  ProductRows keep(const RowKernels& kernels, const Layer& layer, double tolerance, const float* p, float* rdz) const {
    const ProductRows all{layer.images, layer.x, layer.ldx};
    if (!(tolerance > 0)) return all;
    double total = 0;
    for (int64_t i = 0; i < layer.images; ++i) total += mass_[i];
    if (!std::isfinite(total)) return all;
    const double least = tolerance * total / static_cast<double>(layer.images);
    int64_t kept = 0;
    for (int64_t i = 0; i < layer.images; ++i) kept += mass_[i] > least;
    if (kept > capacity_) return all;

    float* u = x_ + kept * layer.inputs;
    if (p != nullptr) std::memset(u, 0, sizeof(float) * layer.inputs);
    int64_t to = 0;
    for (int64_t i = 0; i < layer.images; ++i) {
      const float* x = layer.x + i * layer.ldx;
      if (mass_[i] > least) {
        std::memcpy(x_ + to * layer.inputs, x, sizeof(float) * layer.inputs);
        if (to < i) std::memcpy(rdz + to * layer.units, rdz + i * layer.units, sizeof(float) * layer.units);
        ++to;
      } else if (p != nullptr && owed_[i] != 0) {
        kernels.axpy(owed_[i], x, u, layer.inputs);
      }
    }
    if (p != nullptr) std::memcpy(rdz + kept * layer.units, p, sizeof(float) * layer.units);
    return {kept + (p != nullptr ? 1 : 0), x_, layer.inputs};
  }

 private:
  static constexpr int64_t kMostKept = 2048;  // bounds the copy of x: 16 MiB at 2000 inputs

  int64_t capacity_;
  double* mass_;               // [N]
  float* owed_;                // [N] sum of r over an image's positive rows
  float* x_;                   // [capacity + 1, K]
  int64_t* index_ = nullptr;   // [N] of rows of bfloat16
  uint16_t* low_u_ = nullptr;  // [K]
};

}  // namespace ffkern::cpu
