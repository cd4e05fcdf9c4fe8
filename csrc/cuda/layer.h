// A layer on CUDA, for any host that brings memory and a queue: forward, label variants, loss, gradient, update, the
// whole step, prediction. The operations of csrc/cpu/kernels.h, with the same meaning. No torch, no CUDA headers.
//
// Nothing is allocated and nothing waited for: scratch comes from the caller, as many bytes as the function beside
// says.
#pragma once
#include "product.h"
#include "rows.h"

namespace ffkern::cuda {

/// Inputs and weights of one layer, plain or with label variants. Matrices have unit inner stride; pitches are
/// distances between rows in elements. No pointer needs more than the alignment of its elements.
///
/// Plain layer: images = rows of x, variants = 1, classes = 0.
/// Shared first layer: the first `classes` columns of x are not read, and row v * images + i of every output is image i
/// with label labels[v * images + i] (-1: neutral) in those columns.
struct Layer {
  Product product = Product::kF32;
  const void* x = nullptr;  // [images, inputs] stored as the product wants it
  int64_t x_pitch = 0;
  const float* x_norm = nullptr;               // [images] L2 norms of the rows of x, or null: computed
  const void* weight = nullptr;                // [units, inputs]
  Storage weight_storage = Storage::kFloat32;  // as x, or float32 (then a copy is made in the scratch)
  int64_t weight_pitch = 0;
  const float* bias = nullptr;  // [units] or null
  int64_t images = 0, inputs = 0, units = 0;
  int64_t classes = 0, variants = 1;
  const int64_t* labels = nullptr;  // [variants, images]
  const float* overlay = nullptr;   // [2]
  LayerKind kind;

  int64_t rows() const { return images * variants; }
  Storage storage() const { return storage_of(product); }
};

struct Activities {
  void* h = nullptr;  // [rows, units], stored as x or in float32; or null
  Storage storage = Storage::kFloat32;
  int64_t pitch = 0;
  float* goodness = nullptr;
  float* scale = nullptr;
  float* h_norm = nullptr;
};

/// What one row learns from; arrays over rows().
struct Lesson {
  const float* sign = nullptr;
  const float* row_weight = nullptr;
  LossParams loss;
};

/// Weights and their optimiser state, updated in place.
struct Trained {
  OptimiserArgs optimiser;
  float* weight = nullptr;        // [units, inputs] contiguous
  float* bias = nullptr;          // [units] or null
  float* weight_state = nullptr;  // [slots, units, inputs]
  float* bias_state = nullptr;    // [slots, units]
  void* low = nullptr;            // [units, inputs] copy of the weights in the storage of x, or null
};

// ---- forward

/// x W^T without the label columns [images, units], and the row norms without them.
void base_product(const Queue&, const Layer&, float* base, float* rest_norm, void* scratch);
/// h = relu(r (x W^T) + b), goodness, scale, norm of h.
void forward(const Queue&, const Layer&, const Activities& out, void* scratch);
/// `h` is the storage of the activities that the caller wants.
int64_t forward_bytes(const Layer&, Storage h);
/// Variants from a kept base product. layer.x_norm must be given; layer.x is not read.
void variants(const Queue&, const Layer&, const void* base, Storage base_storage, int64_t base_pitch,
              const Activities& out, void* scratch);
int64_t variants_bytes(const Layer&);

// ---- learning

/// Loss [1] or null, coefficients [rows] and statistics (kStatCount doubles, overwritten).
void local_loss(const Queue&, int64_t rows, const float* goodness, const Lesson&, float* loss, float* coef,
                double* stats, void* scratch);
int64_t local_loss_bytes(int64_t rows);

/// Running mean and peer term of activities h [rows, units].
void peer_update(const Queue&, int64_t rows, int64_t units, const Activities& h, const float* sign, PeerParams,
                 float* mean, float* p, void* scratch);
int64_t peer_bytes(int64_t rows, int64_t units);

/// Activities kept from a forward pass, and what they learn.
struct Kept {
  const void* h = nullptr;  // [rows, units] stored as x
  int64_t pitch = 0;
  const float* scale = nullptr;
  const float* coef = nullptr;
  const float* sign = nullptr;  // with peer
  const float* peer = nullptr;  // [units] or null
};
/// dW [units, inputs] and db [units].
void gradient(const Queue&, const Layer&, const Kept&, float* dweight, float* dbias, void* scratch);
/// The same with the update fused in.
void update(const Queue&, const Layer&, const Kept&, const Trained&, void* scratch);
int64_t gradient_bytes(const Queue&, const Layer&);

/// Forward, loss, peer term, gradient and update. stats are added to.
struct Step {
  Layer layer;
  Lesson lesson;
  PeerParams peer;
  float* peer_mean = nullptr;  // [units], or null without peer normalisation
  Trained trained;
  void* keep_h = nullptr;  // [rows, units] contiguous, or null
  Storage keep_storage = Storage::kFloat32;
  float* keep_h_norm = nullptr;
  double* stats = nullptr;
};
void step(const Queue&, const Step&, void* scratch);
/// Enough for any storage and alignment of these sizes.
int64_t step_bytes(const Queue&, const Layer&, bool peer);

// ---- prediction

struct Stack {
  int64_t depth = 0;
  const void* const* weights = nullptr;  // stored as x or in float32, contiguous
  const Storage* storages = nullptr;
  const float* const* biases = nullptr;  // entries may be null
  const int64_t* units = nullptr;
};
/// goodness [depth, images, classes] of every label. first: x, classes, overlay and kind of the first layer.
void predict_goodness(const Queue&, const Layer& first, const Stack&, float* goodness, void* scratch);
int64_t predict_bytes(const Layer& first, const Stack&);

}  // namespace ffkern::cuda
