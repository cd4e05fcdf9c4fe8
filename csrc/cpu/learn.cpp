// How a layer learns: the whole step in one call, and gradient and update from activities kept before.
//
// The step, for R rows, K inputs, M units (plain layer):
//
//     x [R,K]  --product-->  z [R,M]  --rows-->  r dz [R,M]  --product-->  dW [block,K]  --update-->  W, m, v
//
//   1. z = x W^T for a chunk of rows: the row scale r commutes with the product, so raw x goes in.
//   2. Row by row, while the row is in the first-level cache: r from ||x||, h = relu(r z + b), goodness, loss,
//      c = dloss/dg, and r dz = r c g'(h) written over the row. h itself is stored only if somebody wants it.
//   3. dW = (r dz)^T x over the rows that still teach (lessons.h), for a block of units, and the optimiser on that
//   block while it is in cache.
//
// Bytes: x twice, the chunk of z three times, W once for the product, and W and its state once read and once written
// by the update; no activation gradient, no dW of the whole layer unless the rows come in several chunks.
// FLOPs: 2RKM + 2RKM, everything else is O(RM + RK + MK).
//
// With label variants (shared first layer) step 1 runs on N images instead of V N rows, step 2 derives all variants
// of an image from its row of z and adds their r dz into it (dW is linear in them), and the label columns of dW get
// their own sums: dW[:, c] = sum over rows with label c of value r dz. The two products shrink by V.
//
// Peer normalisation needs the column mean of h before any gradient, so step 2 becomes two sweeps; without kept
// activities, variants are computed again in the second sweep, which is cheaper than storing V N M floats.
//
// Order of every sum: rows are cut into slices (a function of sizes and thread count), a slice adds its rows in
// order, slices are added in order.
#include <optional>

#include "arena.h"
#include "lessons.h"
#include "rows.h"

namespace ffkern::cpu {
namespace {

constexpr int64_t kChunkFloats = 4 << 20;        // z of one chunk: 16 MiB
constexpr int64_t kUpdateBlockFloats = 4 << 20;  // dW of one block of units: 16 MiB

RowGradient row_gradient(const Layer& layer, float coef, float scale, const float* peer, float sign) {
  return {coef * goodness_slope(layer.kind.goodness, layer.units), layer.kind.goodness == Goodness::kSumAbs,
          sign > 0 ? peer : nullptr, scale};
}

/// dW[first.., :] of `units` units = (r dz)^T x. All columns, so that the product stays aligned: scatter_labels()
/// then puts the label columns right.
void weight_product(const Provider& provider, const Layer& layer, ProductRows rows, const float* rdz, int64_t first,
                    int64_t units, bool add, float* dweight) {
  if (rows.count == 0 && !add) {
    std::memset(dweight, 0, sizeof(float) * units * layer.inputs);
    return;
  }
  provider.gemm(provider, {.trans_a = true,
                           .m = units,
                           .n = layer.inputs,
                           .k = rows.count,
                           .a = rdz + first,
                           .lda = layer.units,
                           .b = rows.x,
                           .ldb = rows.ldx,
                           .beta = add ? 1.0f : 0.0f,
                           .c = dweight,
                           .ldc = layer.inputs,
                           .idle = rows.idle});
}

/// Sums over rows that a slice keeps for itself: db [M], then the label columns [classes + 1, M].
///
/// Rows add up in float32 in runs of kRunRows, and runs in a float64 total: a float32 total alone would be less
/// accurate than torch's pairwise sums.
struct SliceSums {
  int64_t slices = 0, floats = 0;
  double* totals = nullptr;  // [slices, floats]
  float* runs = nullptr;     // [slices, floats]
  float* result = nullptr;   // [floats]

  SliceSums(Arena& arena, const Provider& provider, const Layer& layer) {
    slices = slice_count(provider, layer.images, layer.variants * layer.units);
    floats = layer.units * (layer.classes > 0 ? layer.classes + 2 : 1);
    totals = arena.take_doubles(slices * floats);
    runs = arena.take(slices * floats);
    result = arena.take(floats);
  }
  float* run_db(int64_t s) const { return runs + s * floats; }
  float* run_label(const Layer& layer, int64_t s, int64_t index) const { return run_db(s) + layer.units * (1 + index); }
  const float* db() const { return result; }
  const float* label(const Layer& layer, int64_t index) const { return result + layer.units * (1 + index); }

