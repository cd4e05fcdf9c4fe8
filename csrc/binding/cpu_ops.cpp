// The operations on the CPU: checks, dtype conversion, outputs and scratch, and nothing else. Schemas live in
// ffkern/ops.py; the kernels in csrc/cpu know neither frontend nor tensors.
#include <algorithm>
#include <tuple>

#include "checks.h"
#include "cpu/kernels.h"
#include "network.h"
#include "operations.h"

namespace ffkern::binding {
namespace {

namespace cpu = ffkern::cpu;

// ---- tensors

Tensor as_float(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float ? t : frontend::to(t, ScalarType::Float);
}

Tensor float_result(const char* name, const Tensor& like, std::initializer_list<int64_t> shape) {
  return frontend::result(name, like, shape, ScalarType::Float);
}

float* scratch_of(Tensor& holder, const Tensor& like, int64_t floats) {
  holder = frontend::scratch(like, {floats > 0 ? floats : 1}, ScalarType::Float);
  return holder.mutable_data_ptr<float>();
}

void check_storage(const char* op, const char* name, const Tensor& t) {
  if (!t.is_cpu()) refuse(op, name, " is on another device; expected all tensors on the CPU, as the first one is");
  check_float(op, name, t);
}

void check_matrix(const char* op, const char* name, const Tensor& t) {
  check_storage(op, name, t);
  if (t.dim() != 2) refuse(op, name, " has shape ", shape_text(t), "; expected a matrix [rows, columns]");
}

/// Row pitch of a matrix whose rows are contiguous; any other becomes a contiguous copy first.
int64_t contiguous_rows(Tensor& hold) {
  const int64_t rows = hold.size(0), cols = hold.size(1);
  const bool in_place = (hold.stride(1) == 1 || cols == 1) && (rows <= 1 || hold.stride(0) >= cols);
  if (!in_place) hold = frontend::contiguous(hold);
  return rows <= 1 || !in_place ? (cols > 0 ? cols : 1) : hold.stride(0);
}

/// A readable float32 matrix: the tensor itself when its rows are contiguous, else a copy held here.
struct Matrix {
  Tensor hold;
  const float* data;
  int64_t rows, cols, pitch;

  Matrix(const char* op, const char* name, const Tensor& t) : hold(t) {
    check_matrix(op, name, t);
    rows = t.size(0);
    cols = t.size(1);
    hold = as_float(t);
    pitch = contiguous_rows(hold);
    data = hold.const_data_ptr<float>();
  }

  /// For kernels that take the matrix as one block without a pitch.
  void make_dense() {
    if (pitch == cols) return;
    hold = frontend::contiguous(hold);
    data = hold.const_data_ptr<float>();
    pitch = cols;
  }
};

/// Readable rows: bfloat16 ones as they are, the rest as float32.
struct Rows {
  Tensor hold;
  const float* data = nullptr;
  const uint16_t* low = nullptr;  // instead of data
  int64_t rows, cols, pitch;

  Rows(const char* op, const char* name, const Tensor& t) : hold(t) {
    check_matrix(op, name, t);
    rows = t.size(0);
    cols = t.size(1);
    const bool is_low = t.scalar_type() == ScalarType::BFloat16;
    if (!is_low) hold = as_float(t);
    pitch = contiguous_rows(hold);
    if (is_low) {
      static constexpr uint16_t kNone = 0;  // no rows may have no memory, and null says that the rows are not bfloat16
      low = rows * cols > 0 ? static_cast<const uint16_t*>(hold.const_data_ptr()) : &kNone;
    } else {
      data = hold.const_data_ptr<float>();
    }
  }
};

/// A readable float32 vector of known length, or null.
struct Vector {
  MaybeTensor hold;
  const float* data = nullptr;

  Vector() = default;
  Vector(const char* op, const char* name, const Tensor& t, int64_t length) {
    check_storage(op, name, t);
    check_shape(op, name, t, {length});
    hold = frontend::contiguous(as_float(t));
    data = hold->const_data_ptr<float>();
  }
  Vector(const char* op, const char* name, const MaybeTensor& t, int64_t length) {
    if (t.has_value()) *this = Vector(op, name, *t, length);
  }
};

/// A tensor written in place: no copy may stand in for it, so it has to be float32 and contiguous.
float* writable(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
  if (!t.is_cpu()) refuse(op, name, " is on another device; expected the CPU, as x is");
  if (t.scalar_type() != ScalarType::Float) {
    refuse(op, name, " is ", dtype_text(t.scalar_type()),
           "; it is updated in place and has to be float32 (keep float32 master weights, and cast x instead)");
  }
  check_shape(op, name, t, shape);
  check_in_place(op, name, t);
  return static_cast<float*>(t.mutable_data_ptr());
}

float* writable(const char* op, const char* name, const MaybeTensor& t, std::initializer_list<int64_t> shape) {
  return t.has_value() ? writable(op, name, *t, shape) : nullptr;
}

/// What goes with rows of bfloat16 and is written in place.
uint16_t* writable_low(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
  if (!t.is_cpu()) refuse(op, name, " is on another device; expected the CPU, as x is");
  if (t.scalar_type() != ScalarType::BFloat16) {
    refuse(op, name, " is ", dtype_text(t.scalar_type()), "; expected bfloat16, as rows of bfloat16 ask for");
  }
  check_shape(op, name, t, shape);
  check_in_place(op, name, t);
  return static_cast<uint16_t*>(t.mutable_data_ptr());
}

/// pack_weight_() of weights [units, inputs].
uint32_t* packed_weight(const char* op, const char* name, const Tensor& t, int64_t units, int64_t inputs) {
  uint16_t* p = writable_low(op, name, t, {(units + 15) / 16, (inputs + 1) / 2, 16, 2});
  return reinterpret_cast<uint32_t*>(p);
}

double* writable_stats(const char* op, const Tensor& t, int64_t count) {
  if (!t.is_cpu()) refuse(op, "stats is on another device; expected the CPU, as x is");
  check_dtype(op, "stats", t, ScalarType::Double);
  check_shape(op, "stats", t, {count});
  check_in_place(op, "stats", t);
  return static_cast<double*>(t.mutable_data_ptr());
}

/// int64 labels in [lowest, classes), contiguous; lowest is -1 where the neutral label is allowed.
struct Labels {
  Tensor hold;
  const int64_t* data;
  int64_t count;

