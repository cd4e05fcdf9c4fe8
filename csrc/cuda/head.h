// Softmax classifier on the length-normalised activities of chosen layers. Host side and the kernels' arguments; the
// kernels are in head.cu. No torch, no CUDA headers: pointers, sizes and a queue.
#pragma once
#include "../core/api.h"
#include "../core/types.h"
#include "module.h"
#include "rows.h"

namespace ffkern::cuda {

/// Activities of one layer.
struct HeadLayer {
  const void* h = nullptr;        // [images, units]
  const float* h_norm = nullptr;  // [images] L2 norms of the rows of h
  int64_t units = 0;
  int64_t pitch = 0;  // in elements
  Storage storage = Storage::kFloat32;
};

struct Head {
  const HeadLayer* layers = nullptr;  // on the host
  int64_t count = 0;
  int64_t images = 0, classes = 0, width = 0;  // width: sum of the layers' units
  const float* weight = nullptr;               // [classes, width]
  int64_t weight_pitch = 0;                    // in elements
  const float* bias = nullptr;                 // [classes] or null
  LayerKind kind;
};

/// What a step learns from and writes. The weights have no gaps between their rows.
struct HeadStep {
  const int64_t* labels = nullptr;  // [images]; one outside of the classes makes loss and gradient NaN
  OptimiserArgs optimiser;
  float* weight = nullptr;        // [classes, width]
  float* bias = nullptr;          // [classes] or null
  float* weight_state = nullptr;  // [slots, classes, width]
  float* bias_state = nullptr;    // [slots, classes], null without bias
  double* stats = nullptr;        // [3] += sum of losses, hits, rows
};

/// logits [images, classes] = sum over the layers of r_l (h_l W_l^T) + b.
FFKERN_API void head_forward(const Queue&, const Head&, float* logits);

/// Bytes of scratch that head_step wants.
FFKERN_API int64_t head_bytes(const Head&);
/// Logits of the weights as they are, mean softmax cross-entropy, its gradient and the update. At least one image.
FFKERN_API void head_step(const Queue&, const Head&, const HeadStep&, float* logits, void* scratch);

// ---- the kernels' arguments

constexpr int kHeadLayers = 16;   // of one launch; more layers take more launches
constexpr int kHeadClasses = 10;  // that a thread sums at the same time
constexpr int kHeadImages = 4;    // that a block of the forward pass sums at the same time, or 1

/// Layers that one launch takes, and where their columns are.
struct HeadGroup {
  struct Entry {
    HeadLayer layer;
    int64_t column = 0;       // of the weights, the layer's first
    int64_t first_block = 0;  // gradient: of the grid's x, the layer's first
  } entries[kHeadLayers];
  int count = 0;
};

struct HeadForwardParams {
  HeadGroup group;
  const float* weight = nullptr;
  const float* bias = nullptr;
  float* logits = nullptr;
  int64_t weight_pitch = 0;
  int64_t images = 0, classes = 0;
  LayerKind kind;
  bool add = false;  // to the logits of the layers before instead of to the bias
};

struct HeadLossParams {
  const float* logits = nullptr;    // [images, classes]
  const int64_t* labels = nullptr;  // [images]
  float* dlogits = nullptr;         // [images, classes] (softmax - onehot) / images
  double* stats = nullptr;          // [blocks, 3]
  float* dbias = nullptr;           // [blocks, classes] sums of dlogits, or null
  int64_t images = 0, classes = 0;
};

struct HeadGradientParams {
  HeadGroup group;
  const float* dlogits = nullptr;  // [images, classes]
  float* partial = nullptr;        // [slices, classes, width]
  int64_t images = 0, classes = 0, width = 0;
  int64_t slice = 0;  // images of one slice
  LayerKind kind;
};

struct HeadUpdateParams {
  const float* partial = nullptr;      // [slices, weights]
  const float* dbias = nullptr;        // [bias_parts, biases]
  const UpdateRule* rules = nullptr;   // [2]
  float* weight = nullptr;             // [weights]
  float* weight_state = nullptr;       // [slots, weights]
  float* bias = nullptr;               // [biases]
  float* bias_state = nullptr;         // [slots, biases]
  int64_t weights = 0, biases = 0;     // elements; biases is 0 without bias
  int64_t slices = 0, bias_parts = 0;  // partial sums of an element
};

constexpr int kHeadForwardThreads = 256;
constexpr int kHeadLossThreads = 128;  // and images of a block
constexpr int kHeadGradientThreads = 128;
constexpr int kHeadUpdateThreads = 128;

}  // namespace ffkern::cuda
