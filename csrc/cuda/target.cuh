// The end of a gradient: the optimiser, or the plain gradient stored.
#pragma once
#include "product.h"
#include "ptx.cuh"
#include "update.cuh"

namespace ffkern::cuda {

/// Sum over all slices of entry `index` of unit j in GradientTarget::column_sums, in order.
__device__ __forceinline__ double column_sum(const GradientTarget& t, int index, int j) {
  double sum = 0.0;
  for (int s = 0; s < t.slices; ++s) {
    sum += t.column_sums[(int64_t{s} * (t.classes > 0 ? t.classes + 2 : 1) + index) * t.units + j];
  }
  return sum;
}

/// kCount floats that are accessed at once.
template <int kCount>
struct alignas(4 * kCount) Floats {
  float at[kCount];
};

/// kCount neighbours of row j from column k on, whose gradients are g: updates them, or stores the gradients. With more
/// than one, inputs is a multiple of it, and so are addresses.
template <int kCount>
__device__ __forceinline__ void finish_weights(const GradientTarget& t, const UpdateRule& rule, int j, int k,
                                               const Floats<kCount>& g) {
  using Vector = Floats<kCount>;
  const auto vector = [](float* p) -> Vector& { return *reinterpret_cast<Vector*>(p); };
  const int64_t index = int64_t{j} * t.inputs + k;
  if (t.dweight != nullptr) {
    vector(t.dweight + index) = g;
    return;
  }
  Vector weight = vector(t.weight + index), m = vector(t.m + index), v = {};
  if (t.v != nullptr) v = vector(t.v + index);
#pragma unroll
  for (int e = 0; e < kCount; ++e) update_element(rule, g.at[e], weight.at[e], m.at[e], v.at[e]);
  vector(t.weight + index) = weight;
  vector(t.m + index) = m;
  if (t.v != nullptr) vector(t.v + index) = v;
  if (t.low != nullptr) {
    auto* low = static_cast<uint16_t*>(t.low) + index;
    const auto pack = [&](float a, float b) {
      return t.low_storage == Storage::kBfloat16 ? pack_bf16(a, b) : pack_f16(a, b);
    };
    if constexpr (kCount == 1) {
      *low = static_cast<uint16_t>(pack(weight.at[0], 0.0f));
    } else {
      static_assert(kCount == 4);
      *reinterpret_cast<uint2*>(low) = {pack(weight.at[0], weight.at[1]), pack(weight.at[2], weight.at[3])};
    }
  }
}

/// The same for gradients of the product, which says nothing about label inputs: those are left to finish_label().
template <int kCount>
__device__ __forceinline__ void finish_product(const GradientTarget& t, const UpdateRule& rule, int j, int k,
                                               const Floats<kCount>& g) {
  if (k >= t.classes) {
    finish_weights(t, rule, j, k, g);
    return;
  }
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    if (k + e >= t.classes) finish_weights(t, rule, j, k + e, Floats<1>{{g.at[e]}});
  }
}

/// The weight of unit j and label c, from the sums over rows with that label and over neutral rows, each times what the
/// row puts into the input.
__device__ __forceinline__ void finish_label(const GradientTarget& t, int j, int c) {
  const double g = t.overlay[0] * column_sum(t, 1 + c, j) + t.overlay[1] * column_sum(t, 1 + t.classes, j);
  const UpdateRule rule = t.dweight == nullptr ? t.rules[0] : UpdateRule{};
  finish_weights(t, rule, j, c, Floats<1>{{static_cast<float>(g)}});
}

/// The bias of unit j.
__device__ __forceinline__ void finish_bias(const GradientTarget& t, int j) {
  double sum = column_sum(t, 0, j);
  if (t.peer != nullptr) sum += static_cast<double>(*t.positives) * t.peer[j];
  const float g = static_cast<float>(sum);
  if (t.dbias != nullptr) {
    t.dbias[j] = g;
  } else if (t.bias != nullptr) {
    float v = t.bias_v != nullptr ? t.bias_v[j] : 0.0f;
    update_element(t.rules[1], g, t.bias[j], t.bias_m[j], v);
    if (t.bias_v != nullptr) t.bias_v[j] = v;
  }
}

}  // namespace ffkern::cuda