  Labels(const char* op, const char* name, const Tensor& t, int64_t classes, int64_t lowest) : hold(t) {
    if (!t.is_cpu()) refuse(op, name, " is on another device; expected the CPU");
    check_dtype(op, name, t, ScalarType::Long);
    hold = frontend::contiguous(t);
    data = hold.const_data_ptr<int64_t>();
    count = hold.numel();
    for (int64_t i = 0; i < count; ++i) {
      if (data[i] < lowest || data[i] >= classes) {
        refuse(op, name, " holds ", data[i], "; expected ", lowest < 0 ? "-1 (neutral) or " : "", "0 to ", classes - 1);
      }
    }
  }
};

/// A 0-dim tensor of one dtype on the CPU.
template <class T>
T* scalar(const char* op, const char* name, const Tensor& t, ScalarType type) {
  if (!t.is_cpu()) refuse(op, name, " is on another device; expected the CPU, as x is");
  check_dtype(op, name, t, type);
  if (t.numel() != 1) refuse(op, name, " has shape ", shape_text(t), "; expected a 0-dim tensor");
  return static_cast<T*>(t.mutable_data_ptr());
}

// ---- a layer and what trains it

/// Owns what a cpu::Layer points into.
struct LayerInputs {
  Rows x;
  std::optional<Matrix> weight;
  Vector bias, x_norm;
  MaybeTensor label_hold, low_hold;
  cpu::Layer layer;

  /// A layer of this many units whose weights are not read: of a gradient.
  LayerInputs(const char* op, const Tensor& x_, int64_t units, LayerKind kind) : x(op, "x", x_) {
    layer.x = x.data;
    layer.x_low = x.low;
    layer.ldx = x.pitch;
    layer.images = x.rows;
    layer.inputs = x.cols;
    layer.units = units;
    layer.kind = kind;
  }

  LayerInputs(const char* op, const Tensor& x_, const Tensor& weight_, const MaybeTensor& bias_,
              const MaybeTensor& x_norm_, LayerKind kind)
      : LayerInputs(op, x_, weight_.dim() == 2 ? weight_.size(0) : 0, kind) {
    Matrix& w = weight.emplace(op, "weight", weight_);
    check_weight(op, weight_);
    if (x.cols != w.cols) {
      refuse(op, "x has shape ", shape_text(x_), "; expected [*, ", w.cols, "] to match weight ", shape_text(weight_));
    }
    w.make_dense();
    bias = Vector(op, "bias", bias_, w.rows);
    x_norm = Vector(op, "x_norm", x_norm_, x.rows);
    layer.x_norm = x_norm.data;
    layer.weight = w.data;
    layer.bias = bias.data;
  }

  void check_low(const char* op, bool given) const {
    if (given && layer.x_low == nullptr) refuse(op, "weight_low is given; expected none, as x is not bfloat16");
  }

  /// What the product of rows of bfloat16 reads: the packed weights that the caller keeps, or that are made here.
  void set_low(const char* op, const MaybeTensor& weight_low) {
    check_low(op, weight_low.has_value());
    if (layer.x_low == nullptr) return;
    if (weight_low.has_value()) {
      layer.weight_low = packed_weight(op, "weight_low", *weight_low, layer.units, layer.inputs);
      return;
    }
    const int64_t pairs = cpu::packed_weight(layer.units, layer.inputs);
    low_hold = frontend::scratch(x.hold, {2 * pairs}, ScalarType::BFloat16);
    uint32_t* packed = static_cast<uint32_t*>(low_hold->mutable_data_ptr());
    const cpu::Layer known = layer;
    frontend::compute([&] { cpu::pack_weight(frontend::provider(), known.units, known.inputs, known.weight, packed); });
    layer.weight_low = packed;
  }

  void set_labels(const char* op, const Tensor& labels, const Tensor& overlay, int64_t classes) {
    checked_classes(op, classes, layer.inputs);
    check_variants(op, labels, layer.images);
    const Labels checked(op, "labels", labels, classes, -1);
    label_hold = checked.hold;
    layer.labels = checked.data;
    layer.classes = classes;
    layer.variants = labels.size(0);
    set_overlay(op, overlay);
  }

  void set_overlay(const char* op, const Tensor& overlay) {
    const Vector values(op, "overlay", overlay, 2);
    layer.on_value = values.data[0];
    layer.neutral_value = values.data[1];
  }
};

/// Results in the dtype of x; the kernels write float32. All are there, and accepted, before anything is computed.
struct NewActivities {
  MaybeTensor half;  // h as it is returned, where that is float16
  Tensor h, goodness, scale, h_norm;
  cpu::Activities out;

  NewActivities(const Tensor& like, int64_t rows, int64_t units)
      : goodness(float_result("goodness", like, {rows})),
        scale(float_result("scale", like, {rows})),
        h_norm(float_result("h_norm", like, {rows})) {
    const bool is_low = like.scalar_type() == ScalarType::BFloat16;
    if (like.scalar_type() == ScalarType::Half) {
      half = frontend::result("h", like, {rows, units}, like.scalar_type());
      h = frontend::scratch(like, {rows, units}, ScalarType::Float);
    } else {
      h = frontend::result("h", like, {rows, units}, like.scalar_type());
    }
    out = {is_low ? nullptr : h.mutable_data_ptr<float>(), goodness.mutable_data_ptr<float>(),
           scale.mutable_data_ptr<float>(), h_norm.mutable_data_ptr<float>(),
           is_low ? static_cast<uint16_t*>(h.mutable_data_ptr()) : nullptr};
  }
  std::tuple<Tensor, Tensor, Tensor, Tensor> results() const {
    if (half.has_value()) frontend::copy(*half, h);
    return {half.has_value() ? *half : h, goodness, scale, h_norm};
  }
};

cpu::Activities writable_activities(const char* op, bool low, int64_t rows, int64_t units, const Tensor& h,
                                    const Tensor& goodness, const Tensor& scale, const Tensor& h_norm) {
  return {low ? nullptr : writable(op, "h", h, {rows, units}), writable(op, "goodness", goodness, {rows}),
          writable(op, "scale", scale, {rows}), writable(op, "h_norm", h_norm, {rows}),
          low ? writable_low(op, "h", h, {rows, units}) : nullptr};
}

/// Optimiser settings and the tensors it writes.
struct Update {
  OptimiserParams params;
  cpu::Trained trained;
  int64_t* step;

