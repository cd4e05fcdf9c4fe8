// Argument checks and small tensor helpers. Every refusal names the operation, the argument, what it was and what it
// should be.
#pragma once
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <string>
#include <vector>

#include "core/types.h"
#include "frontend.h"

namespace ffkern::binding {

using frontend::MaybeTensor;
using frontend::ScalarType;
using frontend::Tensor;

template <class... Parts>
[[noreturn]] void refuse(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << frontend::full_name(op) << ": ";
  (text << ... << parts);
  frontend::refuse(text.str());
}

inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < shape.size(); ++i) text << (i ? ", " : "") << shape[i];
  text << ']';
  return text.str();
}

inline std::string shape_text(const Tensor& t) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < t.dim(); ++i) shape.push_back(t.size(i));
  return shape_text(shape);
}

inline const char* dtype_text(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    default:
      return "another dtype";
  }
}

/// Refuses unless the tensor has this shape; -1 stands for any size.
inline void check_shape(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
  bool ok = t.dim() == static_cast<int64_t>(shape.size());
  int64_t d = 0;
  for (int64_t size : shape) {
    ok = ok && (size < 0 || t.size(d) == size);
    ++d;
  }
  if (ok) return;
  std::ostringstream wanted;
  for (int64_t size : shape) {
    wanted << (wanted.tellp() > 0 ? ", " : "");
    if (size < 0) {
      wanted << '*';
    } else {
      wanted << size;
    }
  }
  refuse(op, name, " has shape ", shape_text(t), "; expected [", wanted.str(), "]");
}

/// Refuses a tensor that cannot be written in place: no copy may stand in for it.
inline void check_in_place(const char* op, const char* name, const Tensor& t) {
  if (!t.is_contiguous()) refuse(op, name, " is not contiguous; it is updated in place, so pass a contiguous tensor");
  if (!frontend::writable(t)) refuse(op, name, " is read-only; it is updated in place");
}

/// Refuses an output whose memory an input shares: kernels read the one while they write the other. Views with gaps may
/// lie between each other's rows and are not looked at.
inline void check_apart(const char* op, const char* name, const Tensor& out, const char* other, const Tensor& in) {
  if (!out.is_contiguous() || !in.is_contiguous()) return;
  const auto begin = [](const Tensor& t) { return static_cast<const char*>(t.const_data_ptr()); };
  const auto end = [&](const Tensor& t) { return begin(t) + t.numel() * static_cast<int64_t>(t.element_size()); };
  if (begin(out) < end(in) && begin(in) < end(out)) {
    refuse(op, name, " shares memory with ", other, "; expected a tensor of its own: it is written while ", other,
           " is read");
  }
}

inline void check_dtype(const char* op, const char* name, const Tensor& t, ScalarType wanted) {
  if (t.scalar_type() != wanted) {
    refuse(op, name, " is ", dtype_text(t.scalar_type()), "; expected ", dtype_text(wanted));
  }
}

/// Refuses anything but the dtypes that rows and weights may be stored in.
inline void check_float(const char* op, const char* name, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  if (type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half) return;
  refuse(op, name, " is ", dtype_text(type),
         "; expected float32, bfloat16 or float16 (ffkern.reference computes in float64)");
}

inline Norm parse_norm(const char* op, const std::string& text, const char* name = "norm") {
  if (text == "l2") return Norm::kL2;
  if (text == "rms") return Norm::kRms;
  if (text == "none") return Norm::kNone;
  refuse(op, name, " is '", text, "'; expected 'l2', 'rms' or 'none'");
}

inline Goodness parse_goodness(const char* op, const std::string& text) {
  if (text == "sum_sq") return Goodness::kSumSq;
  if (text == "mean_sq") return Goodness::kMeanSq;
  if (text == "neg_sum_sq") return Goodness::kNegSumSq;
  if (text == "neg_mean_sq") return Goodness::kNegMeanSq;
  if (text == "sum_abs") return Goodness::kSumAbs;
  refuse(op, "goodness is '", text, "'; expected 'sum_sq', 'mean_sq', 'neg_sum_sq', 'neg_mean_sq' or 'sum_abs'");
}

