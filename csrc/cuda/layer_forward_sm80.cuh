// Forward pass of one layer on the tensor cores of sm_80 and later: one product, and everything
// else in its epilogue.
//
// What is computed, for rows x_i (bf16), weight rows w_j (bf16) and biases b_j (float32 or none):
//
//     n_i  = ||x_i||  or  ||x_i|| / sqrt(K)        from the tiles of x as they pass, or given
//     r_i  = 1 / (n_i + eps), or 1 without norm    written by the blocks of the first column
//     z_ij = r_i (x_i . w_j) + b_j                 the scale commutes with the product
//     h_ij = z_ij < 0 ? 0 : z_ij                   stored as bf16; a NaN stays a NaN
//     s_it = sum of h_ij^2 over column tile t      of h before it is rounded; likewise sum of h_ij
//
// A second, tiny kernel adds s_it over t, in order, and writes goodness and ||h_i||. Blocks of one
// launch never communicate and no float is added atomically: the same inputs give the same bits,
// whatever the schedule.
//
//                        units (kTileN a block)
//                   w_0 ....... w_63 | w_64 ...
//                 +---------+--------+----         A block computes kTileM x kTileN of h with
//        x_0      | warp 0  | warp 1 |             kWarpsM x kWarpsN warps, each of which holds
//   rows  .       |         |        |             kWarpTileM x kWarpTileN sums in registers. It
//   (kTileM       +---------+--------+  block 1    walks along K in steps of kTileK through a ring
//   a block)      | warp 2  | warp 3 |             of kStages stages in shared memory:
//        x_63     |         |        |
//                 +---------+--------+----           step    t           t + 1      t + 2
//        x_64     |     block 2      |               stage   multiplied  arriving   refilled
//
// A step: wait until this thread's copies of step t have landed; barrier (now everybody's have, and
// everybody has left step t - 1); start the copies of step t + kStages - 1 into the stage that step
// t - 1 has left; multiply. One barrier a step is enough, because the stage that is refilled is
// never one that is being read.
//
// Shared memory without bank conflicts. A row of a tile is kTileK / 8 chunks of 16 bytes. A line of
// all 32 banks holds eight chunks, that is 64 / kTileK rows. Chunk c of row i is kept in place
// c ^ (i / rows a line):
//
//     kTileK = 64   row 0      0 1 2 3 4 5 6 7     ldmatrix reads chunk c of eight consecutive
//                   row 1      1 0 3 2 5 4 7 6     rows at a time; these lie in eight different
//                   row 2      2 3 0 1 6 7 4 5     columns of the picture, so in every bank once.
//                   ...                            Copies fill whole rows of the picture, whose
//     kTileK = 32   rows 0, 1  0 1 2 3 | 0 1 2 3   chunks are only permuted.
//                   rows 2, 3  1 0 3 2 | 1 0 3 2
//                   ...
//
// Operations: R K M multiply-adds for R rows and M units. Bytes from L2: 2 K (kTileM + kTileN) a
// tile, so 2 R K M (1 / kTileM + 1 / kTileN) in all: 64 FLOP a byte for tiles of 128 x 128, 32 for
// 64 x 64. From global memory, each tile cached once read: 2 (R K + M K). Written: 2 R M for h and
// 4 R (1 + tiles_n) for scales and sums. In shared memory a warp of the 64 x 64 tile does 8 mma for
// every 4 ldmatrix.x4, one of the 128 x 128 tile 16 for 6.
//
// The squares for ||x_i|| are taken from the fragments of x that ldmatrix has just brought into
// registers: no extra memory access. Warps beside each other hold the same fragments, so each
// squares every kWarpsN-th of them.
//
// Numerics. Products and squares of bf16 are exact in float32. The tensor core adds products in
// float32 with truncation of its own, for which K 2^-23 sum |x w| is a bound. A row's sums are
// added in the order: own fragments along K, the four lanes of a quad, warps from left to right,
// tiles from left to right. ||x_i|| overflows where its square does, at 1.8e19. A zero row has r =
// 1 / eps and h = relu(b). Rows, units and inputs beyond the matrix are filled with zeros by the
// copies, and units beyond it are left out of the sums explicitly, since 0 NaN and 0 inf are not 0.
#pragma once
#include "../core/math.h"
#include "layer_forward_tile.h"
#include "mma_sm80.cuh"