  Update(const char* op, int64_t units, int64_t inputs, const Tensor& weight_, const MaybeTensor& bias,
         const Tensor& weight_state, const Tensor& bias_state, const Tensor& step_, const Tensor& lr,
         const MaybeTensor& weight_low, const std::string& optimiser, const std::vector<double>& hyper) {
    params = parse_hyper(op, optimiser, hyper);
    params.lr = *scalar<double>(op, "lr", lr, ScalarType::Double);
    step = scalar<int64_t>(op, "step", step_, ScalarType::Long);
    const int64_t slots = state_slots(params.kind);
    trained.weight = writable(op, "weight", weight_, {units, inputs});
    if (weight_low.has_value()) trained.weight_low = packed_weight(op, "weight_low", *weight_low, units, inputs);
    trained.bias = writable(op, "bias", bias, {units});
    trained.weight_state = writable(op, "weight_state", weight_state, {slots, units, inputs});
    if (bias.has_value()) trained.bias_state = writable(op, "bias_state", bias_state, {slots, units});
  }

  /// Counts this update; called when every other argument has been accepted, so a refused call changes nothing.
  const OptimiserParams& begin() {
    params.step = ++*step;
    return params;
  }
};

/// The caller's workspace, from the first cache line on.
float* workspace_of(const char* op, const Tensor& workspace, int64_t floats) {
  float* p = writable(op, "workspace", workspace, {-1});
  if (workspace.numel() < floats + 16) {
    refuse(op, "workspace has ", workspace.numel(), " floats; expected at least ", floats + 16,
           " (ffkern.ops.step_workspace, FFLinear.reserve)");
  }
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(p) + 63) / 64 * 64);
}

cpu::Lesson lesson_of(const Vector& sign, const Vector& row_weight, const char* op, double threshold,
                      double temperature) {
  return {sign.data, row_weight.data, parse_loss(op, threshold, temperature)};
}

/// Activities kept from a forward call, read back for a gradient.
struct KeptActivities {
  Rows h;
  Vector scale, coef, sign, peer;
  cpu::Activities kept;

  KeptActivities(const char* op, const cpu::Layer& layer, const Tensor& h_, const Tensor& scale_, const Tensor& coef_,
                 const MaybeTensor& sign_, const MaybeTensor& peer_)
      : h(op, "h", h_),
        scale(op, "scale", scale_, layer.rows()),
        coef(op, "coef", coef_, layer.rows()),
        sign(op, "sign", sign_, layer.rows()),
        peer(op, "peer", peer_, layer.units) {
    check_shape(op, "h", h_, {layer.rows(), layer.units});
    if (peer_.has_value() && !sign_.has_value()) refuse(op, "peer is given but sign is not; expected both");
    if (layer.x_low == nullptr && h.low != nullptr) {
      h.hold = as_float(h_);
      h.low = nullptr;
      h.pitch = contiguous_rows(h.hold);
    }
    if (h.pitch != h.cols) h.hold = frontend::contiguous(h.hold);
    // Both are read only.
    if (h.low != nullptr) {
      kept.h_low = const_cast<uint16_t*>(static_cast<const uint16_t*>(h.hold.const_data_ptr()));
    } else {
      kept.h = const_cast<float*>(h.hold.const_data_ptr<float>());
    }
    kept.scale = const_cast<float*>(scale.data);
  }
};

// ---- operations: forward

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Four layer_forward(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& x_norm,
                   std::string norm, double eps, std::string goodness, const MaybeTensor& weight_low) {
  const char* op = "layer_forward";
  LayerInputs in(op, x, weight, bias, x_norm, parse_kind(op, norm, eps, goodness));
  NewActivities result(x, in.layer.images, in.layer.units);
  in.set_low(op, weight_low);
  Tensor hold;
  float* memory = scratch_of(hold, x, cpu::forward_floats(in.layer));
  frontend::compute([&] { cpu::forward(frontend::provider(), in.layer, result.out, memory); });
  return result.results();
}

void layer_forward_(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& x_norm,
                    const Tensor& h, const Tensor& goodness, const Tensor& scale, const Tensor& h_norm,
                    std::string norm, double eps, std::string kind, const MaybeTensor& weight_low) {
  const char* op = "layer_forward_";
  LayerInputs in(op, x, weight, bias, x_norm, parse_kind(op, norm, eps, kind));
  check_apart(op, "h", h, "x", x);
  check_apart(op, "h", h, "weight", weight);
  const cpu::Activities out =
      writable_activities(op, in.layer.x_low != nullptr, in.layer.images, in.layer.units, h, goodness, scale, h_norm);
  in.set_low(op, weight_low);
  Tensor hold;
  float* memory = scratch_of(hold, x, cpu::forward_floats(in.layer));
  frontend::compute([&] { cpu::forward(frontend::provider(), in.layer, out, memory); });
}

std::tuple<Tensor, Tensor> run_base(const char* op, const Tensor& x, const Tensor& weight, int64_t classes,
                                    const MaybeTensor& weight_low, const MaybeTensor& given,
                                    const MaybeTensor& given_norm) {
  LayerInputs in(op, x, weight, std::nullopt, std::nullopt, {});
  checked_classes(op, classes, in.layer.inputs);
  in.layer.classes = classes;
  Tensor base = given.has_value() ? *given : float_result("base", x, {in.layer.images, in.layer.units});
  Tensor norm = given_norm.has_value() ? *given_norm : float_result("rest_norm", x, {in.layer.images});
  in.set_low(op, weight_low);
  frontend::compute([&] {
    cpu::base_product(frontend::provider(), in.layer, base.mutable_data_ptr<float>(), norm.mutable_data_ptr<float>());
  });
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
  cpu::Layer layer;

  VariantInputs(const char* op, const Tensor& base_, const Tensor& rest_norm_, const Tensor& weight_,
                const MaybeTensor& bias_, const Tensor& labels_, const Tensor& overlay_, int64_t classes,
                LayerKind kind)
      : base(op, "base", base_),
        weight(op, "weight", weight_),
        bias(op, "bias", bias_, weight.rows),
        rest_norm(op, "rest_norm", rest_norm_, base.rows),
        overlay(op, "overlay", overlay_, 2),
        labels(op, "labels", labels_, checked_classes(op, classes, weight.cols), -1) {
    check_shape(op, "base", base_, {-1, weight.rows});
    check_variants(op, labels_, base.rows);
    base.make_dense();
    weight.make_dense();
    layer.x_norm = rest_norm.data;
    layer.weight = weight.data;
    layer.bias = bias.data;
    layer.images = base.rows;
    layer.inputs = weight.cols;
    layer.units = weight.rows;
    layer.classes = classes;
    layer.variants = labels_.size(0);
    layer.labels = labels.data;
    layer.on_value = overlay.data[0];
    layer.neutral_value = overlay.data[1];
    layer.kind = kind;
  }
};

