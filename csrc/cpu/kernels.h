// The operations on the CPU, for any host that brings a Provider. All pointers are float32 unless said otherwise;
// matrices are row-major with unit inner stride; nothing is allocated: scratch comes from the caller.
#pragma once
#include <cstdint>

#include "../core/types.h"
#include "provider.h"

namespace ffkern::cpu {

/// Inputs and weights of one layer, plain or with label variants.
///
/// Plain layer: images = R rows of x, variants = 1, labels = null, classes = 0.
/// Shared first layer: N images; the first `classes` columns of x are not read, and row v * N + i of every output is
/// image i with label labels[v * N + i] (-1: neutral) in those columns.
struct Layer {
  const float* x = nullptr;       // [N, K]
  int64_t ldx = 0;                // row pitch of x
  const float* x_norm = nullptr;  // [N] L2 norms of the rows of x (without label columns), or null: computed
  const float* weight = nullptr;  // [M, K] contiguous
  const float* bias = nullptr;    // [M] or null
  int64_t images = 0, inputs = 0, units = 0;
  int64_t classes = 0, variants = 1;
  const int64_t* labels = nullptr;  // [V, N]
  float on_value = 0.0f, neutral_value = 0.0f;
  LayerKind kind;

  int64_t rows() const { return images * variants; }
};

/// What one row learns from; arrays over rows().
struct Lesson {
  const float* sign = nullptr;        // +1, -1, 0
  const float* row_weight = nullptr;  // null: 1 / rows
  LossParams loss;
};

struct Activities {
  float* h = nullptr;  // [rows, M], or null where a call allows it
  float* goodness = nullptr;
  float* scale = nullptr;
  float* h_norm = nullptr;
};

/// Weights and their optimiser state, updated in place.
struct Trained {
  float* weight = nullptr;        // [M, K]
  float* bias = nullptr;          // [M] or null
  float* weight_state = nullptr;  // [S, M, K]
  float* bias_state = nullptr;    // [S, M]
};

// ---- forward

/// x W^T without the label columns, and the row norms without them (norms only if rest_norm is not null).
void base_product(const Provider&, const Layer&, float* base, float* rest_norm);
/// Plain layer: h = relu(r (x W^T) + b), goodness, scale, norm of h. out.h must be given.
void forward(const Provider&, const Layer&, const Activities& out);
/// Variants from a kept base product. layer.x_norm must be given; layer.x is not read. scratch: label_floats().
void variants(const Provider&, const Layer&, const float* base, const Activities& out, float* scratch);
/// Floats of scratch for the transposed label columns.
int64_t label_floats(const Layer&);

// ---- learning

/// Loss, coefficients c [rows] and statistics (kStatCount doubles, overwritten).
void local_loss(int64_t rows, const float* goodness, const Lesson&, float* coef, double* stats);
/// m <- momentum m + (1 - momentum) mean of positive rows; p = (strength / B)(m - mean m). No positive row: m stays,
/// p = 0. scratch: threads * 2 M floats.
void peer_update(const Provider&, int64_t rows, int64_t units, const float* h, const float* sign, PeerParams,
                 float* mean, float* p, float* scratch);
/// dW [M, K] and db [M] from kept activities. sign and peer may be null. scratch: update_floats().
void gradient(const Provider&, const Layer&, const Activities& kept, const float* coef, const float* sign,
              const float* peer, float* dweight, float* dbias, float* scratch);

/// The same with the update fused in. scratch: update_floats().
void update(const Provider&, const Layer&, const Activities& kept, const float* coef, const float* sign,
            const float* peer, const OptimiserParams&, const Trained&, float* scratch);
int64_t update_floats(const Provider&, const Layer&);

/// Forward, loss, peer term, gradient and update in one call. `keep` may name h and h_norm for the next layer (from
/// the weights before the update). stats are added to. scratch: step_floats().
struct Step {
  Layer layer;
  Lesson lesson;
  PeerParams peer;
  float* peer_mean = nullptr;  // [M], or null without peer normalisation
  OptimiserParams optimiser;
  Trained trained;
  float* keep_h = nullptr;
  float* keep_h_norm = nullptr;
  double* stats = nullptr;
};
void step(const Provider&, const Step&, float* scratch);
int64_t step_floats(const Provider&, const Layer&, bool peer);

// ---- prediction

struct Stack {
  int64_t depth = 0;
  const float* const* weights = nullptr;
  const float* const* biases = nullptr;  // entries may be null
  const int64_t* units = nullptr;
};
/// goodness [L, N, C] of every label, without materialising the label rows of the whole set. first: x, classes,
/// overlay values and kind of the first layer. scratch: predict_floats().
void predict_goodness(const Provider&, const Layer& first, const Stack&, float* goodness, float* scratch);
int64_t predict_floats(const Provider&, const Layer& first, const Stack&);

// ---- labels

/// Writes the label inputs of each row into out[:, 0:classes].
void write_labels(int64_t rows, int64_t classes, const int64_t* labels, float on_value, float neutral_value, float* out,
                  int64_t ldo);
/// Uniform wrong label from u in [0, 1).
void wrong_labels(int64_t rows, int64_t classes, const int64_t* labels, const float* u, int64_t* out);
/// Wrong label drawn in proportion to softmax(logits) without the true class.
void hard_labels(int64_t rows, int64_t classes, const float* logits, const int64_t* labels, const float* u,
                 int64_t* out);
/// out [C - 1, rows]: row k holds (y + 1 + k) mod C.
void all_wrong_labels(int64_t rows, int64_t classes, const int64_t* labels, int64_t* out);

// ---- hybrid images

/// Two stacks of images to mix. Values are chosen, not computed with, so any dtype of 2 or 4 bytes will do.
struct Hybrid {
  const void* x = nullptr;      // [N, channels * height * width]
  const void* other = nullptr;  // the same
  int64_t ldx = 0, ld_other = 0;
  int64_t element_bytes = 4;
  int64_t images = 0, channels = 1, height = 0, width = 0;
  int64_t blurs = 0;
  uint64_t seed = 0;
  uint64_t drawn = 0;  // number of the first image since the seed was set; the mask is a function of seed and number
};
/// out [N, channels * height * width] (dtype of x) = x where mask [N, height * width] is true, else other.
/// scratch: hybrid_floats().
void hybrid_images(const Provider&, const Hybrid&, void* out, bool* mask, float* scratch);
int64_t hybrid_floats(const Provider&, const Hybrid&);

// ---- softmax head on normalised activities

struct HeadInput {
  const float* h;       // [N, M_l]
  const float* h_norm;  // [N]
  int64_t units;
  int64_t ldh;
};
struct Head {
  const HeadInput* inputs = nullptr;
  int64_t count = 0;
  int64_t images = 0, classes = 0, width = 0;  // width = sum of units
  const float* weight = nullptr;               // [C, width]
  const float* bias = nullptr;
  LayerKind kind;
};
void head_forward(const Provider&, const Head&, float* logits, float* scratch);
/// Mean softmax cross-entropy, its gradient and the update; stats += [sum of losses, correct, rows].
void head_step(const Provider&, const Head&, const int64_t* labels, const OptimiserParams&, const Trained&,
               float* logits, double* stats, float* scratch);
int64_t head_floats(const Head&);

}  // namespace ffkern::cpu
