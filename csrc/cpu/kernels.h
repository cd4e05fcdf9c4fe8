// The operations on the CPU, for any host that brings a Provider (threads.h has one). What holds for all of them:
//
// Arguments are trusted. Pointers, sizes and labels are not checked; the bindings check them for their users.
//
// Memory is float32 unless said otherwise, aligned to its elements; row-major, unit inner stride, no gaps between
// rows except where a pitch is given. All of it is the caller's and borrowed for the call only.
//
// Overlap: an output or scratch overlaps no other argument. Only the weights that are updated (Trained) may be
// those that are read (Layer, Head), and as a rule are.
//
// Scratch: as many floats as the function beside says for the same Provider and sizes, aligned to 8 bytes, best to
// 64. Its contents do not matter before or after, so one buffer of the largest size serves all calls in turn.
//
// Sizes: images may be 0; an update then sees a gradient of zeros. Everything else is at least 1, except where 0
// stands for none.
//
// Threads: any number of calls at once, each with scratch and outputs of its own.
//
// Errors: std::runtime_error when $FFKERN_CPU_ISA names no instruction set of this build and machine
// (row_kernels.h), and what the Provider throws (own_gemm(): std::bad_alloc). Outputs are then undefined.
//
// Bits: fixed by the arguments, Provider::threads, the Provider's product and the instruction set, and by nothing
// else.
#pragma once
#include <cstdint>

#include "../core/api.h"
#include "../core/types.h"
#include "provider.h"

namespace ffkern::cpu {

/// Inputs and weights of one layer, plain or with label variants.
///
/// Plain layer: images = R rows of x, variants = 1, labels = null, classes = 0.
/// Shared first layer: N images; the first `classes` columns of x are there but do not count, whatever is in them, and
/// row v * N + i of every output is image i with label labels[v * N + i] in those columns: on_value in the column of
/// the label, 0 in the others; label -1 is the neutral one, neutral_value in all.
///
/// Rows of bfloat16: x_low stands in for x, and the products are those of bfloat16 (pairs.h), of weights rounded to it.
/// They are read from weight_low; labels, biases and everything else are computed in float32.
struct Layer {
  const float* x = nullptr;              // [N, K]
  const uint16_t* x_low = nullptr;       // [N, K] bfloat16, instead of x
  int64_t ldx = 0;                       // distance between rows of x in elements, at least K
  const float* x_norm = nullptr;         // [N] L2 norms of the rows of x (without label columns), or null: computed
  const float* weight = nullptr;         // [M, K] contiguous
  const uint32_t* weight_low = nullptr;  // pack_weight() of it, with x_low
  const float* bias = nullptr;           // [M] or null
  int64_t images = 0, inputs = 0, units = 0;
  int64_t classes = 0, variants = 1;
  const int64_t* labels = nullptr;  // [V, N] each -1 to classes - 1
  float on_value = 0.0f, neutral_value = 0.0f;
  LayerKind kind;