inline LayerKind parse_kind(const char* op, const std::string& norm, double eps, const std::string& goodness) {
  if (!(eps >= 0)) refuse(op, "eps is ", eps, "; expected a number >= 0");
  return {parse_norm(op, norm), static_cast<float>(eps), parse_goodness(op, goodness)};
}

inline Optimiser parse_optimiser(const char* op, const std::string& text) {
  if (text == "sgd") return Optimiser::kSgd;
  if (text == "ema") return Optimiser::kEma;
  if (text == "adam") return Optimiser::kAdam;
  if (text == "adamw") return Optimiser::kAdamW;
  refuse(op, "optimiser is '", text, "'; expected 'sgd', 'ema', 'adam' or 'adamw'");
}

inline int64_t checked_classes(const char* op, int64_t classes, int64_t inputs) {
  if (classes < 1 || classes >= inputs) {
    refuse(op, "classes is ", classes, "; expected 1 to ", inputs - 1, ", fewer than the ", inputs,
           " inputs (no room for the label in the data? Put it before them: label='concat', concat_label)");
  }
  return classes;
}

inline PeerParams peer_params(const char* op, double strength, double momentum) {
  if (!std::isfinite(strength)) refuse(op, "peer strength is ", strength, "; expected a finite number");
  if (!(momentum >= 0 && momentum <= 1)) refuse(op, "peer momentum is ", momentum, "; expected 0 to 1");
  return {static_cast<float>(strength), static_cast<float>(momentum)};
}

inline void check_wrong_exists(const char* op, int64_t classes) {
  if (classes < 2) refuse(op, "classes is ", classes, "; expected at least 2: with one class no label is wrong");
}

/// Labels of label variants: [variants, images].
inline void check_variants(const char* op, const Tensor& labels, int64_t images) {
  if (labels.dim() != 2 || labels.size(1) != images || labels.size(0) < 1) {
    refuse(op, "labels has shape ", shape_text(labels), "; expected [variants, ", images, "]");
  }
}

inline void check_picture(const char* op, int64_t inputs, int64_t height, int64_t width, int64_t blurs) {
  // width <= inputs and height <= inputs / width come first: the product cannot overflow then.
  if (height < 1 || width < 1 || height > inputs / width || inputs % (height * width) != 0) {
    refuse(op, "height is ", height, " and width ", width, "; expected height * width to divide the ", inputs,
           " inputs of x (channels * height * width)");
  }
  if (blurs < 0) refuse(op, "blurs is ", blurs, "; expected a number >= 0");
}

/// Units of activities that a gradient is asked of, with x.
inline int64_t gradient_units(const char* op, const Tensor& x, const Tensor& h) {
  if (x.dim() != 2 || h.dim() != 2 || x.size(1) < 1 || h.size(1) < 1) {
    refuse(op, "x has shape ", shape_text(x), " and h ", shape_text(h), "; expected matrices [rows, K] and [rows, M]");
  }
  return h.size(1);
}

inline LayerKind gradient_kind(const char* op, const std::string& goodness) {
  return {Norm::kNone, 0.0f, parse_goodness(op, goodness)};
}

inline void check_rows(const char* op, const char* name, int64_t rows) {
  if (rows < 1) refuse(op, name, " has no rows; expected at least one row to learn from");
}

inline void check_peer_mean(const char* op, double strength, const MaybeTensor& mean) {
  if (strength != 0 && !mean.has_value()) {
    refuse(op, "peer_strength is ", strength, " but peer_mean is None; expected both");
  }
}

/// Weights and biases of a network: one each a layer, and the units of a layer are the inputs of the next.
inline void check_stack(const char* op, const std::vector<Tensor>& weights, const std::vector<MaybeTensor>& biases) {
  if (weights.empty()) refuse(op, "weights is empty; expected one matrix per layer");
  if (biases.size() != weights.size()) {
    refuse(op, "biases has ", biases.size(), " entries; expected ", weights.size(), ", one per layer (None for none)");
  }
  for (size_t l = 1; l < weights.size(); ++l) {
    if (weights[l - 1].dim() != 2 || weights[l].dim() != 2) continue;  // refused by what reads matrices
    if (weights[l].size(1) == weights[l - 1].size(0)) continue;
    refuse(op, "weights[", l, "] has shape ", shape_text(weights[l]), "; expected [*, ", weights[l - 1].size(0),
           "] to match the layer before");
  }
}

