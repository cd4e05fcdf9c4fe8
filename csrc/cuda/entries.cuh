// Entry points: one kernel an instance and product. Device code only, compiled to a fat binary that images.S embeds.
#pragma once
#include "forward.cuh"
#include "gradient.cuh"

#define FFKERN_ENTRIES(math, math_name, bytes, instance, m, n, k, stages, warps_m, warps_n, copy, blocks)     \
  extern "C" __global__ void __launch_bounds__(32 * (warps_m) * (warps_n), blocks)                            \
      ffkern_forward_##math_name##_##instance(const __grid_constant__ ffkern::cuda::ForwardParams params) {   \
    using namespace ffkern::cuda;                                                                             \
    forward_kernel<math, Tile<bytes, m, n, k, stages, warps_m, warps_n, copy, blocks>>(params);               \
  }                                                                                                           \
  extern "C" __global__ void __launch_bounds__(32 * (warps_m) * (warps_n), blocks)                            \
      ffkern_gradient_##math_name##_##instance(const __grid_constant__ ffkern::cuda::GradientParams params) { \
    using namespace ffkern::cuda;                                                                             \
    gradient_kernel<math, Tile<bytes, m, n, k, stages, warps_m, warps_n, copy, blocks>>(params);              \
  }
