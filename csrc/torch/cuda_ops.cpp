#include "cuda_ops.h"

#include <utility>

#include "checks.h"
#include "cuda/layer_forward.h"
#include "launch_scope.h"

namespace ffkern::cuda_ops {
namespace {

using namespace ffkern::binding;

void check_storage(const char* op, const char* name, const Tensor& t) {
  if (t.scalar_type() == ScalarType::BFloat16) return;
  refuse(op, name, " is ", dtype_text(t.scalar_type()),
         "; on CUDA x and weight have to be bfloat16 so far (with float32 bias and x_norm), "
         "float32 and float16 are not there yet");
}

bool rows_are_contiguous(const Tensor& t) {
  const int64_t inner = t.dim() - 1;
  return t.size(inner) <= 1 || t.stride(inner) == 1;
}

/// Inputs may have any row pitch; one whose rows are not contiguous is copied.
Tensor readable(const Tensor& t) { return rows_are_contiguous(t) ? t : torch::stable::contiguous(t); }

MaybeTensor readable(const MaybeTensor& t) { return t ? MaybeTensor(readable(*t)) : std::nullopt; }

const float* data_or_null(const MaybeTensor& t) { return t ? t->const_data_ptr<float>() : nullptr; }

int64_t pitch(const Tensor& matrix) { return matrix.size(0) > 1 ? matrix.stride(0) : matrix.size(1); }

struct Inputs {
  Tensor x, weight;
  MaybeTensor bias, x_norm;
  LayerKind kind;
  int64_t rows, units;

  Inputs(const char* op, const Tensor& x_, const Tensor& weight_, const MaybeTensor& bias_, const MaybeTensor& x_norm_,
         LayerKind kind)
      : kind(kind) {
    check_shape(op, "x", x_, {-1, -1});
    check_shape(op, "weight", weight_, {-1, x_.size(1)});
    rows = x_.size(0);
    units = weight_.size(0);
    if (units == 0 || weight_.size(1) == 0) {
      refuse(op, "weight has shape ", shape_text(weight_), "; expected at least one unit and one input");
    }
    check_storage(op, "x", x_);
    check_storage(op, "weight", weight_);
    if (bias_) {
      check_dtype(op, "bias", *bias_, ScalarType::Float);
      check_shape(op, "bias", *bias_, {units});
    }
    if (x_norm_) {
      check_dtype(op, "x_norm", *x_norm_, ScalarType::Float);
      check_shape(op, "x_norm", *x_norm_, {rows});
    }
    x = readable(x_);
    weight = readable(weight_);
    bias = readable(bias_);
    x_norm = readable(x_norm_);
  }
};

struct Outputs {
  Tensor h, goodness, scale, h_norm;
};

/// Outputs are written in place: no copy may stand in for them, so their layout has to be one that
/// kernels can write.
void check_outputs(const char* op, const Inputs& in, const Outputs& out) {
  check_storage(op, "h", out.h);
  check_shape(op, "h", out.h, {in.rows, in.units});
  if (!rows_are_contiguous(out.h) || (in.rows > 1 && out.h.stride(0) < in.units)) {
    refuse(op,
           "h has strides that the kernel cannot write in place; pass a tensor with contiguous "
           "rows that do not overlap");
  }
  const std::pair<const char*, const Tensor*> vectors[] = {
      {"goodness", &out.goodness}, {"scale", &out.scale}, {"h_norm", &out.h_norm}};
  for (const auto& [name, t] : vectors) {
    check_dtype(op, name, *t, ScalarType::Float);
    check_shape(op, name, *t, {in.rows});
    if (!rows_are_contiguous(*t)) refuse(op, name, " is not contiguous; it is written in place");
  }
}

void launch(LaunchScope& scope, const Inputs& in, const Outputs& out) {
  scope.use("x", in.x, Access::kRead);
  scope.use("weight", in.weight, Access::kRead);
  if (in.bias) scope.use("bias", *in.bias, Access::kRead);
  if (in.x_norm) scope.use("x_norm", *in.x_norm, Access::kRead);
  scope.use("h", out.h, Access::kWrite);
  scope.use("goodness", out.goodness, Access::kWrite);
  scope.use("scale", out.scale, Access::kWrite);
  scope.use("h_norm", out.h_norm, Access::kWrite);

  cuda::LayerForward layer;
  layer.x = in.x.const_data_ptr();
  layer.weight = in.weight.const_data_ptr();
  layer.bias = data_or_null(in.bias);
  layer.x_norm = data_or_null(in.x_norm);
  layer.h = out.h.mutable_data_ptr();
  layer.goodness = out.goodness.mutable_data_ptr<float>();
  layer.scale = out.scale.mutable_data_ptr<float>();
  layer.h_norm = out.h_norm.mutable_data_ptr<float>();
  layer.x_pitch = pitch(in.x);
  layer.weight_pitch = pitch(in.weight);
  layer.h_pitch = pitch(out.h);
  layer.rows = in.rows;
  layer.units = in.units;
  layer.inputs = in.x.size(1);
  layer.kind = in.kind;

  const cuda::LayerForwardPlan plan = cuda::plan_layer_forward(layer, scope.device());
  // From torch's allocator: freed when this returns, and handed out again only to later work on the
  // same stream.
  const Tensor workspace =
      torch::stable::new_empty(in.x, {static_cast<int64_t>(plan.workspace_floats)}, ScalarType::Float);
  scope.use("workspace", workspace, Access::kWrite);
  cuda::launch_layer_forward(layer, plan, workspace.mutable_data_ptr<float>(), scope.device(), scope.stream());
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_forward(const Tensor& x, const Tensor& weight,
                                                         const std::optional<Tensor>& bias,
                                                         const std::optional<Tensor>& x_norm, const std::string& norm,
                                                         double eps, const std::string& goodness) {
  const char* op = "layer_forward";
  LaunchScope scope(op, "x", x);
  const Inputs in(op, x, weight, bias, x_norm, parse_kind(op, norm, eps, goodness));
  const auto row_values = [&] { return torch::stable::new_empty(x, {in.rows}, ScalarType::Float); };
  const Outputs out = {torch::stable::new_empty(x, {in.rows, in.units}), row_values(), row_values(), row_values()};
  launch(scope, in, out);
  return {out.h, out.goodness, out.scale, out.h_norm};
}

void layer_forward_(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                    const std::optional<Tensor>& x_norm, const Tensor& h, const Tensor& goodness, const Tensor& scale,
                    const Tensor& h_norm, const std::string& norm, double eps, const std::string& goodness_kind) {
  const char* op = "layer_forward_";
  LaunchScope scope(op, "x", x);
  const Inputs in(op, x, weight, bias, x_norm, parse_kind(op, norm, eps, goodness_kind));
  const Outputs out = {h, goodness, scale, h_norm};
  check_outputs(op, in, out);
  launch(scope, in, out);
}

}  // namespace ffkern::cuda_ops