namespace ffkern::cuda {

/// Byte offset of byte `byte` of row `row` in a tile in shared memory: rows of kTileK elements,
/// chunks of 16 bytes exchanged within a line as pictured above.
template <class Tile>
__device__ __forceinline__ int tile_offset(int row, int byte) {
  constexpr int kChunks = Tile::kRowBytes / 16;
  constexpr int kRowsPerLine = 8 / kChunks;
  const int chunk = byte / 16 ^ row / kRowsPerLine % kChunks;
  return row * Tile::kRowBytes + chunk * 16 + byte % 16;
}

/// Copies tiles of `kRows` x kTileK from a matrix in global memory to a stage in shared memory, all
/// threads together. Neighbouring threads copy neighbouring pieces of a row, so a warp reads whole
/// sectors.
///
/// @tparam Tile  the instance's LayerForwardTile
/// @tparam kRows rows of the tile
template <class Tile, int kRows>
class TileLoader {
 public:
  __device__ __forceinline__ TileLoader(const uint16_t* matrix, int64_t pitch, int first_row, int rows, int inputs)
      : row_(threadIdx.x / kPiecesPerRow),
        column_(threadIdx.x % kPiecesPerRow * kPieceElements),
        rows_left_(rows - first_row),
        inputs_(inputs),
        source_(matrix + (first_row + row_) * pitch + column_),
        step_(kRowStep * pitch) {}

  /// Starts (kCopyBytes = 2: does) the copy of the tile whose first input is `k`. Beyond the matrix
  /// it writes zeros.
  __device__ __forceinline__ void load(uint32_t stage, int k) const {
    const int left = inputs_ - k - column_;  // elements from this piece on; negative beyond the row
    const int elements = left < 0 ? 0 : left < kPieceElements ? left : kPieceElements;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int row = row_ + i * kRowStep;
      const uint32_t destination = stage + tile_offset<Tile>(row, column_ * 2);
      const uint16_t* source = source_ + i * step_ + k;
      const int valid = row < rows_left_ ? elements : 0;
      if constexpr (Tile::kCopyBytes >= 4) {
        copy_async<Tile::kCopyBytes>(destination, source, valid * 2);
      } else {
        store_shared(destination, gather(source, valid));
      }
    }
  }

 private:
  static constexpr int kPieceBytes = Tile::kCopyBytes >= 4 ? Tile::kCopyBytes : 16;
  static constexpr int kPieceElements = kPieceBytes / 2;
  static constexpr int kPiecesPerRow = Tile::kRowBytes / kPieceBytes;
  static constexpr int kRowStep = Tile::kThreads / kPiecesPerRow;
  static constexpr int kPieces = kRows / kRowStep;
  static_assert(Tile::kThreads % kPiecesPerRow == 0 && kRows % kRowStep == 0, "threads must share a tile evenly");

  /// Eight elements at any address, one by one.
  static __device__ __forceinline__ uint4 gather(const uint16_t* source, int valid) {
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = 2 * i < valid ? source[2 * i] : 0;
      const uint32_t high = 2 * i + 1 < valid ? source[2 * i + 1] : 0;
      word[i] = low | high << 16;
    }
    return {word[0], word[1], word[2], word[3]};
  }

  const int row_, column_;  // this thread's first piece in the tile
  const int rows_left_, inputs_;
  const uint16_t* const source_;
  const int64_t step_;
};