Four shared_variants(const Tensor& base, const Tensor& rest_norm, const Tensor& weight, const MaybeTensor& bias,
                     const Tensor& labels, const Tensor& overlay, int64_t classes, std::string norm, double eps,
                     std::string goodness) {
  const char* op = "shared_variants";
  const VariantInputs in(op, base, rest_norm, weight, bias, labels, overlay, classes,
                         parse_kind(op, norm, eps, goodness));
  NewActivities result(base, in.layer.rows(), in.layer.units);
  Tensor hold;
  const cpu::Provider provider = frontend::provider();
  float* memory = scratch_of(hold, base, cpu::variants_floats(provider, in.layer));
  frontend::compute([&] { cpu::variants(provider, in.layer, in.base.data, result.out, memory); });
  return result.results();
}

void shared_variants_(const Tensor& base, const Tensor& rest_norm, const Tensor& weight, const MaybeTensor& bias,
                      const Tensor& labels, const Tensor& overlay, const Tensor& h, const Tensor& goodness,
                      const Tensor& scale, const Tensor& h_norm, int64_t classes, std::string norm, double eps,
                      std::string kind) {
  const char* op = "shared_variants_";
  const VariantInputs in(op, base, rest_norm, weight, bias, labels, overlay, classes, parse_kind(op, norm, eps, kind));
  const bool low = h.scalar_type() == ScalarType::BFloat16;  // of the rows that the base product comes from
  const cpu::Activities out = writable_activities(op, low, in.layer.rows(), in.layer.units, h, goodness, scale, h_norm);
  Tensor hold;
  const cpu::Provider provider = frontend::provider();
  float* memory = scratch_of(hold, base, cpu::variants_floats(provider, in.layer));
  frontend::compute([&] { cpu::variants(provider, in.layer, in.base.data, out, memory); });
}

// ---- operations: learning

std::tuple<Tensor, Tensor, Tensor> local_loss(const Tensor& goodness, const Tensor& sign, const MaybeTensor& row_weight,
                                              double threshold, double temperature) {
  const char* op = "local_loss";
  if (goodness.dim() != 1) refuse(op, "goodness has shape ", shape_text(goodness), "; expected [rows]");
  const int64_t rows = goodness.size(0);
  const Vector g(op, "goodness", goodness, rows), s(op, "sign", sign, rows), w(op, "row_weight", row_weight, rows);
  Tensor loss = float_result("loss", goodness, {}), coef = float_result("coef", goodness, {rows});
  Tensor stats = frontend::result("stats", goodness, {kStatCount}, ScalarType::Double);
  const cpu::Lesson lesson = lesson_of(s, w, op, threshold, temperature);
  frontend::compute(
      [&] { cpu::local_loss(rows, g.data, lesson, coef.mutable_data_ptr<float>(), stats.mutable_data_ptr<double>()); });
  *loss.mutable_data_ptr<float>() = static_cast<float>(stats.const_data_ptr<double>()[kStatLoss]);
  return {loss, coef, stats};
}

Tensor peer_update_(const Tensor& h, const Tensor& sign, const Tensor& mean, double strength, double momentum) {
  const char* op = "peer_update_";
  Matrix activities(op, "h", h);
  activities.make_dense();
  const Vector s(op, "sign", sign, activities.rows);
  float* m = writable(op, "mean", mean, {activities.cols});
  Tensor p = float_result("p", h, {activities.cols}), hold;
  const cpu::Provider provider = frontend::provider();
  const PeerParams params = peer_params(op, strength, momentum);
  float* memory = scratch_of(hold, h, provider.threads * 2 * activities.cols);
  frontend::compute([&] {
    cpu::peer_update(provider, activities.rows, activities.cols, activities.data, s.data, params, m,
                     p.mutable_data_ptr<float>(), memory);
  });
  return p;
}

std::tuple<Tensor, Tensor> gradient(const char* op, const LayerInputs& in, const Tensor& h, const Tensor& scale,
                                    const Tensor& coef, const MaybeTensor& sign, const MaybeTensor& peer) {
  const KeptActivities kept(op, in.layer, h, scale, coef, sign, peer);
  Tensor dweight = float_result("dweight", h, {in.layer.units, in.layer.inputs});
  Tensor dbias = float_result("dbias", h, {in.layer.units}), hold;
  const cpu::Provider provider = frontend::provider();
  float* memory = scratch_of(hold, h, cpu::update_floats(provider, in.layer, Optimiser::kAdam));
  frontend::compute([&] {
    cpu::gradient(provider, in.layer, kept.kept, kept.coef.data, kept.sign.data, kept.peer.data,
                  dweight.mutable_data_ptr<float>(), dbias.mutable_data_ptr<float>(), memory);
  });
  return {dweight, dbias};
}

std::tuple<Tensor, Tensor> layer_grad(const Tensor& x, const Tensor& h, const Tensor& scale, const Tensor& coef,
                                      const MaybeTensor& sign, const MaybeTensor& peer, std::string goodness) {
  const char* op = "layer_grad";
  const LayerInputs in(op, x, gradient_units(op, x, h), gradient_kind(op, goodness));
  return gradient(op, in, h, scale, coef, sign, peer);
}

