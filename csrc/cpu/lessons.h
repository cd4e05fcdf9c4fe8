// Rows that still teach: a product dW = (r dz)^T x over those rows alone.
//
// The coefficient of a row far on its right side of the threshold is next to nothing, and so is its part of dW. With
// Hinton's goodness and threshold that is most rows, soon. Two ways to leave them out:
//
// Exact, for every optimiser. An image whose r dz is zero, because all its coefficients are, adds nothing if its x is
// finite. It is marked as idle, and own_gemm() passes over it without a change in any bit (gemm_kernels.cpp). A BLAS
// makes no promise about bits, so there it is multiplied.
//
// Bounded, where the step is linear in dW (SGD and EMA; Adam divides small gradients by their own size). The part of
// image i has the norm
//
//     mass_i = sum over its variants of |c| |dg/dh factor| r ||h|| ||x||        (the norm of an outer product)
//
// and the image is left out where N mass_i <= tolerance * (sum of all masses). What is left out then amounts to at most
// tolerance * sum of masses. At 2^-24 that is below the rounding of the sum itself, whose bound is the same sum times
// a multiple of 2^-24.
//
// The peer term p of a positive row does not fade with its coefficient. It is one vector for all of them, so what the
// rows left out owe is p u^T with u = sum of their r x: one more row of the product.
//
//     r dz [N,M]  ->  the rows kept, moved up in place, then p        x [N,K]  ->  gathered, then u
//
// Bytes: (kept rows) (K + M) floats copied, against 2 N M K FLOPs of the full product. More rows kept than pay for that
// (docs/design.md has the measurement): the full product runs, on the same bits as with tolerance 0.
#pragma once
#include <cmath>
#include <cstring>
#include <optional>

#include "../core/math.h"
#include "arena.h"
#include "kernels.h"
#include "pairs.h"
#include "row_kernels.h"
#include "rows.h"

namespace ffkern::cpu {

/// The rows that a weight product runs over.
struct ProductRows {
  int64_t count;
  const float* x;
  int64_t ldx;
  const uint8_t* idle = nullptr;  // [count] as Gemm::idle
};

class Lessons {
 public:
  /// bounded: rows may be left out that teach little, not only those that teach nothing.
  Lessons(Arena& arena, const Layer& layer, bool bounded)
      : bounded_(bounded), idle_(reinterpret_cast<uint8_t*>(arena.take(layer.images / 4 + 1))) {
    const bool low = layer.x_low != nullptr;
    if (low) index_ = reinterpret_cast<int64_t*>(arena.take_doubles(layer.images));
    if (!bounded) return;
    capacity_ = low ? 0 : most_kept(layer.images);
    mass_ = arena.take_doubles(layer.images);
    owed_ = arena.take(layer.images);
    x_ = arena.take((capacity_ + 2) * layer.inputs);
    if (low) u_low_ = reinterpret_cast<uint16_t*>(arena.take(pairs_of(layer.inputs)));
  }

  /// Notes one row of image i, whose norms (with `bounded` alone) are those of its h and x. `owes` rows are positive
  /// ones of a layer with a peer term.
  void note(const Layer& layer, int64_t i, bool first, float coef, float scale, float h_norm, float x_norm,
            bool owes) const {
    idle_[i] = (first || idle_[i] != 0) && coef == 0.0f && !owes;
    if (!bounded_) return;
    const float dh = layer.kind.goodness == Goodness::kSumAbs ? std::sqrt(static_cast<float>(layer.units)) : h_norm;
    const double slope = std::fabs(static_cast<double>(coef) * goodness_slope(layer.kind.goodness, layer.units));
    mass_[i] = (first ? 0.0 : mass_[i]) + slope * dh * scale * x_norm;
    owed_[i] = (first ? 0.0f : owed_[i]) + (owes ? scale : 0.0f);
  }

  /// Takes image i, all of whose rows are noted, from the idle ones if multiplying it would not add zeros: r dz [M] or
  /// the inputs that count are not finite.
  void check(const RowKernels& kernels, const Layer& layer, int64_t i, const float* rdz) const {
    if (idle_[i] == 0) return;
    idle_[i] = kernels.sum_sq(rdz, layer.units) == 0.0f && std::isfinite(row_length(layer, kernels, i));
  }

  /// Images [begin, begin + count) where they lie, the idle ones marked.
  ProductRows all(const Layer& layer, int64_t begin, int64_t count) const {
    return {count, layer.x + begin * layer.ldx, layer.ldx, idle_ + begin};
  }