/// Sum over the four lanes that hold one row of a fragment, in all of them.
__device__ __forceinline__ float quad_sum(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

/// Adds the squares of the two bf16 of a register.
__device__ __forceinline__ float add_squares(float sum, uint32_t packed) {
  const float low = low_bf16(packed), high = high_bf16(packed);
  return fmaf(high, high, fmaf(low, low, sum));
}

/// Stores the staged tile of h, `sizeof(Vector)` bytes a thread at a time: neighbouring threads
/// write neighbouring vectors. A vector that sticks out of the last column is stored element by
/// element.
template <class Tile, class Vector>
__device__ __forceinline__ void store_tile(const LayerForwardParams& p, const unsigned char* staging, int row0,
                                           int col0) {
  constexpr int kElements = sizeof(Vector) / 2;
  constexpr int kVectorsPerRow = Tile::kTileN / kElements;
  const int rows = min(p.rows - row0, Tile::kTileM);
  for (int i = threadIdx.x; i < rows * kVectorsPerRow; i += Tile::kThreads) {
    const int row = i / kVectorsPerRow, column = i % kVectorsPerRow * kElements;
    const unsigned char* source = staging + row * Tile::kStagingPitch + column * 2;
    uint16_t* target = p.h + (row0 + row) * p.h_pitch + col0 + column;
    const int left = p.units - col0 - column;
    if (left >= kElements) {
      *reinterpret_cast<Vector*>(target) = *reinterpret_cast<const Vector*>(source);
    } else {
      for (int e = 0; e < left; ++e) target[e] = reinterpret_cast<const uint16_t*>(source)[e];
    }
  }
}

/// The kernel's body; `layer_forward.cu` gives each instance its entry point.
/// @tparam Tile the instance's LayerForwardTile
template <class Tile>
__device__ __forceinline__ void layer_forward(const LayerForwardParams& p) {
  constexpr int kFragmentsM = Tile::kWarpTileM / 16, kFragmentsN = Tile::kWarpTileN / 8;
  constexpr int kSteps = Tile::kTileK / 16;  // mma steps a stage
  extern __shared__ __align__(128) unsigned char shared[];

  // Blocks run in groups of kGroup tiles of rows, column by column within a group: blocks that run
  // at the same time share tiles of x and of weight in L2.
  constexpr int kGroup = 8;
  const int group = blockIdx.x / (kGroup * p.tiles_n), in_group = blockIdx.x % (kGroup * p.tiles_n);
  const int group_rows = min(p.tiles_m - group * kGroup, kGroup);
  const int tile_m = group * kGroup + in_group % group_rows, tile_n = in_group / group_rows;
  const int row0 = tile_m * Tile::kTileM, col0 = tile_n * Tile::kTileN;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_m = warp / Tile::kWarpsN, warp_n = warp % Tile::kWarpsN;
  const int quad = lane / 4, in_quad = lane % 4;  // row and pair of columns in a fragment of sums

  // ---- products
  const TileLoader<Tile, Tile::kTileM> x_loader(p.x, p.x_pitch, row0, p.rows, p.inputs);
  const TileLoader<Tile, Tile::kTileN> weight_loader(p.weight, p.weight_pitch, col0, p.units, p.inputs);
  const uint32_t ring = shared_address(shared);
  const int k_tiles = (p.inputs + Tile::kTileK - 1) / Tile::kTileK;
  const auto fill = [&](int stage, int k_tile) {
    // The group is committed even when it is empty, so that the number of groups counts steps to
    // the very end.
    if (k_tile < k_tiles) {
      const uint32_t base = ring + stage * Tile::kStageBytes;
      x_loader.load(base, k_tile * Tile::kTileK);
      weight_loader.load(base + Tile::kTileBytesM, k_tile * Tile::kTileK);
    }
    commit_copies();
  };

  // Where this lane's rows of the 8x8 matrices start: x by 16 rows and two chunks, weight by 16
  // units and two chunks.
  const int x_row = warp_m * Tile::kWarpTileM + lane % 16, x_chunk = lane / 16;
  const int weight_row = warp_n * Tile::kWarpTileN + lane / 16 * 8 + lane % 8, weight_chunk = lane / 8 % 2;
  const bool squares_wanted = p.x_norm == nullptr && p.kind.norm != Norm::kNone;

  float sums[kFragmentsM][kFragmentsN][4] = {};
  float squares[kFragmentsM][2] = {};  // of rows quad and quad + 8

#pragma unroll
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) fill(stage, stage);
  int read_stage = 0, fill_stage = Tile::kStages - 1;
  for (int k_tile = 0; k_tile < k_tiles; ++k_tile) {
    wait_for_copies<Tile::kStages - 2>();
    __syncthreads();
    fill(fill_stage, k_tile + Tile::kStages - 1);

    const uint32_t x_tile = ring + read_stage * Tile::kStageBytes, weight_tile = x_tile + Tile::kTileBytesM;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t x[kFragmentsM][4], weight[kFragmentsN / 2][4];
#pragma unroll
      for (int m = 0; m < kFragmentsM; ++m) {
        load_matrices(x[m], x_tile + tile_offset<Tile>(x_row + m * 16, (step * 2 + x_chunk) * 16));
      }
#pragma unroll
      for (int n = 0; n < kFragmentsN / 2; ++n) {
        load_matrices(weight[n], weight_tile + tile_offset<Tile>(weight_row + n * 16, (step * 2 + weight_chunk) * 16));
      }
#pragma unroll
      for (int m = 0; m < kFragmentsM; ++m) {
#pragma unroll
        for (int n = 0; n < kFragmentsN; ++n) {
          multiply_add(sums[m][n], x[m], weight[n / 2][n % 2 * 2], weight[n / 2][n % 2 * 2 + 1]);
        }
      }
      if (squares_wanted && (k_tile * kSteps + step) % Tile::kWarpsN == warp_n) {
#pragma unroll
        for (int m = 0; m < kFragmentsM; ++m) {
          squares[m][0] = add_squares(add_squares(squares[m][0], x[m][0]), x[m][2]);
          squares[m][1] = add_squares(add_squares(squares[m][1], x[m][1]), x[m][3]);
        }
      }
    }
    read_stage = read_stage + 1 == Tile::kStages ? 0 : read_stage + 1;
    fill_stage = fill_stage + 1 == Tile::kStages ? 0 : fill_stage + 1;
  }
  wait_for_copies<0>();  // only empty groups are left, but the memory is about to change its use
  __syncthreads();

  // ---- row scales
  float* const row_scales = reinterpret_cast<float*>(shared + Tile::kScaleOffset);
  // [2][kWarpsN][kTileM]
  float* const row_sums = reinterpret_cast<float*>(shared + Tile::kSumsOffset);
  if (squares_wanted) {
#pragma unroll
    for (int m = 0; m < kFragmentsM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = quad_sum(squares[m][half]);
        const int row = warp_m * Tile::kWarpTileM + m * 16 + half * 8 + quad;
        if (in_quad == 0) row_sums[warp_n * Tile::kTileM + row] = sum;
      }
    }
  }
  __syncthreads();
  if (threadIdx.x < Tile::kTileM) {
    const int row = row0 + threadIdx.x;
    float norm = 0.0f;
    if (squares_wanted) {
      float sum = 0.0f;
      for (int w = 0; w < Tile::kWarpsN; ++w) sum += row_sums[w * Tile::kTileM + threadIdx.x];
      norm = sqrtf(sum);
    } else if (p.x_norm != nullptr && row < p.rows) {
      norm = p.x_norm[row];
    }
    const float scale = row_scale(p.kind, norm, p.inputs);
    row_scales[threadIdx.x] = scale;
    if (tile_n == 0 && row < p.rows) p.scale[row] = scale;
  }
  __syncthreads();

  // ---- epilogue: scale, bias, ReLU, sums of the row; h goes to shared memory so that it can leave
  // in whole sectors
  float bias[kFragmentsN][2];
