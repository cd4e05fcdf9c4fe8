// Launches of a layer's operations. A training step is
//
//     x --forward--> h, partial goodness --rows--> goodness, c, r c, statistics --finish--> the update's factors
//       --sums--> db and label columns --gradient (--update where split)--> weights, their 2-byte copy, state
//
// with the peer term's two launches behind `rows`. Nothing is read back: a step can be captured into a graph.
#include "layer.h"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "instances.h"
#include "lessons.h"
#include "workspace.h"

namespace ffkern::cuda {
namespace {

bool two_sums(Goodness goodness) { return goodness == Goodness::kSumAbs; }

/// Scratch of a forward pass: what the product reads besides its operands, and what it leaves for `rows`.
struct ForwardScratch {
  void* weight = nullptr;  // copy in the storage of x
  float* columns = nullptr;
  float* partial = nullptr;  // [2, tiles_n, rows]

  ForwardScratch(Workspace& workspace, const Layer& layer) {
    if (layer.weight_storage != layer.storage()) weight = workspace.take<uint16_t>(layer.units * layer.inputs);
    if (layer.classes > 0) columns = workspace.take<float>((layer.classes + 1) * layer.units);
    partial = workspace.take<float>(2 * most_column_tiles(layer.product, layer.units) * layer.rows());
  }
};

/// The layer with weights stored as its product reads them.
Layer with_operand(const Queue& queue, Layer layer, void* copy) {
  if (layer.weight_storage == layer.storage()) return layer;
  convert(queue, {layer.weight, copy, layer.weight_storage, layer.storage(), layer.weight_pitch, layer.inputs,
                  layer.units, layer.inputs});
  layer.weight = copy;
  layer.weight_storage = layer.storage();
  layer.weight_pitch = layer.inputs;
  return layer;
}

void label_columns(const Queue& queue, const Layer& layer, float* out) {
  ColumnsParams c;
  c.weight = layer.weight;
  c.storage = layer.weight_storage;
  c.pitch = layer.weight_pitch;
  c.columns = out;
  c.units = checked_size("units", layer.units);
  c.classes = checked_size("classes", layer.classes);
  columns(queue, c);
}

ForwardParams product_params(const Layer& layer) {
  ForwardParams p;
  p.x = layer.x;
  p.weight = layer.weight;
  p.bias = layer.bias;
  p.x_norm = layer.x_norm;
  p.x_pitch = layer.x_pitch;
  p.weight_pitch = layer.weight_pitch;
  p.variant_step = layer.images;
  p.images = checked_size("images", layer.images);
  p.units = checked_size("units", layer.units);
  p.inputs = checked_size("inputs", layer.inputs);
  p.classes = checked_size("classes", layer.classes);
  p.variants = checked_size("variants", layer.variants);
  p.labels = layer.labels;
  p.overlay = layer.overlay;
  p.kind = layer.kind;
  return p;
}

/// Product and epilogue; returns what `rows` needs to know of the partial sums. h is stored as x.
RowsParams run_forward(const Queue& queue, const Layer& given, const Activities& out, const ForwardScratch& scratch,
                       bool image_major = false) {
  const Layer layer = with_operand(queue, given, scratch.weight);
  ForwardParams p = product_params(layer);
  if (layer.classes > 0) {
    label_columns(queue, layer, scratch.columns);
    p.columns = scratch.columns;
  }
  if (image_major) {
    p.image_step = layer.variants;
    p.variant_step = 1;
  }
  p.h = out.h;
  p.h_pitch = out.pitch;
  p.scale = out.scale;
  p.partial_sq = scratch.partial;
  RowsParams r;
  r.rows = layer.rows();
  r.units = p.units;
  r.kind = layer.kind.goodness;
  r.goodness = out.goodness;
  r.h_norm = out.h_norm;
  r.partial_sq = scratch.partial;
  if (layer.rows() == 0) return r;
  if (two_sums(layer.kind.goodness)) {
    p.partial_sum = scratch.partial + most_column_tiles(layer.product, layer.units) * layer.rows();
    r.partial_sum = p.partial_sum;
  }
  r.tiles_n = forward_product(queue, layer.product, p);
  return r;
}

/// Activities stored as x, beside those that the caller wants in another storage.
struct OwnActivities {
  Activities out;
  bool copied;

