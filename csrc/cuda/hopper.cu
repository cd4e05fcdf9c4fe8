// The products of a layer in 16 bits and tf32 on devices of compute capability 9.0; sm_90a only.
#include "hopper.cuh"

#define FFKERN_HOPPER(kind, params, math, math_name, bytes, instance, n, stages)                             \
  extern "C" __global__ void __launch_bounds__(ffkern::cuda::HopperTile<bytes, n, stages>::kThreads, 1)      \
      ffkern_##kind##_##math_name##_##instance(const __grid_constant__ ffkern::cuda::params p) {             \
    ffkern::cuda::hopper_##kind##_kernel<ffkern::cuda::math, ffkern::cuda::HopperTile<bytes, n, stages>>(p); \
  }
#define FFKERN_BOTH(math, math_name, bytes, instance, n, stages)                     \
  FFKERN_HOPPER(forward, HopperForward, math, math_name, bytes, instance, n, stages) \
  FFKERN_HOPPER(gradient, HopperGradient, math, math_name, bytes, instance, n, stages)
#define FFKERN_16BIT(instance, m, n, k, stages)   \
  FFKERN_BOTH(Bf16, bf16, 2, instance, n, stages) \
  FFKERN_BOTH(F16, f16, 2, instance, n, stages)
#define FFKERN_32BIT(instance, m, n, k, stages) FFKERN_BOTH(Tf32, tf32, 4, instance, n, stages)

FFKERN_HOPPER_16BIT(FFKERN_16BIT)
FFKERN_HOPPER_32BIT(FFKERN_32BIT)
