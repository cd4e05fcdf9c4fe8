// What the device code and the launch code of the layer's forward pass agree on: the kernel
// argument, the tile shapes and the list of compiled instances. Host and device, no CUDA headers.
#pragma once
#include <cstdint>

#include "../core/types.h"

namespace ffkern::cuda {

/// Argument of the layer_forward kernels, passed by value. Pitches are distances between rows in
/// elements.
struct LayerForwardParams {
  const uint16_t* x = nullptr;       // [rows, inputs] bf16
  const uint16_t* weight = nullptr;  // [units, inputs] bf16
  const float* bias = nullptr;       // [units] or null
  const float* x_norm = nullptr;     // [rows] L2 norms of the rows of x, or null: computed from the tiles
  uint16_t* h = nullptr;             // [rows, units] bf16
  float* scale = nullptr;            // [rows]
  float* partial_sq = nullptr;       // [tiles_n, rows] sums of h^2 over one column tile
  float* partial_sum = nullptr;      // [tiles_n, rows] sums of h, or null where the goodness needs none
  int64_t x_pitch = 0, weight_pitch = 0, h_pitch = 0;
  int rows = 0, units = 0, inputs = 0;
  int tiles_m = 0, tiles_n = 0;
  int store_bytes = 2;  // widest access that every row of h is aligned to: 16, 8, 4 or 2
  LayerKind kind;
};

/// Argument of the layer_goodness kernel, which adds the partial sums of the column tiles.
struct LayerGoodnessParams {
  const float* partial_sq = nullptr;   // [tiles_n, rows]
  const float* partial_sum = nullptr;  // [tiles_n, rows] or null
  float* goodness = nullptr;           // [rows]
  float* h_norm = nullptr;             // [rows]
  int rows = 0, units = 0, tiles_n = 0;
  Goodness kind = Goodness::kMeanSq;
};
constexpr int kGoodnessThreads = 256;

/// Shape of one instance of the kernel; see layer_forward_sm80.cuh for the picture.
///
/// @tparam kTileM_     rows of x (and of h) that a block computes
/// @tparam kTileN_     units (columns of h) that a block computes
/// @tparam kTileK_     inputs of a stage: 32 or 64, half a line of shared memory or a whole one
/// @tparam kStages_    stages of the ring: one is multiplied while the others are on their way
/// @tparam kWarpsM_    warps along the rows of the tile
/// @tparam kWarpsN_    warps along the units of the tile
/// @tparam kCopyBytes_ bytes of one copy from global memory, which x, weight and their pitches must
///                     be aligned to. 16, 8, 4: cp.async. 2: through registers, for odd pitches
/// @tparam kMinBlocks_ blocks that must fit on a multiprocessor: limits a thread's registers to
///                     65536 / (threads * blocks)
template <int kTileM_, int kTileN_, int kTileK_, int kStages_, int kWarpsM_, int kWarpsN_, int kCopyBytes_,
          int kMinBlocks_>
struct LayerForwardTile {
  static constexpr int kTileM = kTileM_, kTileN = kTileN_, kTileK = kTileK_, kStages = kStages_;
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kCopyBytes = kCopyBytes_, kMinBlocks = kMinBlocks_;
  static constexpr int kWarps = kWarpsM * kWarpsN;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpTileM = kTileM / kWarpsM, kWarpTileN = kTileN / kWarpsN;

  static_assert(kTileK == 32 || kTileK == 64, "the swizzle is derived for rows of 64 and 128 bytes");
  static_assert(kStages >= 2, "one stage is read while another is filled");
  static_assert(kTileM % kWarpsM == 0 && kWarpTileM % 16 == 0, "mma.m16n8k16 multiplies 16 rows");
  static_assert(kTileN % kWarpsN == 0 && kWarpTileN % 16 == 0, "one ldmatrix.x4 loads two tiles of 8 units");
  static_assert(kTileM <= kThreads, "one thread finishes one row");
  static_assert(kCopyBytes == 16 || kCopyBytes == 8 || kCopyBytes == 4 || kCopyBytes == 2, "no such copy");

  // Shared memory: kStages x (tile of x, tile of weight). Once the products are done the same
  // memory holds the tile of h on its way out, then the row scales, then two sums a row and column
  // of warps.
  static constexpr int kRowBytes = kTileK * 2;
  static constexpr int kTileBytesM = kTileM * kRowBytes, kTileBytesN = kTileN * kRowBytes;
  static constexpr int kStageBytes = kTileBytesM + kTileBytesN;
  // 16 bytes of padding shift the rows of h by four banks, so that the eight rows a warp writes at
  // once do not collide.
  static constexpr int kStagingPitch = kTileN * 2 + 16;
  static constexpr int kScaleOffset = kTileM * kStagingPitch;
  static constexpr int kSumsOffset = kScaleOffset + kTileM * 4;
  static constexpr int kEpilogueBytes = kSumsOffset + 2 * kWarpsN * kTileM * 4;
  static constexpr int kPipelineBytes = kStages * kStageBytes;
  static constexpr int kSharedBytes = kPipelineBytes > kEpilogueBytes ? kPipelineBytes : kEpilogueBytes;
};

// The compiled instances: X(name, tile M, N, K, stages, warps M, N, copy bytes, blocks a
// multiprocessor). The large tile reads each operand least often; the small one fills a GPU with
// the batches that layers train on, and also serves rows that are not aligned to 16 bytes.
#define FFKERN_LAYER_FORWARD_INSTANCES(X)            \
  X(128x128x32_s4_a16, 128, 128, 32, 4, 2, 4, 16, 2) \
  X(64x64x64_s3_a16, 64, 64, 64, 3, 2, 2, 16, 4)     \
  X(64x64x64_s3_a8, 64, 64, 64, 3, 2, 2, 8, 4)       \
  X(64x64x64_s3_a4, 64, 64, 64, 3, 2, 2, 4, 4)       \
  X(64x64x64_s3_a2, 64, 64, 64, 3, 2, 2, 2, 3)

}  // namespace ffkern::cuda
