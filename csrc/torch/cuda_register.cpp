// Gives the CUDA operations to the dispatcher. The schemas are defined with the CPU operations.
#include "cuda_ops.h"

STABLE_TORCH_LIBRARY_IMPL(ffkern, CUDA, m) { ffkern::cuda_ops::implement(m); }
