// What happens to rows and columns around the products: goodness, loss, statistics, peer term, label variants, sums
// over the batch, the update of a split gradient. Parameter structures, which host and device share, and launches. No
// torch: pointers, sizes and a queue; no CUDA headers.
#pragma once
#include "../core/types.h"
#include "module.h"
#include "product.h"

namespace ffkern::cuda {

constexpr int kRowsThreads = 128;  // rows a block of ffkern_rows
constexpr int kSumsThreads = 128;  // units a block of ffkern_sums
constexpr int kSumsLabels = 32;    // labels that a block of ffkern_sums keeps in shared memory
constexpr int kUpdateThreads = 128;
constexpr int kLessonsThreads = 256;  // of a block of the kernels of lessons.h

/// Argument of ffkern_rows: what follows from each row's goodness. A thread a row.
struct RowsParams {
  // In: sums of column tiles, or the goodness itself.
  const float* partial_sq = nullptr;   // [tiles_n, rows] or null: `goodness` is read
  const float* partial_sum = nullptr;  // [tiles_n, rows] or null
  float* goodness = nullptr;           // [rows]
  float* h_norm = nullptr;             // [rows] written with partial_sq
  int tiles_n = 0;
  // The loss; sign null: none, and `coef` is read.
  const float* sign = nullptr;
  const float* row_weight = nullptr;  // [rows], null: 1 / rows
  LossParams loss;
  float* coef = nullptr;            // [rows] dloss/dg, or null: nothing is learned from the rows
  double* partial_stats = nullptr;  // [blocks, kStatCount] or null
  // What a gradient needs; scale null: none.
  const float* scale = nullptr;
  float* factor = nullptr;       // [rows] r c times dg/dh's constant factor
  float* peer_factor = nullptr;  // [rows] r of positive rows (by peer_sign), else 0; or null
  const float* peer_sign = nullptr;
  float* partial_max = nullptr;  // [2, blocks] largest |factor| and peer_factor, or null
  // float16 rows, or null. A row of zeros has an enormous scale and adds nothing: its factors become 0, lest they
  // decide the power of two for all rows.
  const uint16_t* x = nullptr;
  int64_t x_pitch = 0;
  int inputs = 0;
  int64_t rows = 0;
  int units = 0;
  Goodness kind = Goodness::kMeanSq;
};
void rows(const Queue&, const RowsParams&);
inline int64_t rows_blocks(int64_t rows) { return parts(rows, kRowsThreads); }

/// Optimiser of one update. What changes from step to step stays on the device, so that a replayed graph sees it.
struct OptimiserArgs {
  Optimiser kind = Optimiser::kAdam;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.0;
  double row_tolerance = 0.0;
  const double* lr = nullptr;
  int64_t* step = nullptr;  // updates done before this one
};

/// Argument of ffkern_finish: everything that a batch adds up to, by one block in a fixed order. Counts the update
/// (++step) where one follows.
struct FinishParams {
  const double* partial_stats = nullptr;  // [blocks, count]; null: no statistics
  int64_t blocks = 0;
  int count = 0;
  bool add = false;                    // stats += sums instead of stats = sums
  double* stats = nullptr;             // [count]
  float* loss = nullptr;               // the first sum as float32, or null
  const float* partial_max = nullptr;  // [2, blocks] of RowsParams, or null
  const float* peer_max = nullptr;     // [1] largest |p|, or null
  int variants = 1;                    // rows whose factors add up in one element of the operand
  float* power = nullptr;              // [2] power of two that brings the factors to [1/2, 1), and its inverse; or null
  OptimiserArgs optimiser;             // lr null: no update follows
  UpdateRule* rules = nullptr;         // [2] of weights and of biases
};
void finish(const Queue&, const FinishParams&);

/// Argument of ffkern_columns: label columns of the weights as rows, and their sum.
struct ColumnsParams {
  const void* weight = nullptr;
  Storage storage = Storage::kFloat32;
  int64_t pitch = 0;
  float* columns = nullptr;  // [classes + 1, units]
  int units = 0, classes = 0;
};
void columns(const Queue&, const ColumnsParams&);

/// Argument of ffkern_variants: activities of label variants from a kept base product. A warp a row.
struct VariantsParams {
  const void* base = nullptr;  // [images, units]
  Storage base_storage = Storage::kFloat32;
  int64_t base_pitch = 0;
  void* h = nullptr;  // [rows, units]
  Storage h_storage = Storage::kFloat32;
  int64_t h_pitch = 0;
  const float *rest_norm = nullptr, *bias = nullptr, *columns = nullptr, *overlay = nullptr;
  const int64_t* labels = nullptr;  // [variants, images]
  float *goodness = nullptr, *scale = nullptr, *h_norm = nullptr;
  int images = 0, variants = 0, units = 0, inputs = 0, classes = 0;
  LayerKind kind;
};
void variants(const Queue&, const VariantsParams&);

/// Argument of ffkern_sums: sums of dz over the batch (for biases and label columns), and the operand of a gradient
/// whose rows are shared by variants.
struct SumsParams {
  const void* h = nullptr;  // [variants * images, units]
  Storage storage = Storage::kFloat32;
  int64_t h_pitch = 0;
  const float* coef = nullptr;   // [rows]; null: h of positive rows is added up (peer normalisation)
  const float* scale = nullptr;  // [rows]
  const float* sign = nullptr;   // [rows] or null
  const float* peer = nullptr;   // [units] or null
  const int64_t* labels = nullptr;
  const float* power = nullptr;  // [2] or null
  float* sums = nullptr;         // [slices, classes > 0 ? classes + 2 : 1, units]
  void* operand = nullptr;       // [images, units] sum over variants of r dz, stored as h; or null
  int64_t images = 0;
  int64_t slice_images = 0;
  int variants = 1, units = 0, classes = 0;
  Goodness kind = Goodness::kMeanSq;
};
void sums(const Queue&, const SumsParams&);
/// Slices of the batch: a function of its size alone, so that sums do not depend on the device.
inline int64_t sums_slices(int64_t images) { return images < 32 ? 1 : images < 2048 ? parts(images, 32) : 64; }

/// Argument of ffkern_peer: the running mean and the peer term from the summed positive activities. One block.
struct PeerTermParams {
  const float* sums = nullptr;  // [slices, units]
  int slices = 0;
  const float* sign = nullptr;  // [rows]
  int64_t rows = 0;
  PeerParams peer;
  float* mean = nullptr;       // [units] updated
  float* p = nullptr;          // [units]
  float* positives = nullptr;  // [1] positive rows, or null
  float* largest = nullptr;    // [1] largest |p|, or null
  int units = 0;
};
void peer_term(const Queue&, const PeerTermParams&);
/// Positive rows alone, for a peer term that was made before.
void count_positives(const Queue&, const float* sign, int64_t rows, float* positives, const float* p, int units,
                     float* largest);

/// Argument of ffkern_update: the parts of a split gradient added in order and finished, the biases, label columns.
struct UpdateParams {
  const float* partial = nullptr;  // [splits, units, inputs]; null: biases alone
  int splits = 0;
  bool wide = false;  // as in GradientParams
  GradientTarget target;
};
void update(const Queue&, const UpdateParams&);

/// Argument of ffkern_convert: a matrix in another storage.
struct ConvertParams {
  const void* from = nullptr;
  void* to = nullptr;
  Storage from_storage = Storage::kFloat32, to_storage = Storage::kFloat32;
  int64_t from_pitch = 0, to_pitch = 0;
  int64_t rows = 0, columns = 0;
};
void convert(const Queue&, const ConvertParams&);

}  // namespace ffkern::cuda
