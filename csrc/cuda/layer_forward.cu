// Entry points of the layer's forward pass. Device code only: compiled to a fat binary, which
// images.S embeds.
#include "layer_forward_sm80.cuh"

namespace ffkern::cuda {

#define FFKERN_ENTRY(name, tile_m, tile_n, tile_k, stages, warps_m, warps_n, copy_bytes, blocks)                   \
  extern "C" __global__ void __launch_bounds__(32 * (warps_m) * (warps_n), blocks)                                 \
      ffkern_layer_forward_bf16_##name(const __grid_constant__ LayerForwardParams params) {                        \
    layer_forward<LayerForwardTile<tile_m, tile_n, tile_k, stages, warps_m, warps_n, copy_bytes, blocks>>(params); \
  }
FFKERN_LAYER_FORWARD_INSTANCES(FFKERN_ENTRY)
#undef FFKERN_ENTRY

extern "C" __global__ void __launch_bounds__(kGoodnessThreads)
    ffkern_layer_goodness(const __grid_constant__ LayerGoodnessParams params) {
  layer_goodness(params);
}

}  // namespace ffkern::cuda