  void clear() const {
    std::memset(totals, 0, sizeof(double) * slices * floats);
    std::memset(runs, 0, sizeof(float) * slices * floats);
  }

  /// Ends a run of slice s.
  void flush(int64_t s) const {
    double* total = totals + s * floats;
    float* run = run_db(s);
    for (int64_t i = 0; i < floats; ++i) total[i] += run[i];
    std::memset(run, 0, sizeof(float) * floats);
  }

  /// Adds the slices in order, the neutral label's sum into every label column, and the peer term p of `positives` rows
  /// into db (p may be null).
  void reduce(const Layer& layer, const float* p, int64_t positives) const {
    for (int64_t s = 0; s < slices; ++s) {
      flush(s);
      for (int64_t i = 0; s > 0 && i < floats; ++i) totals[i] += totals[s * floats + i];
    }
    for (int64_t j = 0; p != nullptr && j < layer.units; ++j) totals[j] += static_cast<double>(positives) * p[j];
    const double* neutral = totals + layer.units * (1 + layer.classes);
    for (int64_t c = 0; c < layer.classes; ++c) {
      double* column = totals + layer.units * (1 + c);
      for (int64_t j = 0; j < layer.units; ++j) column[j] += neutral[j];
    }
    for (int64_t i = 0; i < floats; ++i) result[i] = static_cast<float>(totals[i]);
  }
};

/// Adds one row's gradient into rdz (the image's row) and the slice's sums.
void gradient_row(const Layer& layer, const RowKernels& kernels, const SliceSums& sums, int64_t slice, int64_t variant,
                  int64_t row, RowGradient g, const float* h, float* rdz) {
  if (layer.classes == 0) {
    kernels.gradient(h, g, rdz, sums.run_db(slice), layer.units);
  } else {
    const int64_t index = label_index(layer, row);
    kernels.gradient_label(h, g, variant > 0, label_value(layer, index), rdz, sums.run_db(slice),
                           sums.run_label(layer, slice, index), layer.units);
  }
}

/// ||x_i|| for a row's mass: `norm` from input_norm(), which leaves it out where no scale depends on it.
float length_of(const Layer& layer, const RowKernels& kernels, int64_t i, float norm) {
  if (layer.kind.norm != Norm::kNone || layer.classes > 0 || layer.x_norm != nullptr) return norm;
  return row_length(layer, kernels, i);
}

float length_of(const Layer& layer, const RowKernels& kernels, int64_t i) {
  return length_of(layer, kernels, i, input_norm(layer, kernels, i));
}

/// Label columns of dW for units [first, first + units) from the reduced sums.
void scatter_labels(const Layer& layer, const SliceSums& sums, int64_t first, int64_t units, float* dweight) {
  for (int64_t j = 0; j < units; ++j) {
    for (int64_t c = 0; c < layer.classes; ++c) {
      dweight[j * layer.inputs + c] = sums.label(layer, c)[first + j];
    }
  }
}

/// The optimiser on units [first, first + units), whose gradient is dweight.
void update_units(const Provider& provider, const RowKernels& kernels, const Layer& layer,
                  const OptimiserParams& params, const Trained& trained, int64_t first, int64_t units,
                  const float* dweight) {
  const int64_t offset = first * layer.inputs, count = units * layer.inputs, slot = layer.units * layer.inputs;
  const bool two = state_slots(params.kind) == 2;
  const UpdateRule rule = update_rule(params, false);
  const int64_t slices = slice_count(provider, count, 4);
  parallel_tasks(provider, slices, [&](int64_t s) {
    // Slices begin on multiples of 16 floats, so that no two threads write one cache line of an aligned tensor.
    const int64_t begin = slice_begin((count + 15) / 16, slices, s) * 16;
    const int64_t next = slice_begin((count + 15) / 16, slices, s + 1) * 16;
    const int64_t end = next < count ? next : count;
    float* m = trained.weight_state + offset + begin;
    kernels.update(rule, dweight + begin, trained.weight + offset + begin, m, two ? m + slot : nullptr, end - begin);
  });
}

void update_bias(const RowKernels& kernels, int64_t units, const OptimiserParams& params, const Trained& trained,
                 const float* dbias) {
  if (trained.bias == nullptr) return;
  const bool two = state_slots(params.kind) == 2;
  kernels.update(update_rule(params, true), dbias, trained.bias, trained.bias_state,
                 two ? trained.bias_state + units : nullptr, units);
}

int64_t update_block(const Layer& layer) {
  const int64_t block = kUpdateBlockFloats / layer.inputs / 16 * 16;
  return block < 16 ? (layer.units < 16 ? layer.units : 16) : (block < layer.units ? block : layer.units);
}

/// dW block by block, each updated while in cache.
void update_blocks(const Provider& provider, const RowKernels& kernels, const Layer& layer, const SliceSums& sums,
                   ProductRows rows, const float* rdz, const OptimiserParams& params, const Trained& trained,
                   float* dweight) {
  const int64_t block = update_block(layer);
  for (int64_t first = 0; first < layer.units; first += block) {
    const int64_t units = layer.units - first < block ? layer.units - first : block;
    weight_product(provider, layer, rows, rdz, first, units, false, dweight);
    scatter_labels(layer, sums, first, units, dweight);
    update_units(provider, kernels, layer, params, trained, first, units, dweight);
  }
}

// ---- the same for rows of bfloat16 (pairs.h)

constexpr int64_t kLowUnits = 64;  // of dW at once in a task: it stays in the second-level cache until it is used

/// Tasks of units for an update; each has dW of kLowUnits of them in memory.
int64_t low_slices(const Provider& provider, const Layer& layer) {
  return slice_count(provider, panels_of(layer.units), kPanel * layer.inputs);
}

/// Calls each(slice, first, units) for blocks of at most kLowUnits units.
template <class F>
void low_blocks(const Provider& provider, const Layer& layer, F each) {
  const int64_t slices = low_slices(provider, layer), panels = panels_of(layer.units);
  parallel_tasks(provider, slices, [&](int64_t s) {
    const int64_t last = slice_begin(panels, slices, s + 1) * kPanel, end = last < layer.units ? last : layer.units;
    for (int64_t first = slice_begin(panels, slices, s) * kPanel; first < end; first += kLowUnits) {
      each(s, first, end - first < kLowUnits ? end - first : kLowUnits);
    }
  });
}

/// dW [M, K] of all units, added to what is there if asked.
void low_weight_product(const Provider& provider, const Layer& layer, const LowOperands& operands, bool add,
                        float* dweight) {
  low_blocks(provider, layer, [&](int64_t, int64_t first, int64_t units) {
    low_gradient(layer, operands, first, units, add, dweight + first * layer.inputs);
  });
}

/// Floats of dW that an update holds at once.
int64_t block_floats(const Provider& provider, const Layer& layer) {
  if (layer.x_low == nullptr) return update_block(layer) * layer.inputs;
  return low_slices(provider, layer) * kLowUnits * layer.inputs;
}

/// dW block by block, or all of it if there are no operands, and with the update the new panels of W.
void low_update(const Provider& provider, const RowKernels& kernels, const Layer& layer, const SliceSums& sums,
                const LowOperands* operands, const OptimiserParams& params, const Trained& trained, float* dweight) {
  const int64_t slot = layer.units * layer.inputs;
  const bool two = state_slots(params.kind) == 2;
  const UpdateRule rule = update_rule(params, false);
  low_blocks(provider, layer, [&](int64_t s, int64_t first, int64_t units) {
    const int64_t offset = first * layer.inputs;
    float* dw = operands != nullptr ? dweight + s * kLowUnits * layer.inputs : dweight + offset;
    if (operands != nullptr) low_gradient(layer, *operands, first, units, false, dw);
    scatter_labels(layer, sums, first, units, dw);
    for (int64_t unit = first; unit < first + units; unit += kPanel) {
      const int64_t rows = first + units - unit < kPanel ? first + units - unit : kPanel, at = unit * layer.inputs;
      float* m = trained.weight_state + at;
      kernels.update(rule, dw + (at - offset), trained.weight + at, m, two ? m + slot : nullptr, rows * layer.inputs);
      if (trained.weight_low == nullptr) continue;
      pack_panels(pair_kernels(), unit / kPanel, unit / kPanel + 1, layer.units, layer.inputs, trained.weight,
                  trained.weight_low);
    }
  });
}

}  // namespace

namespace {

struct GradientScratch {
  SliceSums sums;
  float* rdz;
  float* h = nullptr;              // [slices, M] a row of activities that are stored in bfloat16
  std::optional<LowOperands> low;  // of such rows

