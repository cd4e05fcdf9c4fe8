// One optimiser update of one element, the same formulas as csrc/cpu/row_kernels.cpp.
#pragma once
#include "../core/math.h"

namespace ffkern::cuda {

/// Moves `weight` by gradient `g`; m and v are its state (v is not read with one slot).
__device__ __forceinline__ void update_element(const UpdateRule& r, float g, float& weight, float& m, float& v) {
  const float w = weight;
  switch (r.kind) {
    case Optimiser::kSgd:
      m = fmaf(r.beta1, m, fmaf(r.weight_decay, w, g));
      weight = fmaf(-r.lr, m, w);
      return;
    case Optimiser::kEma:
      m = fmaf(r.beta1, m, r.rest1 * g);
      weight = fmaf(-r.lr, fmaf(r.weight_decay, w, m), w);
      return;
    case Optimiser::kAdam:
    case Optimiser::kAdamW: {
      g = fmaf(r.weight_decay, w, g);
      m = fmaf(r.beta1, m, r.rest1 * g);
      v = fmaf(r.rest2 * g, g, r.beta2 * v);
      const float denominator = fmaf(sqrtf(v), r.root, r.eps);
      weight = fmaf(-r.lr, m / denominator, w * r.shrink);
      return;
    }
  }
}

}  // namespace ffkern::cuda
