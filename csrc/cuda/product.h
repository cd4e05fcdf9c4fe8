// The two products of a layer: what device code and launch code agree on. Host and device, no CUDA headers.
//
//   forward    z [R, M]  = x [R, K] W [M, K]^T        rows of both operands run along the depth of the product
//   gradient   dW [M, K] = (f h [R, M])^T x [R, K]    rows of both operands lie across it
#pragma once
#include <cstdint>

#include "../core/types.h"

namespace ffkern::cuda {

/// Arithmetic of a product. The sums are float32 in all of them.
enum class Product : int {
  kBf16 = 0,    // bfloat16 operands on the tensor cores
  kF16 = 1,     // float16 operands on the tensor cores
  kTf32 = 2,    // float32 operands rounded to tf32 (10 bits of mantissa)
  kTf32x3 = 3,  // float32 operands split in two tf32 each, three products: nearly float32
  kF32 = 4,     // float32 operands, fused multiply-adds
};

constexpr Storage storage_of(Product product) {
  return product == Product::kBf16  ? Storage::kBfloat16
         : product == Product::kF16 ? Storage::kFloat16
                                    : Storage::kFloat32;
}

/// Shape of one instance of a product kernel; pipeline.cuh has the picture.
///
/// @tparam kElementBytes_ bytes of an operand's element
/// @tparam kTileM_     rows of the result that a block computes
/// @tparam kTileN_     columns of the result that a block computes
/// @tparam kTileK_     depth of a stage
/// @tparam kStages_    stages of the ring: one is multiplied while the others are on their way
/// @tparam kWarpsM_    warps along the rows of the tile
/// @tparam kWarpsN_    warps along its columns
/// @tparam kCopyBytes_ bytes of one copy from global memory, which the operands and their pitches must be aligned to.
///                     16, 8, 4: asynchronous. 2: through registers, for odd pitches
/// @tparam kMinBlocks_ blocks that must fit on a multiprocessor: limits a thread's registers to
///                     65536 / (threads * blocks)
template <int kElementBytes_, int kTileM_, int kTileN_, int kTileK_, int kStages_, int kWarpsM_, int kWarpsN_,
          int kCopyBytes_, int kMinBlocks_>
struct Tile {
  static constexpr int kElementBytes = kElementBytes_;
  static constexpr int kTileM = kTileM_, kTileN = kTileN_, kTileK = kTileK_, kStages = kStages_;
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kCopyBytes = kCopyBytes_, kMinBlocks = kMinBlocks_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kWarpTileM = kTileM / kWarpsM, kWarpTileN = kTileN / kWarpsN;
  static constexpr int kFragmentsM = kWarpTileM / 16, kFragmentsN = kWarpTileN / 8;  // of 16 x 8 results
  static constexpr int kDepth = 32 / kElementBytes;                                  // of one step: 32 bytes
  static constexpr int kSteps = kTileK / kDepth;
  // Of 128 bytes over the banks of shared memory for 32 bytes of depth: copies, and fragments of both operands.
  static constexpr int kPasses = (kTileM + kTileN) / 4 + kWarpsM * kWarpsN * (kWarpTileM + kWarpTileN) / 4;

  static_assert(kElementBytes == 2 || kElementBytes == 4, "operands are 2 or 4 bytes wide");
  static_assert(kTileK * kElementBytes == 64 || kTileK * kElementBytes == 128, "the swizzle is derived for these");
  static_assert(kTileM * kElementBytes >= 128 && kTileN * kElementBytes >= 128, "the swizzle is derived for these");
  static_assert(kStages >= 2, "one stage is read while another is filled");
  static_assert(kTileM % kWarpsM == 0 && kWarpTileM % 16 == 0, "a matrix instruction has 16 rows");
  static_assert(kTileN % kWarpsN == 0 && kWarpTileN % 16 == 0, "one ldmatrix.x4 loads two tiles of 8 columns");
  static_assert(kTileM <= kThreads && 2 * kTileK <= kThreads, "one thread finishes one row, or brings one factor");
  static_assert(kCopyBytes == 16 || kCopyBytes == 8 || kCopyBytes == 4 || kCopyBytes == 2, "no such copy");

  static constexpr int kTileBytesM = kTileM * kTileK * kElementBytes;
  static constexpr int kTileBytesN = kTileN * kTileK * kElementBytes;
  static constexpr int kStageBytes = kTileBytesM + kTileBytesN;

  // The forward product, once it is done, uses the same memory for the tile of h on its way out, and after it for row
  // values: norm, scale, label, its value, and two sums a row and column of warps. Padding shifts the rows of h by four
  // banks, or by eight where pairs of floats are stored, so that the rows a warp writes at once do not collide.
  static constexpr int kStagingPitch = kTileN * kElementBytes + (kElementBytes == 2 ? 16 : 32);
  static constexpr int kRowValues = kTileM * kStagingPitch;
  static constexpr int kEpilogueBytes = kRowValues + (4 + 2 * kWarpsN) * kTileM * 4;
  static constexpr int kForwardBytes = kStages * kStageBytes > kEpilogueBytes ? kStages * kStageBytes : kEpilogueBytes;