  GradientScratch(Arena& arena, const Provider& provider, const Layer& layer)
      : sums(arena, provider, layer), rdz(arena.take(layer.images * layer.units)) {
    if (layer.x_low == nullptr) return;
    h = arena.take(sums.slices * layer.units);
    low.emplace(arena, layer, layer.images + 1);
  }
};

/// r dz of every image and the slice sums, from kept activities; notes what each row teaches, unless lessons is null,
/// with norms if `masses`.
void sweep_gradients(const Provider& provider, const RowKernels& kernels, const Layer& layer, const Activities& kept,
                     const float* coef, const float* sign, const float* peer, const GradientScratch& scratch,
                     const Lessons* lessons, bool masses) {
  const SliceSums& sums = scratch.sums;
  sums.clear();
  parallel_tasks(provider, sums.slices, [&](int64_t s) {
    for (int64_t i = slice_begin(layer.images, sums.slices, s); i < slice_begin(layer.images, sums.slices, s + 1);
         ++i) {
      const float x_norm = masses ? length_of(layer, kernels, i) : 0.0f;
      for (int64_t v = 0; v < layer.variants; ++v) {
        const int64_t at = v * layer.images + i;
        const float* h = kept.h + at * layer.units;
        if (kept.h_low != nullptr) {
          float* wide = scratch.h + s * layer.units;
          pair_kernels().widen(kept.h_low + at * layer.units, wide, layer.units);
          h = wide;
        }
        if (lessons != nullptr) {
          const float h_norm = masses ? std::sqrt(kernels.sum_sq(h, layer.units)) : 0.0f;
          lessons->note(layer, i, v == 0, coef[at], kept.scale[at], h_norm, x_norm, peer != nullptr && sign[at] > 0);
        }
        gradient_row(layer, kernels, sums, s, v, at,
                     row_gradient(layer, coef[at], kept.scale[at], peer, sign != nullptr ? sign[at] : 0.0f), h,
                     scratch.rdz + i * layer.units);
      }
      if (lessons != nullptr) lessons->check(kernels, layer, i, scratch.rdz + i * layer.units);
      if (i % kRunRows == kRunRows - 1) sums.flush(s);
    }
  });
  sums.reduce(layer, peer, peer != nullptr ? count_positive(layer.rows(), sign) : 0);
}

}  // namespace

void gradient(const Provider& provider, const Layer& layer, const Activities& kept, const float* coef,
              const float* sign, const float* peer, float* dweight, float* dbias, float* scratch) {
  const RowKernels& kernels = row_kernels();
  Arena arena(scratch);
  GradientScratch parts(arena, provider, layer);
  sweep_gradients(provider, kernels, layer, kept, coef, sign, peer, parts, nullptr, false);
  std::memcpy(dbias, parts.sums.db(), sizeof(float) * layer.units);
  if (parts.low) {
    pack_operands(provider, layer, 0, {layer.images}, parts.rdz, *parts.low);
    low_weight_product(provider, layer, *parts.low, false, dweight);
  } else {
    weight_product(provider, layer, {layer.images, layer.x, layer.ldx}, parts.rdz, 0, layer.units, false, dweight);
  }
  scatter_labels(layer, parts.sums, 0, layer.units, dweight);
}

int64_t update_floats(const Provider& provider, const Layer& layer, Optimiser optimiser) {
  Arena arena(nullptr);
  GradientScratch(arena, provider, layer);
  Lessons(arena, layer, is_linear(optimiser));
  arena.take(block_floats(provider, layer));
  return arena.used();
}

void update(const Provider& provider, const Layer& layer, const Activities& kept, const float* coef, const float* sign,
            const float* peer, const OptimiserParams& params, const Trained& trained, double* stats, float* scratch) {
  const RowKernels& kernels = row_kernels();
  const bool bounded = params.row_tolerance > 0;
  Arena arena(scratch);
  GradientScratch parts(arena, provider, layer);
  const Lessons lessons(arena, layer, bounded);
  float* dweight = arena.take(block_floats(provider, layer));
  sweep_gradients(provider, kernels, layer, kept, coef, sign, peer, parts, &lessons, bounded);
  if (parts.low) {
    pack_operands(provider, layer, 0, lessons.keep_low(kernels, layer, params.row_tolerance, peer), parts.rdz,
                  *parts.low);
    low_update(provider, kernels, layer, parts.sums, &*parts.low, params, trained, dweight);
  } else {
    const ProductRows rows = lessons.keep(kernels, layer, params.row_tolerance, peer, parts.rdz);
    update_blocks(provider, kernels, layer, parts.sums, rows, parts.rdz, params, trained, dweight);
  }
  update_bias(kernels, layer.units, params, trained, parts.sums.db());
  if (stats != nullptr) lessons.count(layer, sign, stats);
}

namespace {

struct StepScratch {
  int64_t chunk;  // images whose z is held at once
  SliceSums sums;
  float *coef, *scale, *norm;  // of every row, row, image
  double* stats;               // [slices, kStatCount]
  float* z;                    // [chunk, M]
  float* dweight;              // one block of units, or all of them when chunks add up
  float* columns = nullptr;    // label columns of W
  float* variant_h = nullptr;  // [slices, V, M] activities of one image, when nobody keeps them
  float* peer_sums = nullptr;  // [slices, 2, M]
  float* p = nullptr;
  std::optional<LowOperands> low;  // of rows of bfloat16
  bool bounded;                    // rows that teach little may be left out: of a batch in one chunk
  Lessons lessons;