  /// The rows of bfloat16 that still teach, by index: packing them for the product copies no others. The bits of a sum
  /// stay if whole steps of the product that are zero are left out, from a sum that is added up in one go. p [M] is the
  /// peer term or null.
  SummedRows keep_low(const RowKernels& kernels, const Layer& layer, double tolerance, const float* p) const {
    const std::optional<double> least = least_mass(layer, tolerance);
    if (!least) return keep_low_steps(layer);
    int64_t kept = 0;
    float *u = x_, *wide = x_ + layer.inputs;
    if (p != nullptr) std::memset(u, 0, sizeof(float) * layer.inputs);
    for (int64_t i = 0; i < layer.images; ++i) {
      idle_[i] = !(mass_[i] > *least);
      if (idle_[i] == 0) {
        index_[kept++] = i;
      } else if (p != nullptr && owed_[i] != 0) {
        pair_kernels().widen(layer.x_low + i * layer.ldx, wide, layer.inputs);
        kernels.axpy(owed_[i], wide, u, layer.inputs);
      }
    }
    if (p == nullptr || kept == layer.images) return {kept, index_};
    pair_kernels().narrow(u, u_low_, layer.inputs);
    return {kept, index_, p, u_low_};
  }

  /// Moves the rows that still teach to the front of rdz, and marks the others as idle; all rows stay where and what
  /// they are if too many teach, or if any mass is not finite. p [M] is the peer term or null.
  ProductRows keep(const RowKernels& kernels, const Layer& layer, double tolerance, const float* p, float* rdz) const {
    const std::optional<double> least = least_mass(layer, tolerance);
    if (!least) return all(layer, 0, layer.images);
    int64_t kept = 0;
    for (int64_t i = 0; i < layer.images; ++i) kept += mass_[i] > *least;
    if (kept > capacity_) return all(layer, 0, layer.images);

    float* u = x_ + kept * layer.inputs;
    if (p != nullptr) std::memset(u, 0, sizeof(float) * layer.inputs);
    int64_t to = 0;
    for (int64_t i = 0; i < layer.images; ++i) {
      const float* x = layer.x + i * layer.ldx;
      idle_[i] = !(mass_[i] > *least);
      if (idle_[i] == 0) {
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

  /// Takes the rows of idle images from the kept ones of stats [kStatCount].
  void count(const Layer& layer, const float* sign, double* stats) const {
    for (int64_t at = 0; at < layer.rows(); ++at) {
      if (idle_[at % layer.images] == 0 || sign[at] == 0.0f) continue;
      stats[sign[at] > 0 ? kStatKeptPos : kStatKeptNeg] -= 1;
    }
  }

 private:
  static constexpr int64_t kMostKept = 2048;  // bounds the copy of x: 16 MiB at 2000 inputs

  /// The mass that an image has to exceed to be kept; none if only zeros may be left out, or a mass is not finite.
  std::optional<double> least_mass(const Layer& layer, double tolerance) const {
    double total = 0;
    for (int64_t i = 0; bounded_ && i < layer.images; ++i) total += mass_[i];
    if (!bounded_ || !std::isfinite(total)) return std::nullopt;
    return tolerance * total / static_cast<double>(layer.images);
  }

  /// Rows of bfloat16 without the steps of the product in which all are idle.
  SummedRows keep_low_steps(const Layer& layer) const {
    if (layer.images > 2 * kExactPairs) return {layer.images};
    const int64_t step = 2 * pair_kernels().depth_step;
    int64_t kept = 0;
    for (int64_t i = 0; i < layer.images; i += step) {
      const int64_t end = i + step < layer.images ? i + step : layer.images;
      if (std::memchr(idle_ + i, 0, end - i) == nullptr) continue;
      for (int64_t j = i; j < end; ++j) index_[kept++] = j;
    }
    return {kept, index_};
  }

  /// More do not pay for being copied.
  static int64_t most_kept(int64_t images) {
    const int64_t share = images - images / 8;
    return share < kMostKept ? share : kMostKept;
  }

  bool bounded_;
  uint8_t* idle_;  // [N]
  int64_t capacity_ = 0;
  double* mass_ = nullptr;     // [N]
  float* owed_ = nullptr;      // [N] sum of r over an image's positive rows
  float* x_ = nullptr;         // [capacity + 2, K]
  int64_t* index_ = nullptr;   // [N] of rows of bfloat16
  uint16_t* u_low_ = nullptr;  // [K]
};

}  // namespace ffkern::cpu
