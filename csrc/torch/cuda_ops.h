// The operations that have CUDA kernels, as functions on tensors; cuda_register.cpp gives them to
// the dispatcher.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace ffkern::cuda_ops {

using torch::stable::Tensor;

/// (h, goodness, scale, h_norm) of one layer; x and weight bfloat16, bias and x_norm float32.
std::tuple<Tensor, Tensor, Tensor, Tensor> layer_forward(const Tensor& x, const Tensor& weight,
                                                         const std::optional<Tensor>& bias,
                                                         const std::optional<Tensor>& x_norm, const std::string& norm,
                                                         double eps, const std::string& goodness);

/// The same into the caller's tensors.
void layer_forward_(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                    const std::optional<Tensor>& x_norm, const Tensor& h, const Tensor& goodness, const Tensor& scale,
                    const Tensor& h_norm, const std::string& norm, double eps, const std::string& goodness_kind);

}  // namespace ffkern::cuda_ops