/// Activities and norms of the layers that a head reads.
inline void check_layers(const char* op, const std::vector<Tensor>& h, const std::vector<Tensor>& h_norm) {
  if (h.empty() || h.size() != h_norm.size()) {
    refuse(op, "h has ", h.size(), " and h_norm ", h_norm.size(), " tensors; expected one of each per layer");
  }
}

/// A label is written into the inputs, or into `extra` ones before them.
inline void check_label_room(const char* op, int64_t classes, int64_t inputs, int64_t extra) {
  if (classes < 1 || (extra == 0 && classes > inputs)) {
    refuse(op, "classes is ", classes, "; expected 1 to ", inputs, ", the number of inputs");
  }
}

inline void check_weight(const char* op, const Tensor& weight) {
  if (weight.size(0) < 1 || weight.size(1) < 1) {
    refuse(op, "weight has shape ", shape_text(weight), "; expected at least one unit and one input");
  }
}

/// A layer of these sizes alone, for asking how much workspace it wants.
template <class Layer>
Layer sizes(const char* op, const Tensor& weight, int64_t images, int64_t classes, int64_t variants) {
  if (weight.dim() != 2) refuse(op, "weight has shape ", shape_text(weight), "; expected a matrix [rows, columns]");
  check_weight(op, weight);
  Layer layer;
  layer.images = images;
  layer.inputs = weight.size(1);
  layer.units = weight.size(0);
  layer.classes = classes;
  layer.variants = variants;
  return layer;
}

inline LossParams parse_loss(const char* op, double threshold, double temperature) {
  const LossParams loss = {static_cast<float>(threshold), static_cast<float>(temperature)};
  if (!std::isfinite(loss.threshold)) refuse(op, "threshold is ", threshold, "; expected a finite number");
  if (!(loss.temperature > 0)) refuse(op, "temperature is ", temperature, "; expected a number > 0");
  return loss;
}

/// The statistics that an update takes rows from tell positive from negative ones.
inline void check_counts(const char* op, const MaybeTensor& stats, const MaybeTensor& sign) {
  if (stats.has_value() && !sign.has_value()) refuse(op, "stats is given but sign is not; expected both");
}

/// Optimiser and its hyperparameters: beta1 (or momentum), beta2, eps, weight_decay, row_tolerance.
inline OptimiserParams parse_hyper(const char* op, const std::string& optimiser, const std::vector<double>& hyper) {
  OptimiserParams params;
  params.kind = parse_optimiser(op, optimiser);
  if (hyper.size() != 5) {
    refuse(op, "hyper has ", hyper.size(),
           " numbers; expected 5: beta1 (or momentum), beta2, eps, weight_decay, row_tolerance");
  }
  params.beta1 = hyper[0];
  params.beta2 = hyper[1];
  params.eps = hyper[2];
  params.weight_decay = hyper[3];
  params.row_tolerance = hyper[4];
  const auto within = [&](int index, const char* name, double high) {
    if (hyper[index] >= 0 && hyper[index] < high) return;
    refuse(op, "hyper[", index, "] (", name, ") is ", hyper[index], "; expected a number ",
           high == 1 ? "in [0, 1)" : ">= 0");
  };
  within(0, "beta1 or momentum", 1);
  within(1, "beta2", 1);
  within(2, "eps", INFINITY);
  within(3, "weight_decay", INFINITY);
  if (!(params.row_tolerance >= 0 && params.row_tolerance < 1)) {
    refuse(op, "hyper[4] (row_tolerance) is ", params.row_tolerance, "; expected a number in [0, 1)");
  }
  if (params.row_tolerance > 0 && !is_linear(params.kind)) {
    refuse(op, "hyper[4] (row_tolerance) is ", params.row_tolerance, "; expected 0 with ", optimiser,
           ", which rescales small gradients");
  }
  return params;
}

}  // namespace ffkern::binding
