#include "head.h"

#include <algorithm>

#include "workspace.h"

namespace ffkern::cuda {
namespace {

constexpr int64_t kMostSlices = 32, kLeastSlice = 64;
constexpr int64_t kMostGroups = 65535;  // of classes in a grid; the kernels walk on from there

/// Slices that the images are cut into for the gradient: enough blocks for a small head, and partial sums that are few
/// beside the activities. A function of the number of images alone, so that the bits of a step are the same on devices
/// of every size.
int64_t slices_of(const Head& head) {
  const int64_t wanted = std::clamp<int64_t>(parts(head.images, kLeastSlice), 1, kMostSlices);
  return parts(head.images, parts(head.images, wanted));  // none of them empty
}

int64_t loss_blocks(const Head& head) { return parts(head.images, kHeadLossThreads); }

int64_t class_groups(const Head& head) { return std::min(parts(head.classes, kHeadClasses), kMostGroups); }

struct Scratch {
  double* stats;
  UpdateRule* rules;
  float *dbias, *dlogits, *partial;

  Scratch(Workspace& workspace, const Head& head) {
    stats = workspace.take<double>(3 * loss_blocks(head));
    rules = workspace.take<UpdateRule>(2);
    dbias = workspace.take<float>(loss_blocks(head) * head.classes);
    dlogits = workspace.take<float>(head.images * head.classes);
    partial = workspace.take<float>(slices_of(head) * head.classes * head.width);
  }
};

/// Calls fn(group, blocks, first, last) for as many layers at a time as a launch takes; `blocks` is how many the
/// gradient of the group has along x.
template <class Fn>
void for_groups(const Head& head, Fn fn) {
  int64_t column = 0;
  for (int64_t begin = 0; begin < head.count; begin += kHeadLayers) {
    HeadGroup group;
    group.count = static_cast<int>(std::min<int64_t>(head.count - begin, kHeadLayers));
    int64_t blocks = 0;
    for (int i = 0; i < group.count; ++i) {
      const HeadLayer& layer = head.layers[begin + i];
      group.entries[i] = {layer, column, blocks};
      column += layer.units;
      blocks += parts(layer.units, kHeadGradientThreads);
    }
    fn(group, blocks, begin == 0);
  }
}

}  // namespace

void head_forward(const Queue& queue, const Head& head, float* logits) {
  if (head.images == 0) return;
  HeadForwardParams params;
  params.weight = head.weight;
  params.bias = head.bias;
  params.logits = logits;
  params.weight_pitch = head.weight_pitch;
  params.images = head.images;
  params.classes = head.classes;
  params.kind = head.kind;
  // Several images a block read the weights less often, but only when there are blocks enough without them. Both give
  // the same bits.
  const bool several = parts(head.images, kHeadImages) >= device_facts(queue.device).multiprocessors / 2;
  const Dim grid = {several ? parts(head.images, kHeadImages) : head.images, class_groups(head)};
  for_groups(head, [&](const HeadGroup& group, int64_t, bool first) {
    params.group = group;
    params.add = !first;
    launch(queue, kImageHead, several ? "ffkern_head_forward_4" : "ffkern_head_forward_1", grid, kHeadForwardThreads, 0,
           params);
  });
}

int64_t head_bytes(const Head& head) {
  Workspace workspace(nullptr);
  Scratch(workspace, head);
  return workspace.used();
}

void head_step(const Queue& queue, const Head& head, const HeadStep& step, float* logits, void* memory) {
  Workspace workspace(memory);
  const Scratch scratch(workspace, head);
  head_forward(queue, head, logits);

  HeadLossParams loss;
  loss.logits = logits;
  loss.labels = step.labels;
  loss.dlogits = scratch.dlogits;
  loss.stats = scratch.stats;
  loss.dbias = step.bias != nullptr ? scratch.dbias : nullptr;
  loss.images = head.images;
  loss.classes = head.classes;
  launch(queue, kImageHead, "ffkern_head_loss", {loss_blocks(head)}, kHeadLossThreads, 0, loss);

  FinishParams sums;
  sums.partial_stats = scratch.stats;
  sums.blocks = loss_blocks(head);
  sums.count = 3;
  sums.add = true;
  sums.stats = step.stats;
  sums.optimiser = step.optimiser;
  sums.rules = scratch.rules;
  finish(queue, sums);

  HeadGradientParams gradient;
  gradient.dlogits = scratch.dlogits;
  gradient.partial = scratch.partial;
  gradient.images = head.images;
  gradient.classes = head.classes;
  gradient.width = head.width;
  gradient.slice = parts(head.images, slices_of(head));
  gradient.kind = head.kind;
  for_groups(head, [&](const HeadGroup& group, int64_t blocks, bool) {
    if (blocks == 0) return;
    gradient.group = group;
    launch(queue, kImageHead, "ffkern_head_gradient", {blocks, class_groups(head), slices_of(head)},
           kHeadGradientThreads, 0, gradient);
  });

  HeadUpdateParams update;
  update.partial = scratch.partial;
  update.dbias = scratch.dbias;
  update.rules = scratch.rules;
  update.weight = step.weight;
  update.weight_state = step.weight_state;
  update.bias = step.bias;
  update.bias_state = step.bias_state;
  update.weights = head.classes * head.width;
  update.biases = step.bias != nullptr ? head.classes : 0;
  update.slices = slices_of(head);
  update.bias_parts = loss_blocks(head);
  const int64_t elements = update.weights + update.biases;
  if (elements == 0) return;
  launch(queue, kImageHead, "ffkern_head_update", {parts(elements, kHeadUpdateThreads)}, kHeadUpdateThreads, 0, update);
}

}  // namespace ffkern::cuda