  OwnActivities(Workspace& workspace, const Layer& layer, const Activities& wanted, bool needed)
      : out(wanted), copied(wanted.h ? wanted.storage != layer.storage() : needed) {
    if (!copied) return;
    out.h = workspace.take<float>(layer.rows() * layer.units);  // float32 at most
    out.storage = layer.storage();
    out.pitch = layer.units;
  }
  void hand_over(const Queue& queue, const Layer& layer, const Activities& wanted) const {
    if (!copied || !wanted.h) return;
    convert(queue, {out.h, wanted.h, out.storage, wanted.storage, out.pitch, wanted.pitch, layer.rows(), layer.units});
  }
};

}  // namespace

// ---------------------------------------------------------------- forward

void base_product(const Queue& queue, const Layer& given, float* base, float* rest_norm, void* memory) {
  if (given.images == 0) return;
  Workspace workspace(memory);
  const ForwardScratch scratch(workspace, given);
  const Layer layer = with_operand(queue, given, scratch.weight);
  ForwardParams p = product_params(layer);
  p.base = base;
  p.rest_norm = rest_norm;
  forward_product(queue, layer.product, p);
}

void forward(const Queue& queue, const Layer& layer, const Activities& wanted, void* memory) {
  Workspace workspace(memory);
  const ForwardScratch scratch(workspace, layer);
  const OwnActivities own(workspace, layer, wanted, false);
  rows(queue, run_forward(queue, layer, own.out, scratch));
  own.hand_over(queue, layer, wanted);
}

int64_t forward_bytes(const Layer& layer, Storage h) {
  Workspace workspace(nullptr);
  ForwardScratch(workspace, layer);
  OwnActivities(workspace, layer, {}, h != layer.storage());
  return workspace.used();
}

void variants(const Queue& queue, const Layer& layer, const void* base, Storage base_storage, int64_t base_pitch,
              const Activities& out, void* memory) {
  Workspace workspace(memory);
  VariantsParams v;
  float* label_rows = workspace.take<float>((layer.classes + 1) * layer.units);
  label_columns(queue, layer, label_rows);
  v.base = base;
  v.base_storage = base_storage;
  v.base_pitch = base_pitch;
  v.h = out.h;
  v.h_storage = out.storage;
  v.h_pitch = out.pitch;
  v.rest_norm = layer.x_norm;
  v.bias = layer.bias;
  v.columns = label_rows;
  v.overlay = layer.overlay;
  v.labels = layer.labels;
  v.goodness = out.goodness;
  v.scale = out.scale;
  v.h_norm = out.h_norm;
  v.images = checked_size("images", layer.images);
  v.variants = checked_size("variants", layer.variants);
  v.units = checked_size("units", layer.units);
  v.inputs = checked_size("inputs", layer.inputs);
  v.classes = checked_size("classes", layer.classes);
  v.kind = layer.kind;
  variants(queue, v);
}

int64_t variants_bytes(const Layer& layer) {
  Workspace workspace(nullptr);
  workspace.take<float>((layer.classes + 1) * layer.units);
  return workspace.used();
}

// ---------------------------------------------------------------- loss and peer term

namespace {

struct StatsScratch {
  double* stats;  // [blocks, kStatCount]
  StatsScratch(Workspace& workspace, int64_t rows) : stats(workspace.take<double>(rows_blocks(rows) * kStatCount)) {}
};

void set_lesson(RowsParams& r, const Lesson& lesson, float* coef, const StatsScratch& scratch) {
  r.sign = lesson.sign;
  r.row_weight = lesson.row_weight;
  r.loss = lesson.loss;
  r.coef = coef;
  r.partial_stats = scratch.stats;
}

/// Column sums of the positive activities, and the term.
void run_peer(const Queue& queue, int64_t rows, int64_t units, const Activities& h, const float* sign, PeerParams peer,
              float* mean, float* p, float* column_sums, float* positives, float* largest) {
  SumsParams s;
  s.h = h.h;
  s.storage = h.storage;
  s.h_pitch = h.pitch;
  s.sign = sign;
  s.sums = column_sums;
  s.images = rows;
  s.slice_images = parts(rows, sums_slices(rows));
  s.units = checked_size("units", units);
  sums(queue, s);
  PeerTermParams t;
  t.sums = column_sums;
  t.slices = static_cast<int>(sums_slices(rows));
  t.sign = sign;
  t.rows = rows;
  t.peer = peer;
  t.mean = mean;
  t.p = p;
  t.positives = positives;
  t.largest = largest;
  t.units = s.units;
  peer_term(queue, t);
}

}  // namespace

void local_loss(const Queue& queue, int64_t count, const float* goodness, const Lesson& lesson, float* loss,
                float* coef, double* stats, bool add, void* memory) {
  Workspace workspace(memory);
  const StatsScratch scratch(workspace, count);
  RowsParams r;
  r.goodness = const_cast<float*>(goodness);  // read only: there are no partial sums
  r.rows = count;
  set_lesson(r, lesson, coef, scratch);
  rows(queue, r);
  FinishParams f;
  f.partial_stats = scratch.stats;
  f.blocks = rows_blocks(count);
  f.count = kStatCount;
  f.add = add;
  f.stats = stats;
  f.loss = loss;
  finish(queue, f);
}

int64_t local_loss_bytes(int64_t rows) {
  Workspace workspace(nullptr);
  StatsScratch(workspace, rows);
  return workspace.used();
}

void peer_update(const Queue& queue, int64_t rows, int64_t units, const Activities& h, const float* sign,
                 PeerParams peer, float* mean, float* p, void* memory) {
  Workspace workspace(memory);
  float* column_sums = workspace.take<float>(sums_slices(rows) * units);
  run_peer(queue, rows, units, h, sign, peer, mean, p, column_sums, nullptr, nullptr);
}

int64_t peer_bytes(int64_t rows, int64_t units) {
  Workspace workspace(nullptr);
  workspace.take<float>(sums_slices(rows) * units);
  return workspace.used();
}

// ---------------------------------------------------------------- gradient and update

namespace {

/// Whether fewer rows can pay for being chosen: that costs three launches, or four, and a pass over the rows, and
/// leaves at least half of the product. $FFKERN_CUDA_LEAVE_OUT decides instead where it is set.
bool may_leave_out(const Layer& layer) {
  const char* set = std::getenv("FFKERN_CUDA_LEAVE_OUT");
  const std::string wanted = set != nullptr ? set : "";
  if (wanted == "always") return layer.images > 0;
  if (wanted == "never") return false;
  if (!wanted.empty()) {
    throw std::invalid_argument("ffkern: FFKERN_CUDA_LEAVE_OUT is '" + wanted + "'; expected 'always' or 'never'.");
  }
  constexpr double kWide = 0x1p31, kNarrow = 0x1p33;  // multiply-adds, of 4 bytes and of 2
  return static_cast<double>(layer.images) * static_cast<double>(layer.units) * static_cast<double>(layer.inputs) >=
         (layer.storage() == Storage::kFloat32 ? kWide : kNarrow);
}

/// What leaving rows out writes: choice and copies.
struct LessonsScratch {
  LessonsParams p;

