// The operations, given to a frontend under the names of ffkern/ops.py. They know its tensors only through frontend.h,
// which each has one of: csrc/torch, csrc/python.
#pragma once
#include "frontend.h"

namespace ffkern::binding {

using frontend::Library;

void implement_cpu(Library&);  // cpu_ops.cpp

void implement_cuda_layer(Library&);   // cuda_layer.cpp: forward, variants, loss, gradient, update, step, prediction
void implement_cuda_labels(Library&);  // cuda_labels.cpp: labels in the inputs, wrong labels, hybrid images
void implement_cuda_head(Library&);    // cuda_head.cpp: softmax head

inline void implement_cuda(Library& library) {
  implement_cuda_layer(library);
  implement_cuda_labels(library);
  implement_cuda_head(library);
}

}  // namespace ffkern::binding
