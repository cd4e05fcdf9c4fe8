// The operations of a layer on CUDA tensors: checks, the choice of arithmetic, outputs and launches. The twin of
// cpu_ops.cpp; the kernels in csrc/cuda know no torch.
#include <cstdlib>

#include "cuda/layer.h"
#include "cuda_arguments.h"
#include "cuda_network.h"
#include "network.h"
#include "operations.h"

namespace ffkern::binding {
namespace {

using cuda::Product;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// ---------------------------------------------------------------- arithmetic

ScalarType dtype_of(Storage storage) {
  return storage == Storage::kFloat32    ? ScalarType::Float
         : storage == Storage::kBfloat16 ? ScalarType::BFloat16
                                         : ScalarType::Half;
}

/// float32 rows: what $FFKERN_CUDA_FLOAT32 forces, else tf32 where the frontend allows it and the device has it.
Product float32_product(const char* op, cuda::Device device) {
  const char* forced = std::getenv("FFKERN_CUDA_FLOAT32");
  const std::string wanted = forced != nullptr ? forced : "";
  if (wanted == "ffma") return Product::kF32;
  if (wanted == "tf32") return Product::kTf32;
  if (wanted == "tf32x3") return Product::kTf32x3;
  if (!wanted.empty()) refuse(op, "FFKERN_CUDA_FLOAT32 is '", wanted, "'; expected 'ffma', 'tf32' or 'tf32x3'");
  return cuda::device_facts(device).capability >= 80 && frontend::tf32_allowed() ? Product::kTf32 : Product::kF32;
}

Product product_of(const char* op, Storage storage, cuda::Device device) {
  switch (storage) {
    case Storage::kBfloat16:
      return Product::kBf16;
    case Storage::kFloat16:
      return Product::kF16;
    case Storage::kFloat32:
      break;
  }
  return float32_product(op, device);
}

// ---------------------------------------------------------------- arguments

/// The caller's workspace.
void* workspace_of(LaunchScope& scope, const char* op, const Tensor& workspace, int64_t bytes) {
  updated(scope, op, "workspace", workspace, {-1}, Access::kWrite);
  if (workspace.numel() < floats_for(bytes)) {
    refuse(op, "workspace has ", workspace.numel(), " floats; expected at least ", floats_for(bytes),
           " (ffkern.ops.step_workspace, FFLinear.reserve)");
  }
  return aligned(workspace);
}

/// Owns the arguments that a cuda::Layer points into.
struct LayerInputs {
  Matrix x;
  std::optional<Matrix> weight;
  Vector bias, x_norm;
  std::optional<Labels> labels;
  Vector overlay;
  cuda::Layer layer;

  /// A layer of this many units whose weights are not read: of a gradient.
  LayerInputs(LaunchScope& scope, const char* op, const Tensor& x_, int64_t units, LayerKind kind)
      : x(scope, op, "x", x_) {
    layer.product = product_of(op, x.storage, scope.queue().device);
    layer.x = x.data;
    layer.x_pitch = x.pitch;
    layer.weight_storage = x.storage;
    layer.images = x.rows;
    layer.inputs = x.cols;
    layer.units = units;
    layer.kind = kind;
  }

  LayerInputs(LaunchScope& scope, const char* op, const Tensor& x_, const Tensor& weight_, const MaybeTensor& bias_,
              const MaybeTensor& x_norm_, LayerKind kind)
      : LayerInputs(scope, op, x_, weight_.dim() == 2 ? weight_.size(0) : 0, kind) {
    const Matrix& w = weight.emplace(scope, op, "weight", weight_);
    check_weight(op, weight_);
    if (x.cols != w.cols) {
      refuse(op, "x has shape ", shape_text(x_), "; expected [*, ", w.cols, "] to match weight ", shape_text(weight_));
    }
    if (w.storage != x.storage && w.storage != Storage::kFloat32) {
      refuse(op, "weight is ", dtype_text(weight_.scalar_type()), " and x ", dtype_text(x_.scalar_type()),
             "; expected weight in float32, or as x");
    }
    bias = Vector(scope, op, "bias", bias_, w.rows);
    x_norm = Vector(scope, op, "x_norm", x_norm_, x.rows);
    layer.x_norm = x_norm.data;
    layer.weight = w.data;
    layer.weight_storage = w.storage;
    layer.weight_pitch = w.pitch;
    layer.bias = bias.data;
  }
  LayerInputs(const LayerInputs&) = delete;  // layer points into it
  LayerInputs& operator=(const LayerInputs&) = delete;