std::tuple<Tensor, Tensor> shared_grad(const Tensor& x, const Tensor& h, const Tensor& scale, const Tensor& coef,
                                       const Tensor& labels, const Tensor& overlay, int64_t classes,
                                       const MaybeTensor& sign, const MaybeTensor& peer, std::string goodness) {
  const char* op = "shared_grad";
  LayerInputs in(op, x, gradient_units(op, x, h), gradient_kind(op, goodness));
  in.set_labels(op, labels, overlay, classes);
  return gradient(op, in, h, scale, coef, sign, peer);
}

void update(const char* op, const LayerInputs& in, const Tensor& h, const Tensor& scale, const Tensor& coef,
            const MaybeTensor& sign, const MaybeTensor& peer, const Tensor& workspace, const MaybeTensor& stats,
            Update change) {
  in.check_low(op, change.trained.weight_low != nullptr);
  const KeptActivities kept(op, in.layer, h, scale, coef, sign, peer);
  const cpu::Provider provider = frontend::provider();
  float* memory = workspace_of(op, workspace, cpu::update_floats(provider, in.layer, change.params.kind));
  check_counts(op, stats, sign);
  double* counts = stats.has_value() ? writable_stats(op, *stats, kStatCount) : nullptr;
  frontend::compute([&] {
    cpu::update(provider, in.layer, kept.kept, kept.coef.data, kept.sign.data, kept.peer.data, change.begin(),
                change.trained, counts, memory);
  });
}

void layer_update_(const Tensor& x, const Tensor& h, const Tensor& scale, const Tensor& coef, const MaybeTensor& sign,
                   const MaybeTensor& peer, const Tensor& weight, const MaybeTensor& bias, const Tensor& weight_state,
                   const Tensor& bias_state, const Tensor& step, const Tensor& lr, const MaybeTensor& weight_low,
                   const Tensor& workspace, const MaybeTensor& stats, std::string goodness, std::string optimiser,
                   std::vector<double> hyper) {
  const char* op = "layer_update_";
  const LayerInputs in(op, x, weight, bias, std::nullopt, gradient_kind(op, goodness));
  update(op, in, h, scale, coef, sign, peer, workspace, stats,
         Update(op, in.layer.units, in.layer.inputs, weight, bias, weight_state, bias_state, step, lr, weight_low,
                optimiser, hyper));
}

void shared_update_(const Tensor& x, const Tensor& h, const Tensor& scale, const Tensor& coef, const Tensor& labels,
                    const Tensor& overlay, int64_t classes, const MaybeTensor& sign, const MaybeTensor& peer,
                    const Tensor& weight, const MaybeTensor& bias, const Tensor& weight_state, const Tensor& bias_state,
                    const Tensor& step, const Tensor& lr, const MaybeTensor& weight_low, const Tensor& workspace,
                    const MaybeTensor& stats, std::string goodness, std::string optimiser, std::vector<double> hyper) {
  const char* op = "shared_update_";
  LayerInputs in(op, x, weight, bias, std::nullopt, gradient_kind(op, goodness));
  in.set_labels(op, labels, overlay, classes);
  update(op, in, h, scale, coef, sign, peer, workspace, stats,
         Update(op, in.layer.units, in.layer.inputs, weight, bias, weight_state, bias_state, step, lr, weight_low,
                optimiser, hyper));
}

/// The part of layer_step_ and shared_step_ that is the same.
struct StepArguments {
  const Tensor &weight, &weight_state, &bias_state, &step, &lr, &sign, &workspace, &stats;
  const MaybeTensor &bias, &weight_low, &row_weight, &peer_mean, &h, &h_norm;
  double threshold, temperature, peer_strength, peer_momentum;
  const std::string& optimiser;
  const std::vector<double>& hyper;
};

void run_step(const char* op, LayerInputs& in, const StepArguments& a) {
  const cpu::Layer& layer = in.layer;
  check_rows(op, "x", layer.images);
  const Vector sign(op, "sign", a.sign, layer.rows()), row_weight(op, "row_weight", a.row_weight, layer.rows());
  cpu::Step step;
  step.lesson = lesson_of(sign, row_weight, op, a.threshold, a.temperature);
  step.peer = peer_params(op, a.peer_strength, a.peer_momentum);
  step.peer_mean = writable(op, "peer_mean", a.peer_mean, {layer.units});
  check_peer_mean(op, a.peer_strength, a.peer_mean);
  if (layer.x_low == nullptr) {
    step.keep_h = writable(op, "h", a.h, {layer.rows(), layer.units});
  } else if (a.h.has_value()) {
    step.keep_h_low = writable_low(op, "h", *a.h, {layer.rows(), layer.units});
  }
  if (a.h.has_value()) check_apart(op, "h", *a.h, "x", in.x.hold);
  step.keep_h_norm = writable(op, "h_norm", a.h_norm, {layer.rows()});
  step.stats = writable_stats(op, a.stats, kStatCount);
  Update change(op, layer.units, layer.inputs, a.weight, a.bias, a.weight_state, a.bias_state, a.step, a.lr,
                a.weight_low, a.optimiser, a.hyper);
  step.trained = change.trained;
  const cpu::Provider provider = frontend::provider();
  float* memory =
      workspace_of(op, a.workspace, cpu::step_floats(provider, layer, step.peer_mean != nullptr, change.params.kind));
  in.set_low(op, a.weight_low);
  step.layer = layer;
  step.optimiser = change.begin();
  frontend::compute([&] { cpu::step(provider, step, memory); });
}

void layer_step_(const Tensor& x, const MaybeTensor& x_norm, const Tensor& weight, const MaybeTensor& bias,
                 const Tensor& weight_state, const Tensor& bias_state, const Tensor& step, const Tensor& lr,
                 const MaybeTensor& weight_low, const Tensor& sign, const MaybeTensor& row_weight,
                 const MaybeTensor& peer_mean, const Tensor& workspace, const Tensor& stats, const MaybeTensor& h,
                 const MaybeTensor& h_norm, std::string norm, double eps, std::string goodness, double threshold,
                 double temperature, double peer_strength, double peer_momentum, std::string optimiser,
                 std::vector<double> hyper) {
  const char* op = "layer_step_";
  LayerInputs in(op, x, weight, bias, x_norm, parse_kind(op, norm, eps, goodness));
  run_step(op, in, {weight,    weight_state, bias_state,    step,          lr,        sign, workspace,
                    stats,     bias,         weight_low,    row_weight,    peer_mean, h,    h_norm,
                    threshold, temperature,  peer_strength, peer_momentum, optimiser, hyper});
}

