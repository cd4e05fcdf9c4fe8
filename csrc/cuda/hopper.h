// The products of devices of compute capability 9.0: what device code and launch code agree on. hopper.cuh has the
// picture.
#pragma once
#include "product.h"

namespace ffkern::cuda {

/// A matrix as the hardware's copies of boxes (TMA) want it described: cuda.h's CUtensorMap.
struct alignas(64) TensorMap {
  uint64_t opaque[16] = {};
};

constexpr int kPassColumns = 32;  // of a warp's 16 rows on their way out at once

/// Shape of one instance: two warpgroups multiply 64 x kTileN each, a third brings the tiles. A stage is 128 bytes deep
/// in the forward product, whose operands lie along the depth, and as many elements deep in the gradient, whose stages
/// come as boxes of kTileK x kTileK.
///
/// @tparam kElementBytes_ bytes of an operand's element
/// @tparam kTileN_        columns of the result that a block computes: 128 or 256
/// @tparam kStages_       stages of the ring
template <int kElementBytes_, int kTileN_, int kStages_>
struct HopperTile {
  static constexpr int kElementBytes = kElementBytes_, kTileN = kTileN_, kStages = kStages_;
  static constexpr int kConsumers = 2, kThreads = 128 * (1 + kConsumers);
  static constexpr int kTileM = 64 * kConsumers, kTileK = 128 / kElementBytes;
  static constexpr int kSteps = 4;  // of 32 bytes of depth, one wgmma each
  static constexpr int kFragmentsN = kTileN / 8;
  static constexpr int kPasses = (kTileM + kTileN) / 4 + (kTileM + kConsumers * kTileN) / 4;  // as in Tile
  // Registers of a thread: 168 at the start (65536 / 384, by the eight), of which the producers leave most to the
  // others; fewer where they turn boxes, 32 floats a lane.
  static constexpr int kProducerRegisters[2] = {40, 72}, kConsumerRegisters[2] = {232, 216};

  static constexpr int kTileBytesM = kTileM * 128, kTileBytesN = kTileN * 128;
  static constexpr int kStageBytes = kTileBytesM + kTileBytesN;
  static constexpr int kBoxBytes = kTileK * 128;
  static constexpr int kFactorBytes = 2 * kTileK * 4;  // of a gradient: two factors a row
  static constexpr int kStagingBytes = 16 * kPassColumns * 4;
  static constexpr int kStaging = kStages * (kStageBytes + kFactorBytes);
  static constexpr int kBarriers = kStaging + 4 * kConsumers * kStagingBytes;
  static constexpr int kBytes = kBarriers + 3 * kStages * 8;

  static_assert(kTileN == 128 || kTileN == 256, "the columns of a wgmma");
};

// The compiled instances: X(name, tile M, N, K, stages), from the largest tile down. float32 products are tf32.
#define FFKERN_HOPPER_16BIT(X)          \
  X(128x256x64_s4_tma, 128, 256, 64, 4) \
  X(128x128x64_s6_tma, 128, 128, 64, 6)
#define FFKERN_HOPPER_32BIT(X)          \
  X(128x256x32_s4_tma, 128, 256, 32, 4) \
  X(128x128x32_s6_tma, 128, 128, 32, 6)

struct HopperForward {
  TensorMap x, weight;
  ForwardParams p;
};

struct HopperGradient {
  TensorMap h, x, factor, peer_factor;  // the last two only where p has them
  GradientParams p;
};

struct Instance;
struct Queue;

/// Whether boxes of a matrix can be described, which also wants pitches that are multiples of 16 bytes.
bool has_boxes(const void* matrix, int64_t rows, int64_t columns, int64_t pitch);
/// Launches of an instance; params have tiles_m and tiles_n.
void hopper_forward(const Queue&, Product, const Instance&, const ForwardParams&);
void hopper_gradient(const Queue&, Product, const Instance&, const GradientParams&);

}  // namespace ffkern::cuda