  void set_labels(LaunchScope& scope, const char* op, const Tensor& labels_, const Tensor& overlay_, int64_t classes) {
    checked_classes(op, classes, layer.inputs);
    check_variants(op, labels_, layer.images);
    labels.emplace(scope, op, "labels", labels_);
    layer.labels = labels->data;
    layer.classes = classes;
    layer.variants = labels_.size(0);
    set_overlay(scope, op, overlay_);
  }

  void set_overlay(LaunchScope& scope, const char* op, const Tensor& overlay_) {
    overlay = Vector(scope, op, "overlay", overlay_, 2);
    layer.overlay = overlay.data;
  }
};

struct NewActivities {
  Tensor h, goodness, scale, h_norm;
  cuda::Activities out;

  NewActivities(LaunchScope& scope, const Tensor& like, int64_t rows, int64_t units, Storage storage)
      : h(output(scope, "h", like, {rows, units}, dtype_of(storage))),
        goodness(output(scope, "goodness", like, {rows}, ScalarType::Float)),
        scale(output(scope, "scale", like, {rows}, ScalarType::Float)),
        h_norm(output(scope, "h_norm", like, {rows}, ScalarType::Float)) {
    out = {h.mutable_data_ptr(),
           storage,
           units,
           goodness.mutable_data_ptr<float>(),
           scale.mutable_data_ptr<float>(),
           h_norm.mutable_data_ptr<float>()};
  }
  Four results() const { return {h, goodness, scale, h_norm}; }
};

/// The caller's outputs. h may have any storage that the operation can store, and a row pitch.
cuda::Activities written(LaunchScope& scope, const char* op, int64_t rows, int64_t units, const Tensor& h,
                         const Tensor& goodness, const Tensor& scale, const Tensor& h_norm) {
  cuda::Activities out;
  out.storage = storage_of(op, "h", h);
  check_shape(op, "h", h, {rows, units});
  if (!rows_are_contiguous(h) || (rows > 1 && h.stride(0) < units)) {
    refuse(op,
           "h has strides that the kernel cannot write in place; pass a tensor with contiguous rows that do not "
           "overlap");
  }
  scope.use("h", h, Access::kWrite);
  out.h = h.mutable_data_ptr();
  out.pitch = rows > 1 ? h.stride(0) : units;
  out.goodness = updated(scope, op, "goodness", goodness, {rows}, Access::kWrite);
  out.scale = updated(scope, op, "scale", scale, {rows}, Access::kWrite);
  out.h_norm = updated(scope, op, "h_norm", h_norm, {rows}, Access::kWrite);
  return out;
}

void check_h_storage(const char* op, const LayerInputs& in, const Tensor& h) {
  const Storage storage = storage_of(op, "h", h);
  if (storage != Storage::kFloat32 && storage != in.x.storage) {
    refuse(op, "h is ", dtype_text(h.scalar_type()), "; expected float32, or ", dtype_text(dtype_of(in.x.storage)),
           " as x");
  }
}

double* updated_stats(LaunchScope& scope, const char* op, const Tensor& t, Access access = Access::kUpdate) {
  return static_cast<double*>(updated(scope, op, "stats", t, ScalarType::Double, {kStatCount}, access));
}

// ---------------------------------------------------------------- forward

/// The weights as products read them best: their 16-bit copy, if the caller keeps one.
const Tensor& operand(const Tensor& weight, const MaybeTensor& weight_low) {
  return weight_low.has_value() ? *weight_low : weight;
}

void run_forward(LaunchScope& scope, const LayerInputs& in, const cuda::Activities& out, const Tensor& like) {
  if (in.layer.images == 0) return;
  const Tensor memory = scratch(scope, like, cuda::forward_bytes(in.layer, out.storage));
  cuda::forward(scope.queue(), in.layer, out, aligned(memory));
}

Four layer_forward(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& x_norm,
                   std::string norm, double eps, std::string goodness, const MaybeTensor& weight_low) {
  const char* op = "layer_forward";
  LaunchScope scope(op, "x", x);
  const LayerInputs in(scope, op, x, operand(weight, weight_low), bias, x_norm, parse_kind(op, norm, eps, goodness));
  const NewActivities result(scope, x, in.layer.images, in.layer.units, in.x.storage);
  run_forward(scope, in, result.out, x);
  return result.results();
}

void layer_forward_(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& x_norm,
                    const Tensor& h, const Tensor& goodness, const Tensor& scale, const Tensor& h_norm,
                    std::string norm, double eps, std::string kind, const MaybeTensor& weight_low) {
  const char* op = "layer_forward_";
  LaunchScope scope(op, "x", x);
  const LayerInputs in(scope, op, x, operand(weight, weight_low), bias, x_norm, parse_kind(op, norm, eps, kind));
  check_h_storage(op, in, h);
  check_apart(op, "h", h, "x", x);
  check_apart(op, "h", h, "weight", weight);
  run_forward(scope, in, written(scope, op, in.layer.images, in.layer.units, h, goodness, scale, h_norm), x);
}

std::tuple<Tensor, Tensor> run_base(const char* op, const Tensor& x, const Tensor& weight, int64_t classes,
                                    const MaybeTensor& weight_low, const MaybeTensor& given,
                                    const MaybeTensor& given_norm) {
  LaunchScope scope(op, "x", x);
  LayerInputs in(scope, op, x, operand(weight, weight_low), std::nullopt, std::nullopt, {});
  in.layer.classes = checked_classes(op, classes, in.layer.inputs);
  const Tensor base = output(scope, "base", given, x, {in.layer.images, in.layer.units}, ScalarType::Float);
  const Tensor norm = output(scope, "rest_norm", given_norm, x, {in.layer.images}, ScalarType::Float);
  const Tensor memory = scratch(scope, x, cuda::forward_bytes(in.layer, in.x.storage));
  cuda::base_product(scope.queue(), in.layer, base.mutable_data_ptr<float>(), norm.mutable_data_ptr<float>(),
                     aligned(memory));
  return {base, norm};
}

std::tuple<Tensor, Tensor> shared_base(const Tensor& x, const Tensor& weight, int64_t classes,
                                       const MaybeTensor& weight_low) {
  return run_base("shared_base", x, weight, classes, weight_low, std::nullopt, std::nullopt);
}

/// The layer of a shared_variants call: the base product stands in for x.
struct VariantInputs {
  Matrix base, weight;
  Vector bias, rest_norm, overlay;
  Labels labels;
  cuda::Layer layer;