void shared_step_(const Tensor& x, const Tensor& labels, const Tensor& overlay, int64_t classes, const Tensor& weight,
                  const MaybeTensor& bias, const Tensor& weight_state, const Tensor& bias_state, const Tensor& step,
                  const Tensor& lr, const MaybeTensor& weight_low, const Tensor& sign, const MaybeTensor& row_weight,
                  const MaybeTensor& peer_mean, const Tensor& workspace, const Tensor& stats, const MaybeTensor& h,
                  const MaybeTensor& h_norm, std::string norm, double eps, std::string goodness, double threshold,
                  double temperature, double peer_strength, double peer_momentum, std::string optimiser,
                  std::vector<double> hyper) {
  const char* op = "shared_step_";
  LayerInputs in(op, x, weight, bias, std::nullopt, parse_kind(op, norm, eps, goodness));
  in.set_labels(op, labels, overlay, classes);
  run_step(op, in, {weight,    weight_state, bias_state,    step,          lr,        sign, workspace,
                    stats,     bias,         weight_low,    row_weight,    peer_mean, h,    h_norm,
                    threshold, temperature,  peer_strength, peer_momentum, optimiser, hyper});
}

// ---- operations: prediction, labels, head

Tensor predict_goodness(const Tensor& x, std::vector<Tensor> weights, std::vector<MaybeTensor> biases, int64_t classes,
                        const Tensor& overlay, std::string norm, double eps, std::string goodness,
                        const std::optional<std::vector<Tensor>>& weights_low) {
  const char* op = "predict_goodness";
  check_stack(op, weights, biases);
  LayerInputs first(op, x, weights[0], biases[0], std::nullopt, parse_kind(op, norm, eps, goodness));
  checked_classes(op, classes, first.layer.inputs);
  first.layer.classes = classes;
  first.layer.variants = classes;
  first.set_overlay(op, overlay);

  std::vector<Matrix> matrices;
  std::vector<Vector> vectors;
  std::vector<const float*> weight_data, bias_data;
  std::vector<const uint32_t*> low_data;
  std::vector<int64_t> units;
  const bool low = first.layer.x_low != nullptr;
  bool made = false;
  std::vector<Tensor> packed = weights_low.value_or(std::vector<Tensor>());
  if (!packed.empty() && (!low || packed.size() != weights.size())) {
    refuse(op, "weights_low has ", packed.size(), " tensors; expected ",
           low ? "none, or one for each of weights" : "none, as x is not bfloat16");
  }
  for (size_t l = 0; l < weights.size(); ++l) {
    Matrix& w = matrices.emplace_back(op, "weights", frontend::contiguous(weights[l]));
    units.push_back(w.rows);
    weight_data.push_back(w.data);
    bias_data.push_back(vectors.emplace_back(op, "biases", biases[l], w.rows).data);
    if (!low) continue;
    if (packed.size() == l) {
      packed.push_back(frontend::scratch(x, {(w.rows + 15) / 16, (w.cols + 1) / 2, 16, 2}, ScalarType::BFloat16));
      made = true;
    }
    low_data.push_back(packed_weight(op, "weights_low", packed[l], w.rows, w.cols));
  }
  const cpu::Stack stack{static_cast<int64_t>(units.size()), weight_data.data(), bias_data.data(), units.data(),
                         low_data.data()};
  Tensor out = float_result("goodness", x, {stack.depth, first.layer.images, classes}), hold;
  const cpu::Provider provider = frontend::provider();
  float* memory = scratch_of(hold, x, cpu::predict_floats(provider, first.layer, stack));
  if (low) first.layer.weight_low = low_data[0];
  frontend::compute([&] {
    for (size_t l = 0; made && l < units.size(); ++l) {
      cpu::pack_weight(provider, units[l], matrices[l].cols, weight_data[l], const_cast<uint32_t*>(low_data[l]));
    }
    cpu::predict_goodness(provider, first.layer, stack, out.mutable_data_ptr<float>(), memory);
  });
  return out;
}

/// The weights as products of bfloat16 read them: out [ceil(M / 16), ceil(K / 2), 16, 2].
void pack_weight_(const Tensor& weight, const Tensor& out) {
  const char* op = "pack_weight_";
  Matrix w(op, "weight", weight);
  check_weight(op, weight);
  w.make_dense();
  uint32_t* packed = packed_weight(op, "out", out, w.rows, w.cols);
  frontend::compute([&] { cpu::pack_weight(frontend::provider(), w.rows, w.cols, w.data, packed); });
}

/// Labels, one for each row of x.
Labels row_labels(const char* op, const Tensor& labels, int64_t rows, int64_t classes, int64_t lowest) {
  check_shape(op, "labels", labels, {rows});
  return Labels(op, "labels", labels, classes, lowest);
}

Tensor place_label(const char* op, const Tensor& x, const Tensor& labels, int64_t classes, const Tensor& overlay,
                   int64_t extra) {
  const Matrix in(op, "x", x);
  check_label_room(op, classes, in.cols, extra);
  const Labels y = row_labels(op, labels, in.rows, classes, -1);
  const Vector values(op, "overlay", overlay, 2);
  const int64_t width = in.cols + extra;
  const Tensor out = frontend::result("out", x, {in.rows, width}, x.scalar_type());
  const bool direct = x.scalar_type() == ScalarType::Float;
  const Tensor wide = direct ? out : frontend::scratch(x, {in.rows, width}, ScalarType::Float);
  float* p = wide.mutable_data_ptr<float>();
  for (int64_t i = 0; i < in.rows; ++i) {
    std::copy(in.data + i * in.pitch, in.data + i * in.pitch + in.cols, p + i * width + extra);
  }
  cpu::write_labels(in.rows, classes, y.data, values.data[0], values.data[1], p, width);
  if (!direct) frontend::copy(out, wide);
  return out;
}

