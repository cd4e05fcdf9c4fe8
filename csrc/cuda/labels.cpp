#include "labels.h"

#include <algorithm>

namespace ffkern::cuda {
namespace {

int64_t plane_bytes(const HybridParams& p) { return 2 * 4 * p.height * p.width; }

/// Product and comparison without overflow: height * width is no more than the inputs of an image.
bool planes_fit(const HybridParams& p) { return p.height * p.width <= kHybridSharedBytes / (2 * 4); }

/// Blocks that share the images. Planes in shared memory: one an image. Planes in the workspace: as many as run at the
/// same time, so that the workspace does not grow with the batch.
int64_t hybrid_blocks(const Queue& queue, const HybridParams& p) {
  if (planes_fit(p)) return p.images;
  return std::min<int64_t>(p.images, 8 * device_facts(queue.device).multiprocessors);
}

}  // namespace

void place_label(const Queue& queue, const PlaceLabelParams& params) {
  if (params.rows == 0) return;
  launch(queue, kImageLabels, "ffkern_place_label", {parts(params.rows, kLabelThreads / 32)}, kLabelThreads, 0, params);
}

void wrong_labels(const Queue& queue, const WrongLabelsParams& params) {
  if (params.rows == 0) return;
  launch(queue, kImageLabels, "ffkern_wrong_labels", {parts(params.rows, kLabelThreads)}, kLabelThreads, 0, params);
}

void hard_labels(const Queue& queue, const HardLabelsParams& params) {
  if (params.rows == 0) return;
  launch(queue, kImageLabels, "ffkern_hard_labels", {parts(params.rows, kLabelThreads)}, kLabelThreads, 0, params);
}

void all_wrong_labels(const Queue& queue, const AllWrongLabelsParams& params) {
  if (params.rows == 0) return;
  const Dim grid = {parts(params.rows, kLabelThreads), std::min<int64_t>(params.classes - 1, 1024)};
  launch(queue, kImageLabels, "ffkern_all_wrong_labels", grid, kLabelThreads, 0, params);
}

int64_t hybrid_floats(const Queue& queue, const HybridParams& p) {
  return planes_fit(p) ? 0 : hybrid_blocks(queue, p) * 2 * p.height * p.width;
}

void hybrid_images(const Queue& queue, const HybridParams& params) {
  if (params.images == 0) return;
  const bool shared = planes_fit(params);
  launch(queue, kImageLabels, shared ? "ffkern_hybrid_shared" : "ffkern_hybrid_global", {hybrid_blocks(queue, params)},
         kHybridThreads, shared ? static_cast<int>(plane_bytes(params)) : 0, params);
  launch(queue, kImageLabels, "ffkern_hybrid_advance", {}, 1, 0, params);
}

}  // namespace ffkern::cuda