  VariantInputs(LaunchScope& scope, const char* op, const Tensor& base_, const Tensor& rest_norm_,
                const Tensor& weight_, const MaybeTensor& bias_, const Tensor& labels_, const Tensor& overlay_,
                int64_t classes, LayerKind kind)
      : base(scope, op, "base", base_),
        weight(scope, op, "weight", weight_),
        bias(scope, op, "bias", bias_, weight.rows),
        rest_norm(scope, op, "rest_norm", rest_norm_, base.rows),
        overlay(scope, op, "overlay", overlay_, 2),
        labels(scope, op, "labels", labels_) {
    checked_classes(op, classes, weight.cols);
    check_shape(op, "base", base_, {-1, weight.rows});
    check_variants(op, labels_, base.rows);
    layer.x_norm = rest_norm.data;
    layer.weight = weight.data;
    layer.weight_storage = weight.storage;
    layer.weight_pitch = weight.pitch;
    layer.bias = bias.data;
    layer.images = base.rows;
    layer.inputs = weight.cols;
    layer.units = weight.rows;
    layer.classes = classes;
    layer.variants = labels_.size(0);
    layer.labels = labels.data;
    layer.overlay = overlay.data;
    layer.kind = kind;
  }
  VariantInputs(const VariantInputs&) = delete;
  VariantInputs& operator=(const VariantInputs&) = delete;

