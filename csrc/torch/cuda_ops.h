// The operations that have CUDA kernels, given to a library of the dispatcher under the names of ffkern/ops.py.
#pragma once
#include <torch/csrc/stable/library.h>

namespace ffkern::cuda_ops {

using Library = torch::stable::detail::StableLibrary;

void implement_layer(Library&);   // cuda_layer.cpp: forward, variants, loss, gradient, update, step, prediction
void implement_labels(Library&);  // cuda_labels.cpp: labels in the inputs, wrong labels, hybrid images
void implement_head(Library&);    // cuda_head.cpp: softmax head

inline void implement(Library& library) {
  implement_layer(library);
  implement_labels(library);
  implement_head(library);
}

}  // namespace ffkern::cuda_ops
