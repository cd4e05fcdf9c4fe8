// Labels and hybrid images on CUDA tensors: checks, outputs, and the launch.
#include <tuple>

#include "cuda/labels.h"
#include "cuda_arguments.h"
#include "cuda_network.h"
#include "operations.h"

namespace ffkern::binding {
namespace {

/// Labels, one for each row of x.
Labels row_labels(LaunchScope& scope, const char* op, const Tensor& labels, int64_t rows) {
  check_shape(op, "labels", labels, {rows});
  return Labels(scope, op, "labels", labels);
}

int64_t* label_data(const Tensor& t) { return t.mutable_data_ptr<int64_t>(); }

Tensor place_label(const char* op, const Tensor& x, const Tensor& labels, int64_t classes, const Tensor& overlay,
                   int64_t extra) {
  LaunchScope scope(op, "x", x);
  const Matrix in(scope, op, "x", x);
  check_label_room(op, classes, in.cols, extra);
  const Labels y = row_labels(scope, op, labels, in.rows);
  const Vector values(scope, op, "overlay", overlay, 2);
  const Tensor out = output(scope, "out", x, {in.rows, in.cols + extra}, x.scalar_type());

  cuda::PlaceLabelParams params;
  params.x = in.data;
  params.labels = y.data;
  params.overlay = values.data;
  params.out = out.mutable_data_ptr();
  params.x_pitch = in.pitch;
  params.rows = in.rows;
  params.cols = in.cols;
  params.extra = extra;
  params.classes = classes;
  params.storage = in.storage;
  cuda::place_label(scope.queue(), params);
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
  LaunchScope scope(op, "labels", labels);
  check_wrong_exists(op, classes);
  check_shape(op, "labels", labels, {-1});
  const int64_t rows = labels.size(0);
  const Labels y = row_labels(scope, op, labels, rows);
  const Vector draws(scope, op, "u", u, rows);
  const Tensor out = output(scope, "out", labels, {rows}, ScalarType::Long);
  cuda::wrong_labels(scope.queue(), {y.data, draws.data, label_data(out), rows, classes});
  return out;
}

}  // namespace

/// Into `given`, or a new tensor.
Tensor OnCudaElsewhere::draw_hard(const char* op, const Tensor& logits, const Tensor& labels, const Tensor& u,
                                  const MaybeTensor& given) {
  LaunchScope scope(op, "logits", logits);
  const Matrix in(scope, op, "logits", logits);
  check_wrong_exists(op, in.cols);
  const Labels y = row_labels(scope, op, labels, in.rows);
  const Vector draws(scope, op, "u", u, in.rows);
  const Tensor out = output(scope, "out", given, labels, {in.rows}, ScalarType::Long);
  cuda::hard_labels(scope.queue(),
                    {in.data, y.data, draws.data, label_data(out), in.pitch, in.rows, in.cols, in.storage});
  return out;
}

namespace {

Tensor hard_labels(const Tensor& logits, const Tensor& labels, const Tensor& u) {
  return OnCudaElsewhere::draw_hard("hard_labels", logits, labels, u, std::nullopt);
}

Tensor all_wrong_labels(const Tensor& labels, int64_t classes) {
  const char* op = "all_wrong_labels";
  LaunchScope scope(op, "labels", labels);
  check_wrong_exists(op, classes);
  check_shape(op, "labels", labels, {-1});
  const int64_t rows = labels.size(0);
  const Labels y = row_labels(scope, op, labels, rows);
  const Tensor out = output(scope, "out", labels, {classes - 1, rows}, ScalarType::Long);
  cuda::all_wrong_labels(scope.queue(), {y.data, label_data(out), rows, classes});
  return out;
}

std::tuple<Tensor, Tensor> hybrid_images_(const Tensor& x, const Tensor& other, const Tensor& generator, int64_t height,
                                          int64_t width, int64_t blurs) {
  const char* op = "hybrid_images_";
  LaunchScope scope(op, "x", x);
  const Matrix from(scope, op, "x", x), otherwise(scope, op, "other", other);
  check_dtype(op, "other", other, x.scalar_type());
  check_shape(op, "other", other, {from.rows, from.cols});
  const int64_t inputs = from.cols;
  check_picture(op, inputs, height, width, blurs);

  cuda::HybridParams params;
  params.generator = static_cast<int64_t*>(updated(scope, op, "generator", generator, ScalarType::Long, {2}));
  params.x = from.data;
  params.other = otherwise.data;
  params.x_pitch = from.pitch;
  params.other_pitch = otherwise.pitch;
  params.images = from.rows;
  params.channels = inputs / (height * width);
  params.height = height;
  params.width = width;
  params.blurs = blurs;
  params.element_bytes = storage_bytes(from.storage);
  const Tensor images = output(scope, "images", x, {from.rows, inputs}, x.scalar_type());
  const Tensor mask = output(scope, "mask", x, {from.rows, height * width}, ScalarType::Bool);
  params.out = images.mutable_data_ptr();
  params.mask = static_cast<bool*>(mask.mutable_data_ptr());
  const int64_t floats = cuda::hybrid_floats(scope.queue(), params);
  const Tensor workspace = scratch(scope, x, floats * static_cast<int64_t>(sizeof(float)));
  params.workspace = workspace.mutable_data_ptr<float>();
  cuda::hybrid_images(scope.queue(), params);
  return {images, mask};
}

}  // namespace

void implement_cuda_labels(Library& library) {
  FFKERN_IMPLEMENT(library, overlay_label);
  FFKERN_IMPLEMENT(library, concat_label);
  FFKERN_IMPLEMENT(library, wrong_labels);
  FFKERN_IMPLEMENT(library, hard_labels);
  FFKERN_IMPLEMENT(library, all_wrong_labels);
  FFKERN_IMPLEMENT(library, hybrid_images_);
}

}  // namespace ffkern::binding