  LessonsScratch(Workspace& workspace, const Layer& layer) {
    p.most = layer.images / 2;
    const int64_t rows = p.most + kOwedRows, element = storage_bytes(layer.storage());
    const auto aligned_pitch = [&](int64_t columns) { return parts(columns * element, 16) * 16 / element; };
    p.kept_operand_pitch = aligned_pitch(layer.units);
    p.kept_x_pitch = aligned_pitch(layer.inputs);
    p.mass = workspace.take<double>(layer.images);
    p.owed = workspace.take<float>(layer.images);
    p.slot = workspace.take<int>(layer.images);
    p.kept = workspace.take<int>(1);
    p.kept_operand = workspace.take<char>(rows * p.kept_operand_pitch * element);
    p.kept_x = workspace.take<char>(rows * p.kept_x_pitch * element);
    p.kept_factor = workspace.take<float>(rows);
    p.kept_peer_factor = workspace.take<float>(rows);
  }
};

struct GradientScratch {
  float *factor, *peer_factor, *partial_max, *power, *positives, *peer_max, *column_sums, *parts_of_dw;
  void* operand = nullptr;
  UpdateRule* rules;
  std::optional<LessonsScratch> lessons;

  /// bounded: rows may be left out.
  GradientScratch(Workspace& workspace, const Queue& queue, const Layer& layer, bool bounded) {
    checked_size("rows", layer.images);  // before anything is launched
    factor = workspace.take<float>(layer.rows());
    peer_factor = workspace.take<float>(layer.rows());
    partial_max = workspace.take<float>(2 * rows_blocks(layer.rows()));
    power = workspace.take<float>(2);
    positives = workspace.take<float>(1);
    peer_max = workspace.take<float>(1);
    column_sums =
        workspace.take<float>(sums_slices(layer.images) * (layer.classes > 0 ? layer.classes + 2 : 1) * layer.units);
    parts_of_dw = workspace.take<float>(gradient_parts(queue, layer.product, layer.images, layer.units, layer.inputs));
    if (layer.classes > 0) operand = workspace.take<float>(layer.images * layer.units);  // float32 at most
    rules = workspace.take<UpdateRule>(2);
    if (bounded && may_leave_out(layer)) lessons.emplace(workspace, layer);
  }
};

void set_factors(RowsParams& r, const Layer& layer, const float* scale, const float* sign, bool peer,
                 const GradientScratch& scratch) {
  r.scale = scale;
  r.factor = scratch.factor;
  r.peer_factor = peer ? scratch.peer_factor : nullptr;
  r.peer_sign = sign;
  if (layer.product != Product::kF16) return;
  r.partial_max = scratch.partial_max;
  if (layer.classes == 0) {
    r.x = static_cast<const uint16_t*>(layer.x);
    r.x_pitch = layer.x_pitch;
    r.inputs = static_cast<int>(layer.inputs);
  }
}

/// Power of two and update factors; behind `rows` (and the peer term).
FinishParams finish_params(const Layer& layer, const GradientScratch& scratch, bool peer, const Trained* trained) {
  FinishParams f;
  f.blocks = rows_blocks(layer.rows());
  if (layer.product == Product::kF16) {
    f.variants = static_cast<int>(layer.variants);
    f.partial_max = scratch.partial_max;
    f.peer_max = peer ? scratch.peer_max : nullptr;
    f.power = scratch.power;
  }
  if (trained != nullptr) {
    f.optimiser = trained->optimiser;
    f.rules = scratch.rules;
  }
  return f;
}

GradientTarget target_of(const Layer& layer, const GradientScratch& scratch) {
  GradientTarget t;
  t.rules = scratch.rules;
  t.classes = checked_size("classes", layer.classes);
  t.overlay = layer.overlay;
  t.column_sums = scratch.column_sums;
  t.slices = static_cast<int>(sums_slices(layer.images));
  t.units = checked_size("units", layer.units);
  t.inputs = checked_size("inputs", layer.inputs);
  return t;
}

GradientTarget target_of(const Layer& layer, const GradientScratch& scratch, const Trained& trained) {
  GradientTarget t = target_of(layer, scratch);
  const bool two = state_slots(trained.optimiser.kind) == 2;
  t.weight = trained.weight;
  t.m = trained.weight_state;
  t.v = two ? trained.weight_state + layer.units * layer.inputs : nullptr;
  t.low = trained.low;
  t.low_storage = layer.storage();
  t.bias = trained.bias;
  t.bias_m = trained.bias_state;
  t.bias_v = two && trained.bias != nullptr ? trained.bias_state + layer.units : nullptr;
  return t;
}

/// What decides about leaving rows out.
struct Choice {
  double tolerance = 0.0;
  const float* h_norm = nullptr;  // [rows] or null: computed
  double* stats = nullptr;        // or null
};

/// Gathers the rows that still teach for the product `g`.
void leave_out(const Queue& queue, const Layer& layer, const Kept& kept, const Choice& choice, LessonsParams p,
               GradientParams& g) {
  p.storage = layer.storage();
  p.x = layer.x;
  p.x_pitch = layer.x_pitch;
  p.h = kept.h;
  p.h_pitch = kept.pitch;
  p.operand = g.h;
  p.operand_pitch = g.h_pitch;
  p.h_norm = choice.h_norm;
  p.coef = kept.coef;
  p.scale = kept.scale;
  p.sign = kept.sign;
  p.peer = kept.peer;
  p.factor = g.factor;
  p.peer_factor = g.peer_factor;
  p.power = g.power;
  p.tolerance = choice.tolerance;
  p.images = layer.images;
  p.variants = static_cast<int>(layer.variants);
  p.units = static_cast<int>(layer.units);
  p.inputs = static_cast<int>(layer.inputs);
  p.classes = static_cast<int>(layer.classes);
  p.kind = layer.kind.goodness;
  p.stats = choice.stats;
  cuda::leave_out(queue, p);
  g.kept = p.kept;
  g.kept_h = p.kept_operand;
  g.kept_x = p.kept_x;
  g.kept_factor = p.kept_factor;
  g.kept_peer_factor = p.kept_peer_factor;
  g.kept_h_pitch = p.kept_operand_pitch;
  g.kept_x_pitch = p.kept_x_pitch;
}

/// Everything behind `finish`: sums over the batch, the rows that still teach, the product, the target.
void run_gradient(const Queue& queue, const Layer& layer, const Kept& kept, const GradientScratch& scratch,
                  GradientTarget target, const Choice& choice = {}) {
  const float* power = layer.product == Product::kF16 ? scratch.power : nullptr;
  SumsParams s;
  s.h = kept.h;
  s.storage = layer.storage();
  s.h_pitch = kept.pitch;
  s.coef = kept.coef;
  s.scale = kept.scale;
  s.sign = kept.peer != nullptr ? kept.sign : nullptr;
  s.peer = kept.peer;
  s.labels = layer.labels;
  s.power = power;
  s.sums = scratch.column_sums;
  s.operand = layer.classes > 0 ? scratch.operand : nullptr;
  s.images = layer.images;
  s.slice_images = parts(layer.images, sums_slices(layer.images));
  s.variants = static_cast<int>(layer.variants);
  s.units = static_cast<int>(layer.units);
  s.classes = static_cast<int>(layer.classes);
  s.kind = layer.kind.goodness;
  if (layer.classes > 0 || target.bias != nullptr || target.dbias != nullptr) sums(queue, s);

  GradientParams g;
  g.x = layer.x;
  g.x_pitch = layer.x_pitch;
  g.rows = checked_size("rows", layer.images);
  g.power = power;
  if (s.operand != nullptr) {
    g.h = s.operand;
    g.h_pitch = layer.units;
  } else {
    g.h = kept.h;
    g.h_pitch = kept.pitch;
    g.factor = scratch.factor;
    g.mask = layer.kind.goodness == Goodness::kSumAbs;
    if (kept.peer != nullptr) {
      g.peer_factor = scratch.peer_factor;
      g.peer = kept.peer;
    }
  }
  if (kept.peer != nullptr) {
    target.peer = kept.peer;
    target.positives = scratch.positives;
  }
  g.target = target;
  if (scratch.lessons) leave_out(queue, layer, kept, choice, scratch.lessons->p, g);
  gradient_product(queue, layer.product, g, scratch.parts_of_dw);
}

/// Factors and powers for activities whose coefficients are known, then the gradient.
void gradient_of(const Queue& queue, const Layer& layer, const Kept& kept, const GradientScratch& scratch,
                 const GradientTarget& target, const Trained* trained, const Choice& choice = {}) {
  const bool peer = kept.peer != nullptr;
  RowsParams r;
  r.rows = layer.rows();
  r.units = static_cast<int>(layer.units);
  r.kind = layer.kind.goodness;
  r.coef = const_cast<float*>(kept.coef);  // read only: there is no lesson
  set_factors(r, layer, kept.scale, kept.sign, peer, scratch);
  rows(queue, r);
  if (peer) {
    count_positives(queue, kept.sign, layer.rows(), scratch.positives, kept.peer, r.units, scratch.peer_max);
  }
  const FinishParams f = finish_params(layer, scratch, peer, trained);
  if (f.power != nullptr || f.rules != nullptr) finish(queue, f);
  run_gradient(queue, layer, kept, scratch, target, choice);
}

}  // namespace

void gradient(const Queue& queue, const Layer& layer, const Kept& kept, float* dweight, float* dbias, void* memory) {
  Workspace workspace(memory);
  const GradientScratch scratch(workspace, queue, layer, false);
  GradientTarget target = target_of(layer, scratch);
  target.dweight = dweight;
  target.dbias = dbias;
  gradient_of(queue, layer, kept, scratch, target, nullptr);
}

void update(const Queue& queue, const Layer& layer, const Kept& kept, const Trained& trained, double* stats,
            void* memory) {
  const double tolerance = trained.optimiser.row_tolerance;
  Workspace workspace(memory);
  const GradientScratch scratch(workspace, queue, layer, tolerance > 0);
  gradient_of(queue, layer, kept, scratch, target_of(layer, scratch, trained), &trained, {tolerance, nullptr, stats});
}

int64_t gradient_bytes(const Queue& queue, const Layer& layer, Optimiser optimiser) {
  Workspace workspace(nullptr);
  GradientScratch(workspace, queue, layer, is_linear(optimiser));
  return workspace.used();
}

// ---------------------------------------------------------------- the step

namespace {

struct StepScratch {
  ForwardScratch forward;
  GradientScratch gradient;
  StatsScratch stats;
  float *goodness, *scale, *h_norm, *coef;
  float *peer_sums = nullptr, *p = nullptr;