  StepScratch(Arena& arena, const Provider& provider, const Layer& layer, bool peer, bool linear)
      : chunk(chunk_images(layer, peer)),
        sums(arena, provider, layer),
        bounded(linear && chunk == layer.images),
        lessons(arena, layer, bounded) {
    coef = arena.take(layer.rows());
    scale = arena.take(layer.rows());
    norm = arena.take(layer.images);
    stats = arena.take_doubles(sums.slices * kStatCount);
    z = arena.take(chunk * layer.units);
    dweight = arena.take(chunk < layer.images ? layer.units * layer.inputs : block_floats(provider, layer));
    if (layer.classes > 0) {
      columns = arena.take(label_floats(layer));
      variant_h = arena.take(sums.slices * layer.variants * layer.units);
    }
    if (peer) {
      peer_sums = arena.take(sums.slices * 2 * layer.units);
      p = arena.take(layer.units);
    }
    if (layer.x_low != nullptr) low.emplace(arena, layer, chunk + 1);
  }

  /// The peer term of any row needs the mean over all rows first, hence one chunk.
  static int64_t chunk_images(const Layer& layer, bool peer) {
    const int64_t most = kChunkFloats / layer.units;
    const int64_t chunk = most < 512 ? 512 : most;
    return peer || chunk >= layer.images ? layer.images : chunk;
  }
};

/// What one pass over the rows of a chunk does.
struct Pass {
  bool lesson;  // forward, loss and statistics (and sums of positive activities, with a peer term)
  bool learn;   // r dz over z, and the slice sums
};

void sweep(const Provider& provider, const RowKernels& kernels, const Step& step, const StepScratch& scratch,
           int64_t begin, int64_t count, Pass pass) {
  const Layer& layer = step.layer;
  const SliceSums& sums = scratch.sums;
  const int64_t units = layer.units, slices = sums.slices;
  parallel_tasks(provider, slices, [&](int64_t s) {
    double* stats = scratch.stats + s * kStatCount;
    for (int64_t i = begin + slice_begin(count, slices, s); i < begin + slice_begin(count, slices, s + 1); ++i) {
      float* z = scratch.z + (i - begin) * units;
      auto activities = [&](int64_t v) {
        if (step.keep_h != nullptr) return step.keep_h + (v * layer.images + i) * units;
        return layer.classes > 0 ? scratch.variant_h + (s * layer.variants + v) * units : z;
      };
      if (pass.lesson) scratch.norm[i] = input_norm(layer, kernels, i);
      const float x_norm = pass.lesson && scratch.bounded ? length_of(layer, kernels, i, scratch.norm[i]) : 0.0f;
      // Variants that nobody keeps are computed again when the lesson was in an earlier pass.
      if (pass.lesson || (layer.classes > 0 && step.keep_h == nullptr)) {
        for (int64_t v = 0; v < layer.variants; ++v) {
          const int64_t at = v * layer.images + i;
          const Row row = forward_row(layer, kernels, scratch.columns, z, scratch.norm[i], at, activities(v));
          if (!pass.lesson) continue;
          if (step.keep_h_low != nullptr) pair_kernels().narrow(activities(v), step.keep_h_low + at * units, units);
          scratch.scale[at] = row.scale;
          scratch.coef[at] = row_lesson(step.lesson, layer.rows(), at, row.goodness, stats);
          scratch.lessons.note(layer, i, v == 0, scratch.coef[at], row.scale, row.h_norm, x_norm,
                               scratch.p != nullptr && step.lesson.sign[at] > 0);
          if (step.keep_h_norm != nullptr) step.keep_h_norm[at] = row.h_norm;
          if (scratch.p != nullptr && step.lesson.sign[at] > 0) {
            kernels.add(activities(v), scratch.peer_sums + s * 2 * units, units);
          }
        }
      }
      if (pass.lesson && scratch.p != nullptr && i % kRunRows == kRunRows - 1) {
        end_run(kernels, scratch.peer_sums + s * 2 * units, units);
      }
      if (!pass.learn) continue;
      for (int64_t v = 0; v < layer.variants; ++v) {
        const int64_t at = v * layer.images + i;
        gradient_row(layer, kernels, sums, s, v, at,
                     row_gradient(layer, scratch.coef[at], scratch.scale[at], scratch.p, step.lesson.sign[at]),
                     activities(v), z);
      }
      scratch.lessons.check(kernels, layer, i, z);
      if (i % kRunRows == kRunRows - 1) sums.flush(s);
    }
  });
}

}  // namespace

int64_t step_floats(const Provider& provider, const Layer& layer, bool peer, Optimiser optimiser) {
  Arena arena(nullptr);
  StepScratch(arena, provider, layer, peer, is_linear(optimiser));
  return arena.used();
}

void step(const Provider& provider, const Step& step, float* memory) {
  const RowKernels& kernels = row_kernels();
  const Layer& layer = step.layer;
  const bool peer = step.peer_mean != nullptr;
  Arena arena(memory);
  StepScratch scratch(arena, provider, layer, peer, step.optimiser.row_tolerance > 0);
  const int64_t slices = scratch.sums.slices;

  scratch.sums.clear();
  std::memset(scratch.stats, 0, sizeof(double) * slices * kStatCount);
  if (layer.classes > 0) gather_labels(layer, scratch.columns);

  const bool chunked = scratch.chunk < layer.images;
  for (int64_t begin = 0; begin < layer.images; begin += scratch.chunk) {
    const int64_t left = layer.images - begin, count = left < scratch.chunk ? left : scratch.chunk;
    product(provider, layer, begin, count, scratch.z);
    if (peer) {
      std::memset(scratch.peer_sums, 0, sizeof(float) * slices * 2 * layer.units);
      sweep(provider, kernels, step, scratch, begin, count, {.lesson = true, .learn = false});
      peer_from_sums(layer.units, total_of_runs(kernels, scratch.peer_sums, slices, layer.units),
                     count_positive(layer.rows(), step.lesson.sign), step.peer, step.peer_mean, scratch.p);
      sweep(provider, kernels, step, scratch, begin, count, {.lesson = false, .learn = true});
    } else {
      sweep(provider, kernels, step, scratch, begin, count, {.lesson = true, .learn = true});
    }
    if (chunked && scratch.low) {
      pack_operands(provider, layer, begin, {count}, scratch.z, *scratch.low);
      low_weight_product(provider, layer, *scratch.low, begin > 0, scratch.dweight);
    } else if (chunked) {
      weight_product(provider, layer, scratch.lessons.all(layer, begin, count), scratch.z, 0, layer.units, begin > 0,
                     scratch.dweight);
    }
  }
  scratch.sums.reduce(layer, scratch.p, peer ? count_positive(layer.rows(), step.lesson.sign) : 0);

  if (scratch.low) {
    if (!chunked) {
      const SummedRows rows = scratch.lessons.keep_low(kernels, layer, step.optimiser.row_tolerance, scratch.p);
      pack_operands(provider, layer, 0, rows, scratch.z, *scratch.low);
    }
    low_update(provider, kernels, layer, scratch.sums, chunked ? nullptr : &*scratch.low, step.optimiser, step.trained,
               scratch.dweight);
  } else if (chunked) {
    scatter_labels(layer, scratch.sums, 0, layer.units, scratch.dweight);
    update_units(provider, kernels, layer, step.optimiser, step.trained, 0, layer.units, scratch.dweight);
  } else {
    const ProductRows rows = scratch.lessons.keep(kernels, layer, step.optimiser.row_tolerance, scratch.p, scratch.z);
    update_blocks(provider, kernels, layer, scratch.sums, rows, scratch.z, step.optimiser, step.trained,
                  scratch.dweight);
  }
  update_bias(kernels, layer.units, step.optimiser, step.trained, scratch.sums.db());
  for (int64_t s = 0; s < slices; ++s) {
    for (int k = 0; k < kStatCount; ++k) step.stats[k] += scratch.stats[s * kStatCount + k];
  }
  scratch.lessons.count(layer, step.lesson.sign, step.stats);
}

}  // namespace ffkern::cpu