Tensor overlay_label(const Tensor& x, const Tensor& labels, int64_t classes, const Tensor& overlay) {
  return place_label("overlay_label", x, labels, classes, overlay, 0);
}

Tensor concat_label(const Tensor& x, const Tensor& labels, int64_t classes, const Tensor& overlay) {
  return place_label("concat_label", x, labels, classes, overlay, classes);
}

Tensor wrong_labels(const Tensor& labels, int64_t classes, const Tensor& u) {
  const char* op = "wrong_labels";
  check_wrong_exists(op, classes);
  check_shape(op, "labels", labels, {-1});
  const Labels y = row_labels(op, labels, labels.size(0), classes, 0);
  const Vector draws(op, "u", u, y.count);
  Tensor out = frontend::result("out", labels, {y.count}, ScalarType::Long);
  cpu::wrong_labels(y.count, classes, y.data, draws.data, out.mutable_data_ptr<int64_t>());
  return out;
}

/// Into `given`, or a new tensor.
Tensor draw_hard(const char* op, const Tensor& logits, const Tensor& labels, const Tensor& u,
                 const MaybeTensor& given) {
  Matrix in(op, "logits", logits);
  check_wrong_exists(op, in.cols);
  in.make_dense();
  const Labels y = row_labels(op, labels, in.rows, in.cols, 0);
  const Vector draws(op, "u", u, in.rows);
  Tensor out = given.has_value() ? *given : frontend::result("out", labels, {in.rows}, ScalarType::Long);
  cpu::hard_labels(in.rows, in.cols, in.data, y.data, draws.data, out.mutable_data_ptr<int64_t>());
  return out;
}

Tensor hard_labels(const Tensor& logits, const Tensor& labels, const Tensor& u) {
  return draw_hard("hard_labels", logits, labels, u, std::nullopt);
}

Tensor all_wrong_labels(const Tensor& labels, int64_t classes) {
  const char* op = "all_wrong_labels";
  check_wrong_exists(op, classes);
  check_shape(op, "labels", labels, {-1});
  const Labels y = row_labels(op, labels, labels.size(0), classes, 0);
  Tensor out = frontend::result("out", labels, {classes - 1, y.count}, ScalarType::Long);
  cpu::all_wrong_labels(y.count, classes, y.data, out.mutable_data_ptr<int64_t>());
  return out;
}

std::tuple<Tensor, Tensor> hybrid_images_(const Tensor& x, const Tensor& other, const Tensor& generator, int64_t height,
                                          int64_t width, int64_t blurs) {
  const char* op = "hybrid_images_";
  check_matrix(op, "x", x);
  check_matrix(op, "other", other);
  check_dtype(op, "other", other, x.scalar_type());
  check_shape(op, "other", other, {x.size(0), x.size(1)});
  const int64_t inputs = x.size(1);
  check_picture(op, inputs, height, width, blurs);
  if (!generator.is_cpu()) refuse(op, "generator is on another device; expected the CPU, as x is");
  check_dtype(op, "generator", generator, ScalarType::Long);
  check_shape(op, "generator", generator, {2});
  check_in_place(op, "generator", generator);
  int64_t* state = generator.mutable_data_ptr<int64_t>();

  cpu::Hybrid hybrid;
  Tensor x_rows = x, other_rows = other;
  hybrid.ldx = contiguous_rows(x_rows);
  hybrid.ld_other = contiguous_rows(other_rows);
  hybrid.x = x_rows.const_data_ptr();
  hybrid.other = other_rows.const_data_ptr();
  hybrid.element_bytes = static_cast<int64_t>(x.element_size());
  hybrid.images = x.size(0);
  hybrid.channels = inputs / (height * width);
  hybrid.height = height;
  hybrid.width = width;
  hybrid.blurs = blurs;
  hybrid.seed = static_cast<uint64_t>(state[0]);
  hybrid.drawn = static_cast<uint64_t>(state[1]);
  Tensor images = frontend::result("images", x, {hybrid.images, inputs}, x.scalar_type());
  Tensor mask = frontend::result("mask", x, {hybrid.images, height * width}, ScalarType::Bool), hold;
  const cpu::Provider provider = frontend::provider();
  float* memory = scratch_of(hold, x, cpu::hybrid_floats(provider, hybrid));
  frontend::compute([&] {
    cpu::hybrid_images(provider, hybrid, images.mutable_data_ptr(), static_cast<bool*>(mask.mutable_data_ptr()),
                       memory);
  });
  state[1] = static_cast<int64_t>(hybrid.drawn + static_cast<uint64_t>(hybrid.images));
  return {images, mask};
}

struct HeadInputs {
  std::vector<Matrix> activities;
  std::vector<Vector> norms;
  std::vector<cpu::HeadInput> inputs;
  Matrix weight;
  Vector bias;
  cpu::Head head;

  HeadInputs(const char* op, const std::vector<Tensor>& h, const std::vector<Tensor>& h_norm, const Tensor& weight_,
             const MaybeTensor& bias_, LayerKind kind)
      : weight(op, "weight", weight_), bias(op, "bias", bias_, weight.rows) {
    check_layers(op, h, h_norm);
    int64_t width = 0;
    for (size_t l = 0; l < h.size(); ++l) {
      const Matrix& m = activities.emplace_back(op, "h", h[l]);
      const Vector& n = norms.emplace_back(op, "h_norm", h_norm[l], activities[0].rows);
      if (m.rows != activities[0].rows) {
        refuse(op, "h[", l, "] has shape ", shape_text(h[l]), "; expected [", activities[0].rows, ", *]");
      }
      inputs.push_back({m.data, n.data, m.cols, m.pitch});
      width += m.cols;
    }
    if (weight.cols != width || weight.rows < 1) {
      refuse(op, "weight has shape ", shape_text(weight_), "; expected [classes, ", width,
             "], the units of all layers");
    }
    weight.make_dense();
    head = {inputs.data(),
            static_cast<int64_t>(inputs.size()),
            activities[0].rows,
            weight.rows,
            width,
            weight.data,
            bias.data,
            kind};
  }
};