  StepScratch(Workspace& workspace, const Queue& queue, const Layer& layer, bool peer, bool bounded)
      : forward(workspace, layer), gradient(workspace, queue, layer, bounded), stats(workspace, layer.rows()) {
    goodness = workspace.take<float>(layer.rows());
    scale = workspace.take<float>(layer.rows());
    h_norm = workspace.take<float>(layer.rows());
    coef = workspace.take<float>(layer.rows());
    if (peer) {
      peer_sums = workspace.take<float>(sums_slices(layer.rows()) * layer.units);
      p = workspace.take<float>(layer.units);
    }
  }
};

}  // namespace

void step(const Queue& queue, const Step& step, void* memory) {
  const Layer& layer = step.layer;
  const bool peer = step.peer_mean != nullptr;
  Workspace workspace(memory);
  const double tolerance = step.trained.optimiser.row_tolerance;
  const StepScratch scratch(workspace, queue, layer, peer, tolerance > 0);
  Activities wanted;
  wanted.h = step.keep_h;
  wanted.storage = step.keep_storage;
  wanted.pitch = layer.units;
  wanted.goodness = scratch.goodness;
  wanted.scale = scratch.scale;
  wanted.h_norm = step.keep_h_norm != nullptr ? step.keep_h_norm : scratch.h_norm;
  const OwnActivities own(workspace, layer, wanted, true);

  RowsParams r = run_forward(queue, layer, own.out, scratch.forward);
  set_lesson(r, step.lesson, scratch.coef, scratch.stats);
  set_factors(r, layer, scratch.scale, step.lesson.sign, peer, scratch.gradient);
  rows(queue, r);
  own.hand_over(queue, layer, wanted);
  if (peer) {
    run_peer(queue, layer.rows(), layer.units, own.out, step.lesson.sign, step.peer, step.peer_mean, scratch.p,
             scratch.peer_sums, scratch.gradient.positives, scratch.gradient.peer_max);
  }
  FinishParams f = finish_params(layer, scratch.gradient, peer, &step.trained);
  f.partial_stats = scratch.stats.stats;
  f.count = kStatCount;
  f.add = true;
  f.stats = step.stats;
  finish(queue, f);
  const Kept kept = {own.out.h, own.out.pitch, scratch.scale, scratch.coef, step.lesson.sign, scratch.p};
  run_gradient(queue, layer, kept, scratch.gradient, target_of(layer, scratch.gradient, step.trained),
               {tolerance, wanted.h_norm, step.stats});
}

int64_t step_bytes(const Queue& queue, const Layer& given, bool peer, Optimiser optimiser) {
  int64_t most = 0;
  for (const Product product : {Product::kBf16, Product::kF32}) {  // by the size of an element
    Layer layer = given;
    layer.product = product;
    layer.weight_storage = Storage::kFloat32;
    Workspace workspace(nullptr);
    StepScratch(workspace, queue, layer, peer, is_linear(optimiser));
    OwnActivities(workspace, layer, {}, true);
    most = std::max(most, workspace.used());
  }
  return most;
}

// ---------------------------------------------------------------- prediction

namespace {

constexpr int64_t kPredictFloats = 2 << 20;  // activities of one block of images: 8 MiB, which stay in L2

struct PredictScratch {
  int64_t images;  // of one block
  float *norm, *next_norm;
  void *h = nullptr, *next = nullptr;
  std::vector<void*> weights;  // copies in the storage of x; null where the weights are stored so
  void* rest;

