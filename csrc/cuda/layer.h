// A layer on CUDA, for any host that brings memory and a queue: forward, label variants, loss, gradient, update,
// the whole step, prediction. The operations of csrc/cpu/kernels.h, with the same meaning. No torch, no CUDA
// headers: a Queue (module.h) is a device's number and its CUstream or cudaStream_t, reinterpret_cast to Stream;
// null is the default stream.
//
// Arguments are trusted, as on the CPU, and what is said there of overlap and sizes holds here.
//
// Memory is the device's, float32 unless said otherwise, aligned to its elements. The structures themselves and the
// arrays of a Stack are the host's, and read during the call only.
//
// Scratch: as many bytes as the function beside says for the same sizes, aligned to 256 as device allocations are.
//
// Order: a call enqueues its kernels and returns. It allocates nothing on the device and waits for nothing; what it
// reads and writes, scratch included, has to live until the stream has passed. Once each kernel has run in a
// context, calls can be captured into a graph. The context is the thread's current one if it belongs to the queue's
// device, else the device's primary one.
//
// Threads: any number of calls at once, each with scratch and outputs of its own.
//
// Errors, before or between launches: std::runtime_error without a usable driver; Error (driver.h) for a driver
// call that failed, or a device that this build has no kernels for; std::invalid_argument for sizes beyond a
// launch's. What goes wrong on the device comes out of a later call or synchronisation, as always with CUDA.
//
// Bits: fixed by the arguments, the kind of device and the build. There are no atomics.
#pragma once
#include "../core/api.h"
#include "product.h"
#include "rows.h"

namespace ffkern::cuda {

/// Inputs and weights of one layer, plain or with label variants. Matrices have unit inner stride; pitches are
/// distances between rows in elements.
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
  const int64_t* labels = nullptr;  // [variants, images] each -1 to classes - 1
  const float* overlay = nullptr;   // [2] value of the label, value of every class where the label is neutral
  LayerKind kind;

  int64_t rows() const { return images * variants; }
  Storage storage() const { return storage_of(product); }
};

/// What a forward pass leaves of each row.
struct Activities {
  void* h = nullptr;  // [rows, units], stored as x or in float32; or null
  Storage storage = Storage::kFloat32;
  int64_t pitch = 0;
  float* goodness = nullptr;  // [rows]
  float* scale = nullptr;     // [rows] r = 1 / (norm of the row of x + eps)
  float* h_norm = nullptr;    // [rows] L2 norm of the row of h: the next layer's x_norm
};

/// What the rows learn from.
struct Lesson {
  const float* sign = nullptr;        // [rows] +1: positive, -1: negative, 0: teaches nothing and is not counted
  const float* row_weight = nullptr;  // [rows] weights of the rows in the loss, or null: 1 / rows for each
  LossParams loss;
};

/// Weights and their optimiser state, updated in place. slots = state_slots() of the optimiser; zeros before the first
/// update.
struct Trained {
  OptimiserArgs optimiser;        // lr [1] and the number of updates so far [1] are on the device; a step counts itself
  float* weight = nullptr;        // [units, inputs] contiguous
  float* bias = nullptr;          // [units] or null
  float* weight_state = nullptr;  // [slots, units, inputs]
  float* bias_state = nullptr;    // [slots, units]
  void* low = nullptr;            // [units, inputs] copy of the weights in the storage of x, or null
};

// ---- forward

/// x W^T without the label columns [images, units], and the row norms without them.
FFKERN_API void base_product(const Queue&, const Layer&, float* base, float* rest_norm, void* scratch);
/// h = relu(r (x W^T) + b), goodness, scale, norm of h.
FFKERN_API void forward(const Queue&, const Layer&, const Activities& out, void* scratch);
/// `h` is the storage of the activities that the caller wants.
FFKERN_API int64_t forward_bytes(const Layer&, Storage h);
/// Variants from a kept base product. layer.x_norm must be given; layer.x is not read.
FFKERN_API void variants(const Queue&, const Layer&, const void* base, Storage base_storage, int64_t base_pitch,
                         const Activities& out, void* scratch);
FFKERN_API int64_t variants_bytes(const Layer&);

// ---- learning

/// Loss [1] or null, coefficients [rows] and statistics (kStatCount doubles, overwritten or added to).
FFKERN_API void local_loss(const Queue&, int64_t rows, const float* goodness, const Lesson&, float* loss, float* coef,
                           double* stats, bool add, void* scratch);
FFKERN_API int64_t local_loss_bytes(int64_t rows);

/// Running mean and peer term of activities h [rows, units].
FFKERN_API void peer_update(const Queue&, int64_t rows, int64_t units, const Activities& h, const float* sign,
                            PeerParams, float* mean, float* p, void* scratch);
FFKERN_API int64_t peer_bytes(int64_t rows, int64_t units);

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
FFKERN_API void gradient(const Queue&, const Layer&, const Kept&, float* dweight, float* dbias, void* scratch);
/// The same with the update fused in. The rows that it leaves out are taken from the kept ones of stats [kStatCount],
/// for which kept.sign must be there, or stats is null.
FFKERN_API void update(const Queue&, const Layer&, const Kept&, const Trained&, double* stats, void* scratch);
/// Of a gradient by any optimiser's name.
FFKERN_API int64_t gradient_bytes(const Queue&, const Layer&, Optimiser);

/// Forward, loss, peer term, gradient and update. scratch: step_bytes(), with `peer` true if peer_mean is given.
struct Step {
  Layer layer;
  Lesson lesson;
  PeerParams peer;
  float* peer_mean = nullptr;  // [units], or null without peer normalisation
  Trained trained;
  void* keep_h = nullptr;  // [rows, units] contiguous, or null
  Storage keep_storage = Storage::kFloat32;
  float* keep_h_norm = nullptr;  // [rows] or null
  double* stats = nullptr;       // [kStatCount] += what this batch adds up to
};
FFKERN_API void step(const Queue&, const Step&, void* scratch);
/// Enough for any storage and alignment of these sizes.
FFKERN_API int64_t step_bytes(const Queue&, const Layer&, bool peer, Optimiser);

// ---- prediction

/// Layers of a network, first to last; layer l > 0 has units[l - 1] inputs.
struct Stack {
  int64_t depth = 0;
  const void* const* weights = nullptr;  // depth times [units[l], inputs] stored as x or in float32, contiguous
  const Storage* storages = nullptr;     // of the weights
  const float* const* biases = nullptr;  // depth times [units[l]]; entries may be null
  const int64_t* units = nullptr;
};
/// goodness [depth, images, classes] of every layer, image and label. `first`: product, x, inputs, classes, overlay and
/// kind; weights, bias and units come from the stack.
FFKERN_API void predict_goodness(const Queue&, const Layer& first, const Stack&, float* goodness, void* scratch);
FFKERN_API int64_t predict_bytes(const Layer& first, const Stack&);

}  // namespace ffkern::cuda