  int64_t rows() const { return images * variants; }
};

/// What the rows learn from.
struct Lesson {
  const float* sign = nullptr;        // [rows] +1: positive, -1: negative, 0: teaches nothing and is not counted
  const float* row_weight = nullptr;  // [rows] weights of the rows in the loss, or null: 1 / rows for each
  LossParams loss;
};

/// What a forward pass leaves of each row.
struct Activities {
  float* h = nullptr;         // [rows, M], or null where a call allows it
  float* goodness = nullptr;  // [rows]
  float* scale = nullptr;     // [rows] r = 1 / (norm of the row of x + eps)
  float* h_norm = nullptr;    // [rows] L2 norm of the row of h: the next layer's x_norm
  uint16_t* h_low = nullptr;  // [rows, M] bfloat16, instead of h
};

/// Weights and their optimiser state, updated in place. S = state_slots() of the optimiser; zeros before the first
/// update.
struct Trained {
  float* weight = nullptr;         // [M, K]
  float* bias = nullptr;           // [M] or null: no bias, or one that stays as it is
  float* weight_state = nullptr;   // [S, M, K]
  float* bias_state = nullptr;     // [S, M], null without bias
  uint32_t* weight_low = nullptr;  // packed_weight() pairs, written with every update; or null
};

// ---- forward

/// base [N, M] = x W^T and rest_norm [N] = norms of the rows of x, both without the label columns. rest_norm may be
/// null.
FFKERN_API void base_product(const Provider&, const Layer&, float* base, float* rest_norm);
/// Plain layer: h = relu(r (x W^T) + b), goodness, scale, norm of h. All of `out` must be given. scratch:
/// forward_floats().
FFKERN_API void forward(const Provider&, const Layer&, const Activities& out, float* scratch);
FFKERN_API int64_t forward_floats(const Layer&);
/// Variants from a kept base product [N, M]. layer.x_norm must be base_product()'s rest_norm; layer.x is not read;
/// out.h and out.h_low may be null. scratch: variants_floats().
FFKERN_API void variants(const Provider&, const Layer&, const float* base, const Activities& out, float* scratch);
FFKERN_API int64_t variants_floats(const Provider&, const Layer&);

/// The weights [M, K] rounded to bfloat16, as their product reads them: out [packed_weight(M, K)] pairs,
/// [ceil(M / 16)][ceil(K / 2)][16][2] elements.
FFKERN_API void pack_weight(const Provider&, int64_t units, int64_t inputs, const float* weight, uint32_t* out);
FFKERN_API int64_t packed_weight(int64_t units, int64_t inputs);

// ---- learning

/// Coefficients c [rows], dloss/dgoodness, and statistics [kStatCount], overwritten; stats[kStatLoss] is the loss.
FFKERN_API void local_loss(int64_t rows, const float* goodness, const Lesson&, float* coef, double* stats);
/// Peer normalisation, from h [rows, units]: mean [units] <- momentum mean + (1 - momentum) (mean of the B positive
/// rows); p [units] = (strength / B)(mean - its own mean). No positive row: mean stays, p = 0. scratch:
/// 2 threads * units floats.
FFKERN_API void peer_update(const Provider&, int64_t rows, int64_t units, const float* h, const float* sign, PeerParams,
                            float* mean, float* p, float* scratch);
/// dW [M, K] and db [M] from the h and scale of a forward pass and the coefficients of local_loss(). peer is the p of
/// peer_update(), added to the rows whose sign is positive, or null; sign may then be null too. scratch:
/// update_floats() of any optimiser.
FFKERN_API void gradient(const Provider&, const Layer&, const Activities& kept, const float* coef, const float* sign,
                         const float* peer, float* dweight, float* dbias, float* scratch);

/// The same with the update fused in: dW is never stored whole. The rows that it leaves out are taken from the kept
/// ones of stats [kStatCount], for which sign must be there, or stats is null. scratch: update_floats().
FFKERN_API void update(const Provider&, const Layer&, const Activities& kept, const float* coef, const float* sign,
                       const float* peer, const OptimiserParams&, const Trained&, double* stats, float* scratch);
FFKERN_API int64_t update_floats(const Provider&, const Layer&, Optimiser);

/// Forward, loss, peer term, gradient and update in one call. Without a peer term a large batch goes through in chunks,
/// and the scratch grows by a few numbers a row only. scratch: step_floats(), with `peer` true if peer_mean is given.
struct Step {
  Layer layer;
  Lesson lesson;
  PeerParams peer;
  float* peer_mean = nullptr;  // [M], or null without peer normalisation
  OptimiserParams optimiser;
  Trained trained;
  float* keep_h = nullptr;         // [rows, M] activities for the next layer, from before the update; or null
  uint16_t* keep_h_low = nullptr;  // [rows, M] the same in bfloat16, with layer.x_low
  float* keep_h_norm = nullptr;    // [rows] their norms, or null
  double* stats = nullptr;         // [kStatCount] += what this batch adds up to
};
FFKERN_API void step(const Provider&, const Step&, float* scratch);
FFKERN_API int64_t step_floats(const Provider&, const Layer&, bool peer, Optimiser);

// ---- prediction

/// Layers of a network, first to last; layer l > 0 has units[l - 1] inputs.
struct Stack {
  int64_t depth = 0;
  const float* const* weights = nullptr;  // depth times [units[l], inputs]
  const float* const* biases = nullptr;   // depth times [units[l]]; entries may be null
  const int64_t* units = nullptr;
  const uint32_t* const* weights_low = nullptr;  // depth times pack_weight() of the weights, with first.x_low
};
/// goodness [depth, N, C] of every layer, image and label, without ever holding all rows. `first` is the shared first
/// layer, its weight, bias and units those of the stack's first entries; x_norm, labels, variants and neutral_value are
/// not read; its kind is that of all layers. scratch: predict_floats().
FFKERN_API void predict_goodness(const Provider&, const Layer& first, const Stack&, float* goodness, float* scratch);
FFKERN_API int64_t predict_floats(const Provider&, const Layer& first, const Stack&);

// ---- labels

// One thread; `labels` from 0 to classes - 1 unless said otherwise, classes >= 2, u [rows] uniform numbers in [0, 1).

/// Writes the label inputs of each row, -1 for the neutral label, into the first `classes` columns of `out`, whose rows
/// are ldo floats apart.
FFKERN_API void write_labels(int64_t rows, int64_t classes, const int64_t* labels, float on_value, float neutral_value,
                             float* out, int64_t ldo);
/// out [rows]: a wrong label, uniformly.
FFKERN_API void wrong_labels(int64_t rows, int64_t classes, const int64_t* labels, const float* u, int64_t* out);
/// out [rows]: a wrong label in proportion to softmax(logits [rows, classes]) without the true class.
FFKERN_API void hard_labels(int64_t rows, int64_t classes, const float* logits, const int64_t* labels, const float* u,
                            int64_t* out);
/// out [C - 1, rows]: row k holds (y + 1 + k) mod C.
FFKERN_API void all_wrong_labels(int64_t rows, int64_t classes, const int64_t* labels, int64_t* out);

// ---- hybrid images

/// Two stacks of images to mix. Values are chosen, not computed with, so any dtype of 2 or 4 bytes will do.
struct Hybrid {
  const void* x = nullptr;        // [N, channels * height * width]
  const void* other = nullptr;    // the same
  int64_t ldx = 0, ld_other = 0;  // row pitches in elements
  int64_t element_bytes = 4;
  int64_t images = 0, channels = 1, height = 0, width = 0;
  int64_t blurs = 0;  // how often the mask is smoothed
  uint64_t seed = 0;
  uint64_t drawn = 0;  // number of the first image since the seed was set; the mask is a function of seed and number
};
/// out [N, channels * height * width] (dtype of x) = x where mask [N, height * width] is true, else other.
/// scratch: hybrid_floats().
FFKERN_API void hybrid_images(const Provider&, const Hybrid&, void* out, bool* mask, float* scratch);
FFKERN_API int64_t hybrid_floats(const Provider&, const Hybrid&);

// ---- softmax head on normalised activities

/// Activities of one layer.
struct HeadInput {
  const float* h;       // [N, M_l]
  const float* h_norm;  // [N] L2 norms of the rows of h
  int64_t units;        // M_l
  int64_t ldh;          // row pitch of h in floats
};
struct Head {
  const HeadInput* inputs = nullptr;  // [count]
  int64_t count = 0;
  int64_t images = 0, classes = 0, width = 0;  // width = sum of units
  const float* weight = nullptr;               // [C, width]
  const float* bias = nullptr;                 // [C] or null
  LayerKind kind;                              // how rows of h are scaled
};
/// logits [N, C] = sum over the layers of r_l (h_l W_l^T) + b. scratch: head_floats().
FFKERN_API void head_forward(const Provider&, const Head&, float* logits, float* scratch);
/// The logits of the weights as they are, mean softmax cross-entropy with labels [N] from 0 to C - 1, its gradient and
/// the update; stats [3] += sum of losses, images classified correctly, images. scratch: head_floats().
FFKERN_API void head_step(const Provider&, const Head&, const int64_t* labels, const OptimiserParams&, const Trained&,
                          float* logits, double* stats, float* scratch);
FFKERN_API int64_t head_floats(const Head&);

}  // namespace ffkern::cpu
