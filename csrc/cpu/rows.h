// What forward, learning and prediction share: the product, one row of activities from it with or without a label,
// one row's loss, and the peer term.
#pragma once
#include <cmath>
#include <cstring>

#include "../core/math.h"
#include "kernels.h"
#include "pairs.h"
#include "row_kernels.h"

namespace ffkern::cpu {

inline int64_t label_floats(const Layer& layer) { return (layer.classes + 1) * layer.units; }

/// Panels [begin, end) of the packed weights.
inline void pack_panels(const PairKernels& kernels, int64_t begin, int64_t end, int64_t units, int64_t inputs,
                        const float* weight, uint32_t* out) {
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel * kPanel, rows = units - first < kPanel ? units - first : kPanel;
    kernels.pack_rows(weight + first * inputs, inputs, rows, inputs, out + first * pairs_of(inputs));
  }
}

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

/// Label of row v * images + i as an index; the neutral label is the one past the classes.
inline int64_t label_index(const Layer& layer, int64_t row) {
  const int64_t label = layer.labels[row];
  return label < 0 ? layer.classes : label;
}

/// ||x_i|| from its elements, without label columns.
inline float row_length(const Layer& layer, const RowKernels& kernels, int64_t i) {
  const int64_t begin = i * layer.ldx + layer.classes, count = layer.inputs - layer.classes;
  if (layer.x_low == nullptr) return std::sqrt(kernels.sum_sq(layer.x + begin, count));
  constexpr int64_t kRun = 1024;
  float wide[kRun];
  double total = 0;
  for (int64_t j = 0; j < count; j += kRun) {
    const int64_t run = count - j < kRun ? count - j : kRun;
    pair_kernels().widen(layer.x_low + begin + j, wide, run);
    total += kernels.sum_sq(wide, run);
  }
  return static_cast<float>(std::sqrt(total));
}

/// ||x_i||, without label columns.
inline float input_norm(const Layer& layer, const RowKernels& kernels, int64_t i) {
  if (layer.x_norm != nullptr) return layer.x_norm[i];
  if (layer.kind.norm == Norm::kNone && layer.classes == 0) return 0.0f;  // r = 1 needs no norm
  return row_length(layer, kernels, i);
}

/// Loss of one row into stats; its coefficient.
inline float row_lesson(const Lesson& lesson, int64_t rows, int64_t row, float goodness, double* stats) {
  const float sign = lesson.sign[row];
  if (sign == 0.0f) return 0.0f;
  const float weight = lesson.row_weight != nullptr ? lesson.row_weight[row] : 1.0f / static_cast<float>(rows);
  const RowLoss r = row_loss(lesson.loss, goodness, sign, weight);
  stats[kStatLoss] += r.loss;
  const bool positive = sign > 0;
  stats[positive ? kStatGoodnessPos : kStatGoodnessNeg] += goodness;
  stats[positive ? kStatRowsPos : kStatRowsNeg] += 1;
  stats[positive ? kStatKeptPos : kStatKeptNeg] += 1;  // until an update leaves it out
  if (positive && goodness > lesson.loss.threshold) stats[kStatCorrectPos] += 1;
  if (!positive && goodness < lesson.loss.threshold) stats[kStatCorrectNeg] += 1;
  return r.coef;
}

constexpr int64_t kRunRows = 32;  // rows that add up in a short sum of their own

/// Column sums of a slice as [run, total]: rows are added to the run, which joins the total every kRunRows rows. Over a
/// large batch that rounds far less than one long sum.
inline void end_run(const RowKernels& kernels, float* sums, int64_t units) {
  kernels.add(sums, sums + units, units);
  std::memset(sums, 0, sizeof(float) * units);
}

/// The totals of all slices [slices, 2, units] in the first one's.
inline const float* total_of_runs(const RowKernels& kernels, float* sums, int64_t slices, int64_t units) {
  for (int64_t s = 0; s < slices; ++s) {
    end_run(kernels, sums + s * 2 * units, units);
    if (s > 0) kernels.add(sums + (s * 2 + 1) * units, sums + units, units);
  }
  return sums + units;
}

/// m and p from the summed positive activities; see peer_update() in kernels.h.
inline void peer_from_sums(int64_t units, const float* sums, int64_t positives, PeerParams params, float* mean,
                           float* p) {
  if (positives == 0) {
    std::memset(p, 0, sizeof(float) * units);
    return;
  }
  double total = 0;
  for (int64_t j = 0; j < units; ++j) {
    mean[j] = params.momentum * mean[j] + (1.0f - params.momentum) * (sums[j] / static_cast<float>(positives));
    total += mean[j];
  }
  const float centre = static_cast<float>(total / static_cast<double>(units));
  const float factor = params.strength / static_cast<float>(positives);
  for (int64_t j = 0; j < units; ++j) p[j] = factor * (mean[j] - centre);
}

inline int64_t count_positive(int64_t rows, const float* sign) {
  int64_t n = 0;
  for (int64_t i = 0; i < rows; ++i) n += sign[i] > 0;
  return n;
}

/// Activities of row `at`: image at % images with the label of that row, if the layer has labels.
inline Row forward_row(const Layer& layer, const RowKernels& kernels, const float* columns, const float* z, float norm,
                       int64_t at, float* h) {
  return layer.classes == 0 ? plain_row(layer, kernels, z, norm, h)
                            : variant_row(layer, kernels, columns, z, norm, label_index(layer, at), h);
}

/// z = x W^T of images [begin, begin + images), without the label columns.
inline void product(const Provider& provider, const Layer& layer, int64_t begin, int64_t images, float* z) {
  if (layer.x_low != nullptr) return low_product(provider, layer, begin, images, z);
  const int64_t skip = layer.classes;
  provider.gemm(provider, {.trans_b = true,
                           .m = images,
                           .n = layer.units,
                           .k = layer.inputs - skip,
                           .a = layer.x + begin * layer.ldx + skip,
                           .lda = layer.ldx,
                           .b = layer.weight + skip,
                           .ldb = layer.inputs,
                           .c = z,
                           .ldc = layer.units});
}

}  // namespace ffkern::cpu