Tensor head_forward(std::vector<Tensor> h, std::vector<Tensor> h_norm, const Tensor& weight, const MaybeTensor& bias,
                    std::string norm, double eps) {
  const char* op = "head_forward";
  const HeadInputs in(op, h, h_norm, weight, bias, parse_kind(op, norm, eps, "sum_sq"));
  Tensor logits = float_result("logits", weight, {in.head.images, in.head.classes}), hold;
  float* memory = scratch_of(hold, weight, cpu::head_floats(in.head));
  frontend::compute(
      [&] { cpu::head_forward(frontend::provider(), in.head, logits.mutable_data_ptr<float>(), memory); });
  return logits;
}

Tensor head_step_(std::vector<Tensor> h, std::vector<Tensor> h_norm, const Tensor& labels, const Tensor& weight,
                  const MaybeTensor& bias, const Tensor& weight_state, const Tensor& bias_state, const Tensor& step,
                  const Tensor& lr, const Tensor& stats, std::string norm, double eps, std::string optimiser,
                  std::vector<double> hyper) {
  const char* op = "head_step_";
  const HeadInputs in(op, h, h_norm, weight, bias, parse_kind(op, norm, eps, "sum_sq"));
  check_rows(op, "h", in.head.images);
  const Labels y = row_labels(op, labels, in.head.images, in.head.classes, 0);
  Update change(op, in.head.classes, in.head.width, weight, bias, weight_state, bias_state, step, lr, std::nullopt,
                optimiser, hyper);
  double* sums = writable_stats(op, stats, 3);
  Tensor logits = float_result("logits", weight, {in.head.images, in.head.classes}), hold;
  float* memory = scratch_of(hold, weight, cpu::head_floats(in.head));
  frontend::compute([&] {
    cpu::head_step(frontend::provider(), in.head, y.data, change.begin(), change.trained,
                   logits.mutable_data_ptr<float>(), sums, memory);
  });
  return logits;
}

// ---- facts: what a step needs, which path runs

/// A layer of these sizes, on rows of bfloat16 if `low`.
cpu::Layer sized(const char* op, const Tensor& weight, int64_t images, int64_t classes, int64_t variants, bool low) {
  static const uint16_t any = 0;
  cpu::Layer layer = sizes<cpu::Layer>(op, weight, images, classes, variants);
  layer.x_low = low ? &any : nullptr;
  return layer;
}

/// Floats that layer_step_ / shared_step_ want as workspace.
int64_t step_workspace(const Tensor& weight, int64_t images, int64_t classes, int64_t variants, bool peer,
                       std::string optimiser, bool low) {
  const char* op = "step_workspace";
  const cpu::Layer layer = sized(op, weight, images, classes, variants, low);
  return cpu::step_floats(frontend::provider(), layer, peer, parse_optimiser(op, optimiser)) + 16;
}

/// The same of layer_update_ / shared_update_.
int64_t update_workspace(const Tensor& weight, int64_t images, int64_t classes, int64_t variants, std::string optimiser,
                         bool low) {
  const char* op = "update_workspace";
  const cpu::Layer layer = sized(op, weight, images, classes, variants, low);
  return cpu::update_floats(frontend::provider(), layer, parse_optimiser(op, optimiser)) + 16;
}

// ---- the whole network

struct OnCpu {
  static constexpr auto& shared_base = run_base;
  static constexpr auto& layer_forward = layer_forward_;
  static constexpr auto& shared_variants = shared_variants_;
  static constexpr auto& layer_step = layer_step_;
  static constexpr auto& shared_step = shared_step_;
  static constexpr auto& layer_update = layer_update_;
  static constexpr auto& shared_update = shared_update_;
  static constexpr auto& peer_update = peer_update_;
  static constexpr auto& draw_hard = binding::draw_hard;
  static constexpr auto& head_forward = binding::head_forward;
  static constexpr auto& head_step = head_step_;
  static constexpr auto& step_workspace = binding::step_workspace;
  static constexpr auto& update_workspace = binding::update_workspace;

  /// coef is written, the statistics of the batch are added to stats.
  static void add_loss(const char* op, const Tensor& goodness, const Tensor& sign, const MaybeTensor& row_weight,
                       double threshold, double temperature, const Tensor& coef, const Tensor& stats) {
    const int64_t rows = goodness.size(0);
    const Vector g(op, "goodness", goodness, rows), s(op, "sign", sign, rows), w(op, "row_weight", row_weight, rows);
    const cpu::Lesson lesson = lesson_of(s, w, op, threshold, temperature);
    double batch[kStatCount];
    frontend::compute([&] { cpu::local_loss(rows, g.data, lesson, coef.mutable_data_ptr<float>(), batch); });
    for (int k = 0; k < kStatCount; ++k) stats.mutable_data_ptr<double>()[k] += batch[k];
  }

  static void check_labels(const char* op, const Tensor& labels, int64_t classes, int64_t lowest) {
    Labels(op, "labels", labels, classes, lowest);
  }

  static void check_low(const char* op, const char* name, const Tensor& low, ScalarType rows, int64_t units,
                        int64_t inputs) {
    if (rows != ScalarType::BFloat16) refuse(op, name, " is given; expected none, as x is not bfloat16");
    packed_weight(op, name, low, units, inputs);
  }
};

constexpr auto& network_step_ = binding::network_step<OnCpu>;
constexpr auto& network_workspace = binding::network_memory<OnCpu>;

}  // namespace

void implement_cpu(Library& library) {
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
  FFKERN_IMPLEMENT(library, predict_goodness);
  FFKERN_IMPLEMENT(library, pack_weight_);
  FFKERN_IMPLEMENT(library, overlay_label);
  FFKERN_IMPLEMENT(library, concat_label);
  FFKERN_IMPLEMENT(library, wrong_labels);
  FFKERN_IMPLEMENT(library, hard_labels);
  FFKERN_IMPLEMENT(library, all_wrong_labels);
  FFKERN_IMPLEMENT(library, hybrid_images_);
  FFKERN_IMPLEMENT(library, head_forward);
  FFKERN_IMPLEMENT(library, head_step_);
  FFKERN_IMPLEMENT(library, step_workspace);
  FFKERN_IMPLEMENT(library, update_workspace);
  FFKERN_IMPLEMENT(library, network_step_);
  FFKERN_IMPLEMENT(library, network_workspace);
}

}  // namespace ffkern::binding
