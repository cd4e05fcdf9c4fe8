// Softmax classifier on the length-normalised activities of chosen layers.
//
// logits = sum over layers of r_l (h_l W_l^T) + b: the row scale commutes with the product again, so no normalised
// copy of the activities exists, and the layers are never concatenated. The gradient stops here: dW_l = (r_l d)^T h_l
// with d = (softmax - onehot) / N, and nothing flows into h.
#include <cmath>
#include <cstring>

#include "../core/math.h"
#include "arena.h"
#include "kernels.h"
#include "row_kernels.h"

namespace ffkern::cpu {
namespace {

struct HeadScratch {
  float *part, *dlogits, *dweight, *dbias;

  HeadScratch(Arena& arena, const Head& head) {
    part = arena.take(head.images * head.classes);
    dlogits = arena.take(head.images * head.classes);
    dweight = arena.take(head.classes * head.width);
    dbias = arena.take(head.classes);
  }
};

}  // namespace

int64_t head_floats(const Head& head) {
  Arena arena(nullptr);
  HeadScratch(arena, head);
  return arena.used();
}

void head_forward(const Provider& provider, const Head& head, float* logits, float* memory) {
  const RowKernels& kernels = row_kernels();
  Arena arena(memory);
  const HeadScratch scratch(arena, head);
  for (int64_t i = 0; i < head.images; ++i) {
    for (int64_t c = 0; c < head.classes; ++c)
      logits[i * head.classes + c] = head.bias != nullptr ? head.bias[c] : 0.0f;
  }
  int64_t column = 0;
  for (int64_t l = 0; l < head.count; ++l) {
    const HeadInput& in = head.inputs[l];
    provider.gemm(provider, {.trans_b = true,
                             .m = head.images,
                             .n = head.classes,
                             .k = in.units,
                             .a = in.h,
                             .lda = in.ldh,
                             .b = head.weight + column,
                             .ldb = head.width,
                             .c = scratch.part,
                             .ldc = head.classes});
    for (int64_t i = 0; i < head.images; ++i) {
      kernels.axpy(row_scale(head.kind, in.h_norm[i], in.units), scratch.part + i * head.classes,
                   logits + i * head.classes, head.classes);
    }
    column += in.units;
  }
}

void head_step(const Provider& provider, const Head& head, const int64_t* labels, const OptimiserParams& params,
               const Trained& trained, float* logits, double* stats, float* memory) {
  const RowKernels& kernels = row_kernels();
  head_forward(provider, head, logits, memory);
  Arena arena(memory);
  const HeadScratch scratch(arena, head);
  const int64_t classes = head.classes;
  const double share = 1.0 / static_cast<double>(head.images);

  std::memset(scratch.dbias, 0, sizeof(float) * classes);
  for (int64_t i = 0; i < head.images; ++i) {
    const float* row = logits + i * classes;
    float* d = scratch.dlogits + i * classes;
    int64_t best = 0;
    for (int64_t c = 1; c < classes; ++c) best = row[c] > row[best] ? c : best;
    double total = 0;
    for (int64_t c = 0; c < classes; ++c) total += std::exp(static_cast<double>(row[c]) - row[best]);
    for (int64_t c = 0; c < classes; ++c) {
      const double p = std::exp(static_cast<double>(row[c]) - row[best]) / total;
      d[c] = static_cast<float>((p - (c == labels[i] ? 1.0 : 0.0)) * share);
    }
    kernels.add(d, scratch.dbias, classes);
    stats[0] += std::log(total) + row[best] - row[labels[i]];
    stats[1] += best == labels[i];
    stats[2] += 1;
  }

  int64_t column = 0;
  for (int64_t l = 0; l < head.count; ++l) {
    const HeadInput& in = head.inputs[l];
    for (int64_t i = 0; i < head.images; ++i) {
      const float scale = row_scale(head.kind, in.h_norm[i], in.units);
      for (int64_t c = 0; c < classes; ++c) scratch.part[i * classes + c] = scale * scratch.dlogits[i * classes + c];
    }
    provider.gemm(provider, {.trans_a = true,
                             .m = classes,
                             .n = in.units,
                             .k = head.images,
                             .a = scratch.part,
                             .lda = classes,
                             .b = in.h,
                             .ldb = in.ldh,
                             .c = scratch.dweight + column,
                             .ldc = head.width});
    column += in.units;
  }

  const bool two = state_slots(params.kind) == 2;
  const int64_t weights = classes * head.width;
  kernels.update(update_rule(params, false), scratch.dweight, trained.weight, trained.weight_state,
                 two ? trained.weight_state + weights : nullptr, weights);
  if (trained.bias != nullptr) {
    kernels.update(update_rule(params, true), scratch.dbias, trained.bias, trained.bias_state,
                   two ? trained.bias_state + classes : nullptr, classes);
  }
}

}  // namespace ffkern::cpu