  void run(LaunchScope& scope, const cuda::Activities& out, const Tensor& like) const {
    const Tensor memory = scratch(scope, like, cuda::variants_bytes(layer));
    cuda::variants(scope.queue(), layer, base.data, base.storage, base.pitch, out, aligned(memory));
  }
};

Four shared_variants(const Tensor& base, const Tensor& rest_norm, const Tensor& weight, const MaybeTensor& bias,
                     const Tensor& labels, const Tensor& overlay, int64_t classes, std::string norm, double eps,
                     std::string goodness) {
  const char* op = "shared_variants";
  LaunchScope scope(op, "base", base);
  const VariantInputs in(scope, op, base, rest_norm, weight, bias, labels, overlay, classes,
                         parse_kind(op, norm, eps, goodness));
  const NewActivities result(scope, base, in.layer.rows(), in.layer.units, in.base.storage);
  in.run(scope, result.out, base);
  return result.results();
}

void shared_variants_(const Tensor& base, const Tensor& rest_norm, const Tensor& weight, const MaybeTensor& bias,
                      const Tensor& labels, const Tensor& overlay, const Tensor& h, const Tensor& goodness,
                      const Tensor& scale, const Tensor& h_norm, int64_t classes, std::string norm, double eps,
                      std::string kind) {
  const char* op = "shared_variants_";
  LaunchScope scope(op, "base", base);
  const VariantInputs in(scope, op, base, rest_norm, weight, bias, labels, overlay, classes,
                         parse_kind(op, norm, eps, kind));
  in.run(scope, written(scope, op, in.layer.rows(), in.layer.units, h, goodness, scale, h_norm), base);
}

// ---------------------------------------------------------------- loss and peer term

cuda::Lesson lesson_of(const Vector& sign, const Vector& row_weight, const char* op, double threshold,
                       double temperature) {
  return {sign.data, row_weight.data, parse_loss(op, threshold, temperature)};
}

/// Into new tensors; or coef into `given`, and the statistics added to `sums`.
std::tuple<Tensor, Tensor, Tensor> run_loss(const char* op, const Tensor& goodness, const Tensor& sign,
                                            const MaybeTensor& row_weight, double threshold, double temperature,
                                            const MaybeTensor& given, const MaybeTensor& sums) {
  LaunchScope scope(op, "goodness", goodness);
  if (goodness.dim() != 1) refuse(op, "goodness has shape ", shape_text(goodness), "; expected [rows]");
  const int64_t rows = goodness.size(0);
  const Vector g(scope, op, "goodness", goodness, rows), s(scope, op, "sign", sign, rows);
  const Vector w(scope, op, "row_weight", row_weight, rows);
  const Tensor loss = output(scope, "loss", goodness, {}, ScalarType::Float);
  const Tensor coef = output(scope, "coef", given, goodness, {rows}, ScalarType::Float);
  const Tensor stats = sums.has_value() ? *sums : output(scope, "stats", goodness, {kStatCount}, ScalarType::Double);
  if (sums.has_value()) updated_stats(scope, op, stats);
  const Tensor memory = scratch(scope, goodness, cuda::local_loss_bytes(rows));
  cuda::local_loss(scope.queue(), rows, g.data, lesson_of(s, w, op, threshold, temperature),
                   loss.mutable_data_ptr<float>(), coef.mutable_data_ptr<float>(), stats.mutable_data_ptr<double>(),
                   sums.has_value(), aligned(memory));
  return {loss, coef, stats};
}

std::tuple<Tensor, Tensor, Tensor> local_loss(const Tensor& goodness, const Tensor& sign, const MaybeTensor& row_weight,
                                              double threshold, double temperature) {
  return run_loss("local_loss", goodness, sign, row_weight, threshold, temperature, std::nullopt, std::nullopt);
}

Tensor peer_update_(const Tensor& h, const Tensor& sign, const Tensor& mean, double strength, double momentum) {
  const char* op = "peer_update_";
  LaunchScope scope(op, "h", h);
  const Matrix activities(scope, op, "h", h);
  const Vector s(scope, op, "sign", sign, activities.rows);
  float* m = updated(scope, op, "mean", mean, {activities.cols});
  const Tensor p = output(scope, "p", h, {activities.cols}, ScalarType::Float);
  const Tensor memory = scratch(scope, h, cuda::peer_bytes(activities.rows, activities.cols));
  cuda::Activities kept;
  kept.h = const_cast<void*>(activities.data);  // read only
  kept.storage = activities.storage;
  kept.pitch = activities.pitch;
  cuda::peer_update(scope.queue(), activities.rows, activities.cols, kept, s.data, peer_params(op, strength, momentum),
                    m, p.mutable_data_ptr<float>(), aligned(memory));
  return p;
}

// ---------------------------------------------------------------- gradient and update

/// Activities kept from a forward call, read back for a gradient: h stored as x.
struct KeptActivities {
  Matrix h;
  Vector scale, coef, sign, peer;
  cuda::Kept kept;

