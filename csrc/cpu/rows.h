// What the layer, its step and prediction share: one row of activities from its product, with or without a label.
#pragma once
#include <cmath>
#include <cstring>

#include "../core/math.h"
#include "kernels.h"
#include "row_kernels.h"

namespace ffkern::cpu {

/// Label columns of W as contiguous rows [classes + 1, M]; the last row is their sum, for the neutral label.
inline void gather_labels(const Layer& layer, float* columns) {
  float* total = columns + layer.classes * layer.units;
  std::memset(total, 0, sizeof(float) * layer.units);
  for (int64_t j = 0; j < layer.units; ++j) {
    for (int64_t c = 0; c < layer.classes; ++c) {
      const float w = layer.weight[j * layer.inputs + c];
      columns[c * layer.units + j] = w;
      total[j] += w;
    }
  }
}

/// What a label index (classes = the neutral label) puts into its inputs.
inline float label_value(const Layer& layer, int64_t index) {
  return index == layer.classes ? layer.neutral_value : layer.on_value;
}

/// ||x_v|| of a label variant from the norm without the label inputs.
inline float variant_norm(const Layer& layer, float rest, int64_t index) {
  const float v = label_value(layer, index);
  return std::sqrt(rest * rest + (index == layer.classes ? static_cast<float>(layer.classes) : 1.0f) * v * v);
}

struct Row {
  float scale, goodness, h_norm;
};

inline Row finish_row(const Layer& layer, float scale, RowSums sums) {
  return {scale, goodness_of(layer.kind.goodness, sums.squares, sums.plain, layer.units), std::sqrt(sums.squares)};
}

/// Activities of a plain row; h may be z itself.
inline Row plain_row(const Layer& layer, const RowKernels& kernels, const float* z, float norm, float* h) {
  const float scale = row_scale(layer.kind, norm, layer.inputs);
  return finish_row(layer, scale, kernels.epilogue(z, layer.bias, scale, h, layer.units));
}

/// Activities of a label variant from the product without label inputs; h may be null.
inline Row variant_row(const Layer& layer, const RowKernels& kernels, const float* columns, const float* z,
                       float rest_norm, int64_t index, float* h) {
  const float scale = row_scale(layer.kind, variant_norm(layer, rest_norm, index), layer.inputs);
  const LabelColumn label{columns + index * layer.units, label_value(layer, index)};
  return finish_row(layer, scale, kernels.epilogue_label(z, label, layer.bias, scale, h, layer.units));
}

}  // namespace ffkern::cpu
