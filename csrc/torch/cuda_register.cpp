// Gives the CUDA operations to the dispatcher. The schemas are defined with the CPU operations.
#include <torch/csrc/stable/library.h>

#include "cuda_ops.h"

STABLE_TORCH_LIBRARY_IMPL(ffkern, CUDA, m) {
  m.impl("layer_forward", TORCH_BOX(&ffkern::cuda_ops::layer_forward));
  m.impl("layer_forward_", TORCH_BOX(&ffkern::cuda_ops::layer_forward_));
}