  KeptActivities(LaunchScope& scope, const char* op, const cuda::Layer& layer, const Tensor& x, const Tensor& h_,
                 const Tensor& scale_, const Tensor& coef_, const MaybeTensor& sign_, const MaybeTensor& peer_)
      : h(scope, op, "h", h_.scalar_type() == x.scalar_type() ? h_ : frontend::to(h_, x.scalar_type())),
        scale(scope, op, "scale", scale_, layer.rows()),
        coef(scope, op, "coef", coef_, layer.rows()),
        sign(scope, op, "sign", sign_, layer.rows()),
        peer(scope, op, "peer", peer_, layer.units) {
    storage_of(op, "h", h_);
    check_shape(op, "h", h_, {layer.rows(), layer.units});
    if (peer_.has_value() && !sign_.has_value()) refuse(op, "peer is given but sign is not; expected both");
    kept = {h.data, h.pitch, scale.data, coef.data, sign.data, peer.data};
  }
};

std::tuple<Tensor, Tensor> run_gradient(LaunchScope& scope, const char* op, const LayerInputs& in, const Tensor& x,
                                        const Tensor& h, const Tensor& scale, const Tensor& coef,
                                        const MaybeTensor& sign, const MaybeTensor& peer) {
  const KeptActivities kept(scope, op, in.layer, x, h, scale, coef, sign, peer);
  const Tensor dweight = output(scope, "dweight", h, {in.layer.units, in.layer.inputs}, ScalarType::Float);
  const Tensor dbias = output(scope, "dbias", h, {in.layer.units}, ScalarType::Float);
  const Tensor memory = scratch(scope, h, cuda::gradient_bytes(scope.queue(), in.layer, Optimiser::kAdam));
  cuda::gradient(scope.queue(), in.layer, kept.kept, dweight.mutable_data_ptr<float>(), dbias.mutable_data_ptr<float>(),
                 aligned(memory));
  return {dweight, dbias};
}

std::tuple<Tensor, Tensor> layer_grad(const Tensor& x, const Tensor& h, const Tensor& scale, const Tensor& coef,
                                      const MaybeTensor& sign, const MaybeTensor& peer, std::string goodness) {
  const char* op = "layer_grad";
  LaunchScope scope(op, "x", x);
  const LayerInputs in(scope, op, x, gradient_units(op, x, h), gradient_kind(op, goodness));
  return run_gradient(scope, op, in, x, h, scale, coef, sign, peer);
}

std::tuple<Tensor, Tensor> shared_grad(const Tensor& x, const Tensor& h, const Tensor& scale, const Tensor& coef,
                                       const Tensor& labels, const Tensor& overlay, int64_t classes,
                                       const MaybeTensor& sign, const MaybeTensor& peer, std::string goodness) {
  const char* op = "shared_grad";
  LaunchScope scope(op, "x", x);
  LayerInputs in(scope, op, x, gradient_units(op, x, h), gradient_kind(op, goodness));
  in.set_labels(scope, op, labels, overlay, classes);
  return run_gradient(scope, op, in, x, h, scale, coef, sign, peer);
}

void check_low(const char* op, const char* name, Storage rows) {
  if (rows != Storage::kFloat32) return;
  refuse(op, name, " is given but x is float32; expected None, or x in bfloat16 or float16");
}

/// The weights of a layer that learns: what its products read, and what the update writes.
struct Learning {
  LayerInputs in;
  Update change;
  cuda::Trained trained;

