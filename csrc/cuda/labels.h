// Labels on the device: into the inputs, wrong ones to learn from, and negatives without labels. Host side and the
// kernels' arguments; the kernels are in labels.cu. No torch, no CUDA headers: pointers, sizes and a queue.
//
// The host cannot look at labels without waiting for the device, so nothing here refuses a label. One outside of the
// classes leaves a trace instead: NaN where label inputs are written, kInvalidLabel where labels are, which is outside
// of the classes again and becomes NaN with the next operation that uses it.
#pragma once
#include "../core/api.h"
#include "../core/types.h"
#include "module.h"

namespace ffkern::cuda {

constexpr int64_t kNeutralLabel = -1, kInvalidLabel = -2;

/// out [rows, extra + cols] = x behind `extra` new columns, then its first `classes` columns replaced by the label's.
struct PlaceLabelParams {
  const void* x = nullptr;          // [rows, cols]
  const int64_t* labels = nullptr;  // [rows], kNeutralLabel or 0 to classes - 1; any other: NaN in the label's columns
  const float* overlay = nullptr;   // [2] value of the label, value of every class where the label is neutral
  void* out = nullptr;              // [rows, extra + cols], stored as x, without gaps between the rows
  int64_t x_pitch = 0;              // in elements
  int64_t rows = 0, cols = 0, extra = 0, classes = 0;
  Storage storage = Storage::kFloat32;
};

/// out [rows] = (y + 1 + min(floor(u (C - 1)), C - 2)) mod C, a wrong label drawn uniformly.
struct WrongLabelsParams {
  const int64_t* labels = nullptr;  // [rows]
  const float* u = nullptr;         // [rows] in [0, 1)
  int64_t* out = nullptr;           // [rows]
  int64_t rows = 0, classes = 0;
};

/// out [rows] = a wrong label drawn in proportion to softmax(logits) without the true class.
struct HardLabelsParams {
  const void* logits = nullptr;     // [rows, classes]
  const int64_t* labels = nullptr;  // [rows]
  const float* u = nullptr;         // [rows] in [0, 1)
  int64_t* out = nullptr;           // [rows]
  int64_t logits_pitch = 0;         // in elements
  int64_t rows = 0, classes = 0;
  Storage storage = Storage::kFloat32;
};

/// out [C - 1, rows]: row k holds (y + 1 + k) mod C.
struct AllWrongLabelsParams {
  const int64_t* labels = nullptr;  // [rows]
  int64_t* out = nullptr;
  int64_t rows = 0, classes = 0;
};

/// out = x where the mask is true, else other; see csrc/cpu/hybrid.cpp.
struct HybridParams {
  const void* x = nullptr;       // [images, channels * pixels], elements of 2 or 4 bytes, which are not computed with
  const void* other = nullptr;   // the same
  void* out = nullptr;           // the same, without gaps between the rows
  bool* mask = nullptr;          // [images, pixels]
  int64_t* generator = nullptr;  // [2] seed, images drawn so far; the second is advanced
  float* workspace = nullptr;    // hybrid_floats(), null if that is 0
  int64_t x_pitch = 0, other_pitch = 0;  // in elements
  int64_t images = 0, channels = 1, height = 0, width = 0, blurs = 0;
  int element_bytes = 4;
};

constexpr int kLabelThreads = 256;
constexpr int kHybridThreads = 256;
constexpr int64_t kHybridSharedBytes = 40 * 1024;  // largest pair of planes that is kept in shared memory

FFKERN_API void place_label(const Queue&, const PlaceLabelParams&);
FFKERN_API void wrong_labels(const Queue&, const WrongLabelsParams&);
FFKERN_API void hard_labels(const Queue&, const HardLabelsParams&);
FFKERN_API void all_wrong_labels(const Queue&, const AllWrongLabelsParams&);

/// Floats of workspace that these images want: 0 where shared memory holds the planes of one.
FFKERN_API int64_t hybrid_floats(const Queue&, const HybridParams&);
FFKERN_API void hybrid_images(const Queue&, const HybridParams&);

}  // namespace ffkern::cuda