  PredictScratch(Workspace& workspace, const Layer& first, const Stack& stack) {
    int64_t widest = 1;
    for (int64_t l = 0; l + 1 < stack.depth; ++l) widest = std::max(widest, stack.units[l]);
    images = std::clamp<int64_t>(kPredictFloats / (widest * first.classes), 1, std::max<int64_t>(1, first.images));
    const int64_t rows = images * first.classes;
    norm = workspace.take<float>(rows);
    next_norm = workspace.take<float>(rows);
    if (stack.depth > 1) {
      h = workspace.take<float>(rows * widest);
      next = workspace.take<float>(rows * widest);
    }
    int64_t most = 0;
    for (int64_t l = 0; l < stack.depth; ++l) {
      Layer layer = layer_of(first, stack, l, images);
      const bool copied = layer.weight_storage != first.storage();
      weights.push_back(copied ? workspace.take<uint16_t>(layer.units * layer.inputs) : nullptr);
      layer.weight_storage = first.storage();
      most = std::max(most, forward_bytes(layer, first.storage()));
    }
    rest = workspace.take<char>(most);
  }

  /// Layer l on a block of images.
  static Layer layer_of(const Layer& first, const Stack& stack, int64_t l, int64_t images) {
    Layer layer = first;
    layer.images = images;
    layer.x_norm = nullptr;
    layer.labels = nullptr;
    layer.variants = first.classes;
    layer.units = stack.units[l];
    layer.weight = stack.weights[l];
    layer.weight_storage = stack.storages[l];
    layer.bias = stack.biases[l];
    if (l > 0) {
      layer.images = images * first.classes;
      layer.classes = 0;
      layer.variants = 1;
      layer.inputs = layer.x_pitch = stack.units[l - 1];
    }
    layer.weight_pitch = layer.inputs;
    return layer;
  }
};

}  // namespace

int64_t predict_bytes(const Layer& first, const Stack& stack) {
  Workspace workspace(nullptr);
  PredictScratch(workspace, first, stack);
  return workspace.used();
}

void predict_goodness(const Queue& queue, const Layer& first, const Stack& stack, float* goodness, void* memory) {
  Workspace workspace(memory);
  PredictScratch scratch(workspace, first, stack);
  std::vector<Layer> layers;
  for (int64_t l = 0; l < stack.depth; ++l) {
    layers.push_back(with_operand(queue, PredictScratch::layer_of(first, stack, l, 0), scratch.weights[l]));
  }
  for (int64_t begin = 0; begin < first.images; begin += scratch.images) {
    const int64_t images = std::min(scratch.images, first.images - begin);
    for (int64_t l = 0; l < stack.depth; ++l) {
      Layer layer = layers[l];
      layer.images = l == 0 ? images : images * first.classes;
      if (l == 0) {
        layer.x = static_cast<const char*>(first.x) + begin * first.x_pitch * storage_bytes(first.storage());
      } else {
        layer.x = scratch.h;
        layer.x_norm = scratch.norm;
      }
      Activities out;
      out.h = l + 1 < stack.depth ? scratch.next : nullptr;
      out.storage = layer.storage();
      out.pitch = layer.units;
      out.goodness = goodness + (l * first.images + begin) * first.classes;
      out.h_norm = scratch.next_norm;
      Workspace rest(scratch.rest);
      rows(queue, run_forward(queue, layer, out, ForwardScratch(rest, layer), true));
      std::swap(scratch.h, scratch.next);
      std::swap(scratch.norm, scratch.next_norm);
    }
  }
}

}  // namespace ffkern::cuda