#pragma unroll
  for (int n = 0; n < kFragmentsN; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int col = col0 + warp_n * Tile::kWarpTileN + n * 8 + in_quad * 2 + e;
      bias[n][e] = p.bias != nullptr && col < p.units ? p.bias[col] : 0.0f;
    }
  }
#pragma unroll
  for (int m = 0; m < kFragmentsM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_m * Tile::kWarpTileM + m * 16 + half * 8 + quad;
      const float scale = row_scales[row];
      float sum_sq = 0.0f, sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kFragmentsN; ++n) {
        const int col = warp_n * Tile::kWarpTileN + n * 8 + in_quad * 2;
        float h[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float z = fmaf(scale, sums[m][n][half * 2 + e], bias[n][e]);
          h[e] = z < 0.0f || col0 + col + e >= p.units ? 0.0f : z;
          sum_sq = fmaf(h[e], h[e], sum_sq);
          sum += h[e];
        }
        *reinterpret_cast<uint32_t*>(shared + row * Tile::kStagingPitch + col * 2) = pack_bf16(h[0], h[1]);
      }
      sum_sq = quad_sum(sum_sq);
      sum = quad_sum(sum);
      if (in_quad == 0) {
        row_sums[warp_n * Tile::kTileM + row] = sum_sq;
        row_sums[(Tile::kWarpsN + warp_n) * Tile::kTileM + row] = sum;
      }
    }
  }
  __syncthreads();

  if (threadIdx.x < Tile::kTileM && row0 + threadIdx.x < p.rows) {
    const int64_t target = static_cast<int64_t>(tile_n) * p.rows + row0 + threadIdx.x;
    float sum_sq = 0.0f, sum = 0.0f;
    for (int w = 0; w < Tile::kWarpsN; ++w) {
      sum_sq += row_sums[w * Tile::kTileM + threadIdx.x];
      sum += row_sums[(Tile::kWarpsN + w) * Tile::kTileM + threadIdx.x];
    }
    p.partial_sq[target] = sum_sq;
    if (p.partial_sum != nullptr) p.partial_sum[target] = sum;
  }
  switch (p.store_bytes) {
    case 16:
      store_tile<Tile, uint4>(p, shared, row0, col0);
      break;
    case 8:
      store_tile<Tile, uint2>(p, shared, row0, col0);
      break;
    case 4:
      store_tile<Tile, uint32_t>(p, shared, row0, col0);
      break;
    default:
      store_tile<Tile, uint16_t>(p, shared, row0, col0);
  }
}

/// Goodness and norm of the activities: one thread a row adds the column tiles from left to right.
__device__ __forceinline__ void layer_goodness(const LayerGoodnessParams& p) {
  const int row = blockIdx.x * kGoodnessThreads + threadIdx.x;
  if (row >= p.rows) return;
  float sum_sq = 0.0f, sum = 0.0f;
  for (int tile = 0; tile < p.tiles_n; ++tile) {
    const int64_t source = static_cast<int64_t>(tile) * p.rows + row;
    sum_sq += p.partial_sq[source];
    if (p.partial_sum != nullptr) sum += p.partial_sum[source];
  }
  p.goodness[row] = goodness_of(p.kind, sum_sq, sum, p.units);
  p.h_norm[row] = sqrtf(sum_sq);
}

}  // namespace ffkern::cuda
