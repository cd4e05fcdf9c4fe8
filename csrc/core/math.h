// Scalar formulas of the method, the same on host and device.
#pragma once
#include <cmath>

#include "types.h"

#if defined(__CUDACC__)
#define FFKERN_HD __host__ __device__ inline
#else
#define FFKERN_HD inline
#endif

namespace ffkern {

/// log(1 + exp(a)) without overflow: exp(a) itself leaves float32 at a = 88.7.
FFKERN_HD double softplus(double a) { return (a > 0 ? a : 0.0) + log1p(exp(a > 0 ? -a : a)); }

/// 1 / (1 + exp(-a)), accurate on both tails.
FFKERN_HD double sigmoid(double a) {
  const double e = exp(a > 0 ? -a : a);
  return a > 0 ? 1 / (1 + e) : e / (1 + e);
}

/// r = 1 / (n + eps) for a row with square sum `sq` of `width` inputs. A zero row gets 1 / eps.
FFKERN_HD float row_scale(LayerKind kind, float norm, int64_t width) {
  if (kind.norm == Norm::kNone) return 1.0f;
  const float n = kind.norm == Norm::kRms ? norm / sqrtf(static_cast<float>(width)) : norm;
  return 1.0f / (n + kind.eps);
}

/// Goodness from the sum of squares and the sum of a row's activities.
FFKERN_HD float goodness_of(Goodness kind, float sum_sq, float sum, int64_t units) {
  switch (kind) {
    case Goodness::kSumSq:
      return sum_sq;
    case Goodness::kMeanSq:
      return sum_sq / static_cast<float>(units);
    case Goodness::kNegSumSq:
      return -sum_sq;
    case Goodness::kNegMeanSq:
      return -sum_sq / static_cast<float>(units);
    case Goodness::kSumAbs:
      return sum;
  }
  return 0.0f;
}

/// dg/dh = slope * h for the square goodnesses; for kSumAbs it is `slope` where h > 0.
FFKERN_HD float goodness_slope(Goodness kind, int64_t units) {
  switch (kind) {
    case Goodness::kSumSq:
      return 2.0f;
    case Goodness::kMeanSq:
      return 2.0f / static_cast<float>(units);
    case Goodness::kNegSumSq:
      return -2.0f;
    case Goodness::kNegMeanSq:
      return -2.0f / static_cast<float>(units);
    case Goodness::kSumAbs:
      return 1.0f;
  }
  return 0.0f;
}

/// Factors of one update. Biases take no decay under Hinton's rule; torch's optimisers decay every parameter.
FFKERN_HD UpdateRule update_rule(const OptimiserParams& p, bool is_bias) {
  const bool adam = p.kind == Optimiser::kAdam || p.kind == Optimiser::kAdamW;
  const double decay = is_bias && p.kind == Optimiser::kEma ? 0.0 : p.weight_decay;
  double power1 = 1.0, power2 = 1.0;
  double b1 = p.beta1, b2 = p.beta2;
  for (int64_t e = p.step; e > 0; e >>= 1, b1 *= b1, b2 *= b2) {  // beta^step by squaring
    if (e & 1) {
      power1 *= b1;
      power2 *= b2;
    }
  }
  UpdateRule r;
  r.kind = p.kind;
  r.lr = static_cast<float>(adam ? p.lr / (1.0 - power1) : p.lr);
  r.weight_decay = static_cast<float>(p.kind == Optimiser::kAdamW ? 0.0 : decay);
  r.shrink = static_cast<float>(p.kind == Optimiser::kAdamW ? 1.0 - p.lr * decay : 1.0);
  r.beta1 = static_cast<float>(p.beta1);
  r.rest1 = static_cast<float>(1.0 - p.beta1);
  r.beta2 = static_cast<float>(p.beta2);
  r.rest2 = static_cast<float>(1.0 - p.beta2);
  r.root = static_cast<float>(adam ? 1.0 / sqrt(1.0 - power2) : 1.0);
  r.eps = static_cast<float>(p.eps);
  return r;
}

/// Loss and coefficient c = dloss/dg of one row; sign is +1 (positive) or -1 (negative).
struct RowLoss {
  double loss;
  float coef;
};
FFKERN_HD RowLoss row_loss(LossParams p, float goodness, float sign, float weight) {
  const double l = static_cast<double>(sign) * (static_cast<double>(goodness) - p.threshold) / p.temperature;
  return {weight * softplus(-l), static_cast<float>(-static_cast<double>(weight) * sign / p.temperature * sigmoid(-l))};
}

}  // namespace ffkern
