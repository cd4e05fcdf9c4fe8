// Names and parameter structures shared by every backend. No torch, no CUDA runtime, no allocation.
//
// Shapes: R rows, K inputs, M units, N images, V label variants of an image, C classes. Matrices are row-major;
// strides are in elements, and the inner stride is 1.
#pragma once
#include <cstdint>

namespace ffkern {

/// Length that a row is divided by before the product: r = 1 / (norm + eps).
enum class Norm : int {
  kL2 = 0,    // ||x||
  kRms = 1,   // ||x|| / sqrt(K)
  kNone = 2,  // r = 1
};

/// Goodness of a row of activities h = relu(z).
enum class Goodness : int {
  kSumSq = 0,
  kMeanSq = 1,
  kNegSumSq = 2,
  kNegMeanSq = 3,
  kSumAbs = 4,
};

/// Rules of the update, with gradient g, momentum m and parameter w.
enum class Optimiser : int {
  kSgd = 0,    // torch.optim.SGD: m <- momentum m + g + weight_decay w, w <- w - lr m
  kEma = 1,    // Hinton's: m <- momentum m + (1 - momentum) g, w <- w - lr (m + weight_decay w)
  kAdam = 2,   // torch.optim.Adam
  kAdamW = 3,  // torch.optim.AdamW
};

/// How the elements of a matrix are stored; they are computed with in float32.
enum class Storage : int { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

constexpr int storage_bytes(Storage storage) { return storage == Storage::kFloat32 ? 4 : 2; }

/// Result of the local loss, added up in float64 so that batches can be added too.
enum Stat : int {
  kStatLoss = 0,         // sum of w_i softplus(-l_i)
  kStatGoodnessPos = 1,  // sum of g over positive rows
  kStatGoodnessNeg = 2,
  kStatCorrectPos = 3,  // positive rows with g > threshold
  kStatCorrectNeg = 4,  // negative rows with g < threshold
  kStatRowsPos = 5,
  kStatRowsNeg = 6,
  kStatKeptPos = 7,  // those of kStatRowsPos that an update did not leave out of dW
  kStatKeptNeg = 8,
  kStatCount = 9,
};

/// How a row becomes a scale and a goodness; the same for all layers of a kernel call.
struct LayerKind {
  Norm norm = Norm::kL2;
  float eps = 1e-4f;
  Goodness goodness = Goodness::kMeanSq;
};

struct LossParams {
  float threshold = 2.0f;
  float temperature = 1.0f;
};

struct OptimiserParams {
  Optimiser kind = Optimiser::kAdam;
  double lr = 0.0;
  double beta1 = 0.9;    // momentum for kSgd and kEma
  double beta2 = 0.999;  // kAdam and kAdamW, as eps
  double eps = 1e-8;
  double weight_decay = 0.0;  // kEma: of weights only; the others: of biases too
  int64_t step = 1;           // number of this update, counted from 1
  // Rows that teach less than this are left out of dW (csrc/cpu/lessons.h); 0: none is. Has to be 0 unless is_linear():
  // the scratch that kAdam and kAdamW ask for has no room for the choice.
  double row_tolerance = 0.0;
};

/// State slots of an optimiser: momentum, or the two moments.
constexpr int state_slots(Optimiser kind) { return kind == Optimiser::kAdam || kind == Optimiser::kAdamW ? 2 : 1; }

/// Whether an optimiser may leave rows out that teach little: its step is linear in dW.
constexpr bool is_linear(Optimiser kind) { return state_slots(kind) == 1; }

/// The same as the factors that the update of one element needs, worked out once per step.
struct UpdateRule {
  Optimiser kind;
  float lr;            // Adam: lr / (1 - beta1^step)
  float weight_decay;  // in the gradient (kSgd, kAdam) or beside the average (kEma); 0 where it does not apply
  float shrink;        // kAdamW: 1 - lr * weight_decay; else 1
  float beta1, rest1, beta2, rest2;
  float root;  // 1 / sqrt(1 - beta2^step)
  float eps;
};

struct PeerParams {
  float strength = 0.0f;  // lambda; with 0 a mean that is given moves, and pulls nothing
  float momentum = 0.9f;
};

}  // namespace ffkern