  Learning(LaunchScope& scope, const char* op, const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
           const MaybeTensor& x_norm, const Tensor& weight_state, const Tensor& bias_state, const Tensor& step,
           const Tensor& lr, const MaybeTensor& weight_low, LayerKind kind, const std::string& optimiser,
           const std::vector<double>& hyper)
      : in(scope, op, x, weight, bias, x_norm, kind),
        change(scope, op, in.layer.units, in.layer.inputs, weight, bias, weight_state, bias_state, step, lr, optimiser,
               hyper) {
    trained = {change.args, change.weight, change.bias, change.weight_state, change.bias_state, nullptr};
    if (!weight_low.has_value()) return;
    check_low(op, "weight_low", in.x.storage);
    trained.low = updated(scope, op, "weight_low", *weight_low, x.scalar_type(), {in.layer.units, in.layer.inputs});
    in.layer.weight = trained.low;
    in.layer.weight_storage = in.x.storage;
    in.layer.weight_pitch = in.layer.inputs;
  }
};

void run_update(LaunchScope& scope, const char* op, const Learning& layer, const Tensor& x, const Tensor& h,
                const Tensor& scale, const Tensor& coef, const MaybeTensor& sign, const MaybeTensor& peer,
                const Tensor& workspace, const MaybeTensor& stats) {
  const KeptActivities kept(scope, op, layer.in.layer, x, h, scale, coef, sign, peer);
  check_counts(op, stats, sign);
  double* counts = stats.has_value() ? updated_stats(scope, op, *stats) : nullptr;
  void* memory = workspace_of(scope, op, workspace,
                              cuda::gradient_bytes(scope.queue(), layer.in.layer, layer.trained.optimiser.kind));
  cuda::update(scope.queue(), layer.in.layer, kept.kept, layer.trained, counts, memory);
}

void layer_update_(const Tensor& x, const Tensor& h, const Tensor& scale, const Tensor& coef, const MaybeTensor& sign,
                   const MaybeTensor& peer, const Tensor& weight, const MaybeTensor& bias, const Tensor& weight_state,
                   const Tensor& bias_state, const Tensor& step, const Tensor& lr, const MaybeTensor& weight_low,
                   const Tensor& workspace, const MaybeTensor& stats, std::string goodness, std::string optimiser,
                   std::vector<double> hyper) {
  const char* op = "layer_update_";
  LaunchScope scope(op, "x", x);
  const Learning layer(scope, op, x, weight, bias, std::nullopt, weight_state, bias_state, step, lr, weight_low,
                       gradient_kind(op, goodness), optimiser, hyper);
  run_update(scope, op, layer, x, h, scale, coef, sign, peer, workspace, stats);
}

void shared_update_(const Tensor& x, const Tensor& h, const Tensor& scale, const Tensor& coef, const Tensor& labels,
                    const Tensor& overlay, int64_t classes, const MaybeTensor& sign, const MaybeTensor& peer,
                    const Tensor& weight, const MaybeTensor& bias, const Tensor& weight_state, const Tensor& bias_state,
                    const Tensor& step, const Tensor& lr, const MaybeTensor& weight_low, const Tensor& workspace,
                    const MaybeTensor& stats, std::string goodness, std::string optimiser, std::vector<double> hyper) {
  const char* op = "shared_update_";
  LaunchScope scope(op, "x", x);
  Learning layer(scope, op, x, weight, bias, std::nullopt, weight_state, bias_state, step, lr, weight_low,
                 gradient_kind(op, goodness), optimiser, hyper);
  layer.in.set_labels(scope, op, labels, overlay, classes);
  run_update(scope, op, layer, x, h, scale, coef, sign, peer, workspace, stats);
}

// ---------------------------------------------------------------- the step

/// The part of layer_step_ and shared_step_ that is the same.
struct StepArguments {
  const Tensor &sign, &workspace, &stats;
  const MaybeTensor &row_weight, &peer_mean, &h, &h_norm;
  double threshold, temperature, peer_strength, peer_momentum;
};

void run_step(LaunchScope& scope, const char* op, const Learning& learning, const StepArguments& a) {
  const cuda::Layer& layer = learning.in.layer;
  check_rows(op, "x", layer.images);
  const Vector sign(scope, op, "sign", a.sign, layer.rows());
  const Vector row_weight(scope, op, "row_weight", a.row_weight, layer.rows());
  cuda::Step step;
  step.layer = layer;
  step.trained = learning.trained;
  step.lesson = lesson_of(sign, row_weight, op, a.threshold, a.temperature);
  step.peer = peer_params(op, a.peer_strength, a.peer_momentum);
  step.peer_mean = updated(scope, op, "peer_mean", a.peer_mean, {layer.units});
  check_peer_mean(op, a.peer_strength, a.peer_mean);
  if (a.h.has_value()) {
    check_h_storage(op, learning.in, *a.h);
    check_apart(op, "h", *a.h, "x", learning.in.x.hold);
    step.keep_storage = storage_of(op, "h", *a.h);
    step.keep_h =
        updated(scope, op, "h", *a.h, dtype_of(step.keep_storage), {layer.rows(), layer.units}, Access::kWrite);
  }
  step.keep_h_norm = updated(scope, op, "h_norm", a.h_norm, {layer.rows()}, Access::kWrite);
  step.stats = updated_stats(scope, op, a.stats);
  void* memory =
      workspace_of(scope, op, a.workspace,
                   cuda::step_bytes(scope.queue(), layer, step.peer_mean != nullptr, learning.trained.optimiser.kind));
  cuda::step(scope.queue(), step, memory);
}

void layer_step_(const Tensor& x, const MaybeTensor& x_norm, const Tensor& weight, const MaybeTensor& bias,
                 const Tensor& weight_state, const Tensor& bias_state, const Tensor& step, const Tensor& lr,
                 const MaybeTensor& weight_low, const Tensor& sign, const MaybeTensor& row_weight,
                 const MaybeTensor& peer_mean, const Tensor& workspace, const Tensor& stats, const MaybeTensor& h,
                 const MaybeTensor& h_norm, std::string norm, double eps, std::string goodness, double threshold,
                 double temperature, double peer_strength, double peer_momentum, std::string optimiser,
                 std::vector<double> hyper) {
  const char* op = "layer_step_";
  LaunchScope scope(op, "x", x);
  const Learning layer(scope, op, x, weight, bias, x_norm, weight_state, bias_state, step, lr, weight_low,
                       parse_kind(op, norm, eps, goodness), optimiser, hyper);
  run_step(
      scope, op, layer,
      {sign, workspace, stats, row_weight, peer_mean, h, h_norm, threshold, temperature, peer_strength, peer_momentum});
}

void shared_step_(const Tensor& x, const Tensor& labels, const Tensor& overlay, int64_t classes, const Tensor& weight,
                  const MaybeTensor& bias, const Tensor& weight_state, const Tensor& bias_state, const Tensor& step,
                  const Tensor& lr, const MaybeTensor& weight_low, const Tensor& sign, const MaybeTensor& row_weight,
                  const MaybeTensor& peer_mean, const Tensor& workspace, const Tensor& stats, const MaybeTensor& h,
                  const MaybeTensor& h_norm, std::string norm, double eps, std::string goodness, double threshold,
                  double temperature, double peer_strength, double peer_momentum, std::string optimiser,
                  std::vector<double> hyper) {
  const char* op = "shared_step_";
  LaunchScope scope(op, "x", x);
  Learning layer(scope, op, x, weight, bias, std::nullopt, weight_state, bias_state, step, lr, weight_low,
                 parse_kind(op, norm, eps, goodness), optimiser, hyper);
  layer.in.set_labels(scope, op, labels, overlay, classes);
  run_step(
      scope, op, layer,
      {sign, workspace, stats, row_weight, peer_mean, h, h_norm, threshold, temperature, peer_strength, peer_momentum});
}

int64_t step_workspace(const Tensor& weight, int64_t images, int64_t classes, int64_t variants, bool peer,
                       std::string optimiser, bool /*low*/) {
  const char* op = "step_workspace";
  const LaunchScope scope(op, "weight", weight);
  return floats_for(cuda::step_bytes(scope.queue(), sizes<cuda::Layer>(op, weight, images, classes, variants), peer,
                                     parse_optimiser(op, optimiser)));
}

int64_t update_workspace(const Tensor& weight, int64_t images, int64_t classes, int64_t variants, std::string optimiser,
                         bool /*low*/) {
  const char* op = "update_workspace";
  const LaunchScope scope(op, "weight", weight);
  return floats_for(cuda::gradient_bytes(scope.queue(), sizes<cuda::Layer>(op, weight, images, classes, variants),
                                         parse_optimiser(op, optimiser)));
}

// ---------------------------------------------------------------- prediction

Tensor predict_goodness(const Tensor& x, std::vector<Tensor> weights, std::vector<MaybeTensor> biases, int64_t classes,
                        const Tensor& overlay, std::string norm, double eps, std::string goodness,
                        const std::optional<std::vector<Tensor>>& weights_low) {
  const char* op = "predict_goodness";
  LaunchScope scope(op, "x", x);
  check_stack(op, weights, biases);
  if (weights_low.has_value() && !weights_low->empty()) {
    if (weights_low->size() != weights.size()) {
      refuse(op, "weights_low has ", weights_low->size(), " tensors; expected none, or one for each of weights");
    }
    weights = *weights_low;
    check_stack(op, weights, biases);
  }
  LayerInputs first(scope, op, x, weights[0], biases[0], std::nullopt, parse_kind(op, norm, eps, goodness));
  first.layer.classes = checked_classes(op, classes, first.layer.inputs);
  first.layer.variants = classes;
  first.set_overlay(scope, op, overlay);

  std::vector<Matrix> matrices;
  std::vector<Vector> vectors;
  std::vector<const void*> weight_data;
  std::vector<const float*> bias_data;
  std::vector<Storage> storages;
  std::vector<int64_t> units;
  for (size_t l = 0; l < weights.size(); ++l) {
    const Matrix& w = matrices.emplace_back(scope, op, "weights", frontend::contiguous(weights[l]));
    if (w.storage != first.x.storage && w.storage != Storage::kFloat32) {
      refuse(op, "weights[", l, "] is ", dtype_text(weights[l].scalar_type()), " and x ", dtype_text(x.scalar_type()),
             "; expected weights in float32, or as x");
    }
    units.push_back(w.rows);
    storages.push_back(w.storage);
    weight_data.push_back(w.data);
    bias_data.push_back(vectors.emplace_back(scope, op, "biases", biases[l], w.rows).data);
  }
  const cuda::Stack stack{static_cast<int64_t>(units.size()), weight_data.data(), storages.data(), bias_data.data(),
                          units.data()};
  const Tensor out = output(scope, "goodness", x, {stack.depth, first.layer.images, classes}, ScalarType::Float);
  if (first.layer.images == 0) return out;
  const Tensor memory = scratch(scope, x, cuda::predict_bytes(first.layer, stack));
  cuda::predict_goodness(scope.queue(), first.layer, stack, out.mutable_data_ptr<float>(), aligned(memory));
  return out;
}

// ---------------------------------------------------------------- the whole network

struct OnCuda : OnCudaElsewhere {
  static constexpr auto& shared_base = run_base;
  static constexpr auto& layer_forward = layer_forward_;
  static constexpr auto& shared_variants = shared_variants_;
  static constexpr auto& layer_step = layer_step_;
  static constexpr auto& shared_step = shared_step_;
  static constexpr auto& layer_update = layer_update_;
  static constexpr auto& shared_update = shared_update_;
  static constexpr auto& add_loss = run_loss;
  static constexpr auto& peer_update = peer_update_;
  static constexpr auto& step_workspace = binding::step_workspace;
  static constexpr auto& update_workspace = binding::update_workspace;