  // The gradient's stage carries two factors a row besides the tiles.
  static constexpr int kFactorBytes = 2 * kTileK * 4;
  static constexpr int kGradientStageBytes = kStageBytes + kFactorBytes;
  static constexpr int kSumsPitch = kTileN * 4 + 32;  // of the tile of dW on its way out
  static constexpr int kGradientBytes =
      kStages * kGradientStageBytes > kTileM* kSumsPitch ? kStages * kGradientStageBytes : kTileM * kSumsPitch;
};

// The compiled instances: X(name, tile M, N, K, stages, warps M, N, copy bytes, blocks a multiprocessor), from the
// largest tile and the widest copies down. The large tile reads each operand least often; the small one fills a GPU
// with the batches that layers train on. Narrow copies serve rows that are not aligned to 16 bytes, such as 500 units
// of bfloat16 (8) or an odd view (2, or 4 in float32): the documented slower path.
#define FFKERN_TILES_16BIT(X)                        \
  X(128x128x32_s4_a16, 128, 128, 32, 4, 2, 4, 16, 1) \
  X(64x64x64_s3_a16, 64, 64, 64, 3, 2, 2, 16, 3)     \
  X(64x64x64_s3_a8, 64, 64, 64, 3, 2, 2, 8, 3)       \
  X(64x64x64_s3_a2, 64, 64, 64, 3, 2, 2, 2, 3)
#define FFKERN_TILES_32BIT(X)                        \
  X(128x128x16_s4_a16, 128, 128, 16, 4, 2, 4, 16, 1) \
  X(64x64x32_s3_a16, 64, 64, 32, 3, 2, 2, 16, 2)     \
  X(64x64x32_s3_a4, 64, 64, 32, 3, 2, 2, 4, 2)

/// Argument of the forward kernels, passed by value. Pitches are distances between rows in elements.
///
/// Rows of x are images; with label variants each gives `variants` rows of activities, row i * image_step +
/// v * variant_step, and the first `classes` inputs of x count as zero: the label stands there.
struct ForwardParams {
  const void* x = nullptr;          // [images, inputs]
  const void* weight = nullptr;     // [units, inputs]
  const float* bias = nullptr;      // [units] or null
  const float* x_norm = nullptr;    // [images] L2 norms of the rows of x, or null: computed from the tiles
  float* base = nullptr;            // [images, units] the bare product: then nothing else but rest_norm is written
  float* rest_norm = nullptr;       // [images]
  void* h = nullptr;                // [rows, units], or null: only sums are wanted
  float* scale = nullptr;           // [rows] or null
  float* partial_sq = nullptr;      // [tiles_n, rows] sums of h^2 over one column tile
  float* partial_sum = nullptr;     // [tiles_n, rows] sums of h, or null where the goodness needs none
  const float* columns = nullptr;   // [classes + 1, units] label columns of the weights and their sum
  const int64_t* labels = nullptr;  // [variants, images]; null: variant v has label v
  const float* overlay = nullptr;   // [2] what a label, and what the neutral label, puts into its inputs
  int64_t x_pitch = 0, weight_pitch = 0, h_pitch = 0;
  int64_t image_step = 1, variant_step = 0;
  int images = 0, units = 0, inputs = 0;
  int classes = 0, variants = 1;
  int tiles_m = 0, tiles_n = 0;
  int store_bytes = 2;  // widest access that every row of h is aligned to: 16, 8, 4 or 2
  LayerKind kind;
};

/// Where a gradient goes: into the weights by the optimiser, or out as it is.
struct GradientTarget {
  float* weight = nullptr;  // [units, inputs] float32 master weights, or null with dweight
  float* m = nullptr;       // state, as weight
  float* v = nullptr;       // or null with one slot
  void* low = nullptr;      // [units, inputs] copy of the weights that 2-byte products read, or null
  Storage low_storage = Storage::kBfloat16;
  float* bias = nullptr;  // [units] or null
  float* bias_m = nullptr;
  float* bias_v = nullptr;
  const UpdateRule* rules = nullptr;  // [2]
  float* dweight = nullptr;           // [units, inputs] the plain gradient, instead of an update
  float* dbias = nullptr;             // [units]
  // Label columns: their gradients are sums of their own, over the rows with that label.
  int classes = 0;
  const float* overlay = nullptr;      // [2]
  const float* column_sums = nullptr;  // [slices, classes + 2, units]: of the bias, of each label, of the neutral one
  int slices = 0;
  const float* peer = nullptr;       // [units] peer term that `positives` rows add to dbias each, or null
  const float* positives = nullptr;  // [1]
  int units = 0, inputs = 0;
};

/// Argument of the gradient kernels.
struct GradientParams {
  const void* h = nullptr;             // [rows, units] activities, or the operand itself where factor is null
  const void* x = nullptr;             // [rows, inputs]
  const float* factor = nullptr;       // [rows] r c dg/dh's constant factor
  const float* peer_factor = nullptr;  // [rows] r of positive rows, else 0; null without a peer term
  const float* peer = nullptr;         // [units]
  const float* power = nullptr;        // [2] power of two on the factors and its inverse, or null
  float* partial = nullptr;            // [splits, units, inputs]; null: the target is finished here
  // The rows that still teach, gathered (lessons.h); kept null, or less than 0 on the device: all rows, as above.
  const int* kept = nullptr;                // [1] rows of these
  const void* kept_h = nullptr;             // [kept, units]
  const void* kept_x = nullptr;             // [kept, inputs]
  const float* kept_factor = nullptr;       // [kept]
  const float* kept_peer_factor = nullptr;  // [kept]
  int64_t kept_h_pitch = 0, kept_x_pitch = 0;
  int64_t h_pitch = 0, x_pitch = 0;
  int rows = 0;
  int split_rows = 0;  // rows of one split, a multiple of kTileK
  int tiles_m = 0, tiles_n = 0;
  bool mask = false;  // the operand is f [h > 0] instead of f h
  bool wide = false;  // four neighbours of the target and of the parts can be accessed at once
  GradientTarget target;
};

}  // namespace ffkern::cuda
