// What a step of a whole network (network.h, in cuda_layer.cpp) takes from the other files of CUDA operations.
#pragma once
#include <string>
#include <vector>

#include "checks.h"

namespace ffkern::binding {

struct OnCudaElsewhere {
  // cuda_head.cpp
  static Tensor head_forward(std::vector<Tensor> h, std::vector<Tensor> h_norm, const Tensor& weight,
                             const MaybeTensor& bias, std::string norm, double eps);
  static Tensor head_step(std::vector<Tensor> h, std::vector<Tensor> h_norm, const Tensor& labels, const Tensor& weight,
                          const MaybeTensor& bias, const Tensor& weight_state, const Tensor& bias_state,
                          const Tensor& step, const Tensor& lr, const Tensor& stats, std::string norm, double eps,
                          std::string optimiser, std::vector<double> hyper);
  // cuda_labels.cpp
  static Tensor draw_hard(const char* op, const Tensor& logits, const Tensor& labels, const Tensor& u,
                          const MaybeTensor& given);
};

}  // namespace ffkern::binding