  /// Values of labels stay on the device.
  static void check_labels(const char*, const Tensor&, int64_t, int64_t) {}

  static void check_low(const char* op, const char* name, const Tensor& low, ScalarType rows, int64_t units,
                        int64_t inputs) {
    if (rows == ScalarType::Float) binding::check_low(op, name, Storage::kFloat32);
    check_dtype(op, name, low, rows);
    check_shape(op, name, low, {units, inputs});
    check_in_place(op, name, low);
  }
};

constexpr auto& network_step_ = binding::network_step<OnCuda>;
constexpr auto& network_workspace = binding::network_memory<OnCuda>;

}  // namespace

void implement_cuda_layer(Library& library) {
  FFKERN_IMPLEMENT(library, layer_forward);
  FFKERN_IMPLEMENT(library, layer_forward_);
  FFKERN_IMPLEMENT(library, shared_base);
  FFKERN_IMPLEMENT(library, shared_variants);
  FFKERN_IMPLEMENT(library, shared_variants_);
  FFKERN_IMPLEMENT(library, local_loss);
  FFKERN_IMPLEMENT(library, peer_update_);
  FFKERN_IMPLEMENT(library, layer_grad);
  FFKERN_IMPLEMENT(library, shared_grad);
  FFKERN_IMPLEMENT(library, layer_update_);
  FFKERN_IMPLEMENT(library, shared_update_);
  FFKERN_IMPLEMENT(library, layer_step_);
  FFKERN_IMPLEMENT(library, shared_step_);
  FFKERN_IMPLEMENT(library, step_workspace);
  FFKERN_IMPLEMENT(library, update_workspace);
  FFKERN_IMPLEMENT(library, predict_goodness);
  FFKERN_IMPLEMENT(library, network_step_);
  FFKERN_IMPLEMENT(library, network_workspace);
}

}  // namespace ffkern::binding
