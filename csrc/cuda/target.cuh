// The end of a gradient: label columns put right, then the optimiser, or the plain gradient stored.
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

/// dW[j, k] of a label input: rows with that label, and neutral rows, each times what they put into it.
__device__ __forceinline__ float label_gradient(const GradientTarget& t, int j, int k) {
  return static_cast<float>(t.overlay[0] * column_sum(t, 1 + k, j) + t.overlay[1] * column_sum(t, 1 + t.classes, j));
}

/// One element of the weights, at j * inputs + k, with the gradient g (of the product, without label inputs).
__device__ __forceinline__ void finish_weight(const GradientTarget& t, const UpdateRule& rule, int j, int k, float g,
                                              float& weight, float& m, float& v) {
  if (k < t.classes) g = label_gradient(t, j, k);
  if (t.dweight != nullptr) {
    weight = g;
  } else {
    update_element(rule, g, weight, m, v);
  }
}

/// kCount floats that are accessed at once.
template <int kCount>
struct alignas(4 * kCount) Floats {
  float at[kCount];
};

/// kCount neighbours of row j from column k on; with more than one, inputs is a multiple of it, and so are addresses.
template <int kCount>
__device__ __forceinline__ void finish_weights(const GradientTarget& t, const UpdateRule& rule, int j, int k,
                                               const Floats<kCount>& g) {
  using Vector = Floats<kCount>;
  const auto vector = [](float* p) -> Vector& { return *reinterpret_cast<Vector*>(p); };
  const int64_t index = int64_t{j} * t.inputs + k;
  Vector weight = {}, m = {}, v = {};
  if (t.dweight == nullptr) {
    weight = vector(t.weight + index);
    m = vector(t.m + index);
    if (t.v != nullptr) v = vector(t.v + index);
  }
#pragma unroll
  for (int e = 0; e < kCount; ++e) finish_weight(t, rule, j, k + e, g.at[e], weight.at[e], m.at[e], v.at[e]);
  if (t.dweight != nullptr) {
    vector(t.dweight + index) = weight;
    return;
  }
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
