// The softmax head on CUDA tensors: checks, outputs, and the launches.
#include <string>
#include <vector>

#include "cuda/head.h"
#include "cuda_arguments.h"
#include "cuda_network.h"
#include "operations.h"

namespace ffkern::binding {
namespace {

/// Activities and norms of the layers, checked against the shape of the weights. Who reads the weights declares them.
struct HeadInputs {
  std::vector<Matrix> activities;
  std::vector<Vector> norms;
  std::vector<cuda::HeadLayer> layers;
  cuda::Head head;

  HeadInputs(LaunchScope& scope, const char* op, const std::vector<Tensor>& h, const std::vector<Tensor>& h_norm,
             const Tensor& weight, LayerKind kind) {
    storage_of(op, "weight", weight);
    if (weight.dim() != 2) {
      refuse(op, "weight has shape ", shape_text(weight), "; expected a matrix [rows, columns]");
    }
    check_layers(op, h, h_norm);
    head.kind = kind;
    head.classes = weight.size(0);
    for (size_t l = 0; l < h.size(); ++l) {
      const Matrix& m = activities.emplace_back(scope, op, "h", h[l]);
      if (l == 0) head.images = m.rows;
      const Vector& n = norms.emplace_back(scope, op, "h_norm", h_norm[l], head.images);
      if (m.rows != head.images) {
        refuse(op, "h[", l, "] has shape ", shape_text(h[l]), "; expected [", head.images, ", *]");
      }
      layers.push_back({m.data, n.data, m.cols, m.pitch, m.storage});
      head.width += m.cols;
    }
    if (weight.size(1) != head.width || head.classes < 1) {
      refuse(op, "weight has shape ", shape_text(weight), "; expected [classes, ", head.width,
             "], the units of all layers");
    }
    head.layers = layers.data();
    head.count = static_cast<int64_t>(layers.size());
  }

  HeadInputs(const HeadInputs&) = delete;  // head points into it
  HeadInputs& operator=(const HeadInputs&) = delete;
};

/// Without a layer there is nothing whose device could be asked for: the weights stand in, and HeadInputs refuses.
const Tensor& anchor(const std::vector<Tensor>& h, const Tensor& weight) { return h.empty() ? weight : h[0]; }

}  // namespace

Tensor OnCudaElsewhere::head_forward(std::vector<Tensor> h, std::vector<Tensor> h_norm, const Tensor& weight,
                                     const MaybeTensor& bias, std::string norm, double eps) {
  const char* op = "head_forward";
  LaunchScope scope(op, "h", anchor(h, weight));
  HeadInputs in(scope, op, h, h_norm, weight, parse_kind(op, norm, eps, "sum_sq"));
  const Matrix w(scope, op, "weight",
                 weight.scalar_type() == ScalarType::Float ? weight : frontend::to(weight, ScalarType::Float));
  const Vector b(scope, op, "bias", bias, in.head.classes);
  in.head.weight = static_cast<const float*>(w.data);
  in.head.weight_pitch = w.pitch;
  in.head.bias = b.data;
  const Tensor logits = output(scope, "logits", weight, {in.head.images, in.head.classes}, ScalarType::Float);
  cuda::head_forward(scope.queue(), in.head, logits.mutable_data_ptr<float>());
  return logits;
}

Tensor OnCudaElsewhere::head_step(std::vector<Tensor> h, std::vector<Tensor> h_norm, const Tensor& labels,
                                  const Tensor& weight, const MaybeTensor& bias, const Tensor& weight_state,
                                  const Tensor& bias_state, const Tensor& step, const Tensor& lr, const Tensor& stats,
                                  std::string norm, double eps, std::string optimiser, std::vector<double> hyper) {
  const char* op = "head_step_";
  LaunchScope scope(op, "h", anchor(h, weight));
  HeadInputs in(scope, op, h, h_norm, weight, parse_kind(op, norm, eps, "sum_sq"));
  check_rows(op, "h", in.head.images);
  check_shape(op, "labels", labels, {in.head.images});
  const Labels y(scope, op, "labels", labels);
  const Update change(scope, op, in.head.classes, in.head.width, weight, bias, weight_state, bias_state, step, lr,
                      optimiser, hyper);
  cuda::HeadStep lesson;
  lesson.labels = y.data;
  lesson.optimiser = change.args;
  lesson.weight = change.weight;
  lesson.bias = change.bias;
  lesson.weight_state = change.weight_state;
  lesson.bias_state = change.bias_state;
  lesson.stats = static_cast<double*>(updated(scope, op, "stats", stats, ScalarType::Double, {3}));
  in.head.weight = change.weight;
  in.head.weight_pitch = in.head.width;
  in.head.bias = change.bias;
  const Tensor logits = output(scope, "logits", weight, {in.head.images, in.head.classes}, ScalarType::Float);
  const Tensor memory = scratch(scope, weight, cuda::head_bytes(in.head));
  cuda::head_step(scope.queue(), in.head, lesson, logits.mutable_data_ptr<float>(), aligned(memory));
  return logits;
}

namespace {

constexpr auto& head_forward = OnCudaElsewhere::head_forward;
constexpr auto& head_step_ = OnCudaElsewhere::head_step;

}  // namespace

void implement_cuda_head(Library& library) {
  FFKERN_IMPLEMENT(library, head_forward);
  FFKERN_IMPLEMENT(library, head_step_);
}

}  // namespace ffkern::binding
