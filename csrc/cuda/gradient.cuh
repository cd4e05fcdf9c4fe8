// Gradient of a layer's weights, with the optimiser's update behind it.
//
//     dW [M, K] = sum over rows i of  (f_i h_ij + q_i p_j)  x_ik          f_i = r_i c_i dg/dh's constant factor
//
// No gradient of the activities is stored: h is read as the forward pass left it, and each row's factor is applied to
// its elements in registers, on their way from ldmatrix to mma (arithmetic.cuh). With peer normalisation positive rows
// have q_i = r_i and the term p. With label variants the operand has been added up over the variants of an image
// before (rows.cu), because the product is linear in it: then there are no factors.
//
//        rows of the batch (depth)                     block (0, 0), split 0   rows [0, R / 2)
//      +------------------+                                  split 1          rows [R / 2, R)
//      |  f h      units  |  ^T
//      +------------------+      dW tile = sum      Where the tiles of dW would not fill the chip, the batch is
//      +------------------+      of outer           split (grid y). Each split writes its part of dW, and a second
//      |  x        inputs |      products           launch adds the parts in order and updates (rows.cu). Otherwise
//      +------------------+                         the epilogue here updates at once: no dW ever exists.
//
// FLOPs: 2 R M K. Bytes besides the product's: one split reads and writes the master weights and their state once,
// 8 M K (1 + slots), and writes the 2-byte copy; several write 4 M K each and read it again.
//
// Numerics. f h + q p is computed in float32 and rounded once to the operand's type. In float16 a power of two
// brings the largest factor to [1/2, 1), so that f h neither overflows nor vanishes; dW is divided by it in float32.
// The sum over rows is in order within a split, and splits are added in order: same bits under any schedule. A row of
// zeros has r = 1 / eps, so f is large and f h finite: its part of dW is 0, since x is 0.
#pragma once
#include "arithmetic.cuh"
#include "pipeline.cuh"
#include "target.cuh"

namespace ffkern::cuda {

/// The rows of the product: all, or those that still teach, which have splits of their own.
template <class Tile>
struct GradientRows {
  const void *h, *x;
  const float *factor, *peer_factor;
  int64_t h_pitch, x_pitch;
  int begin, end;  // of this split

  __device__ __forceinline__ explicit GradientRows(const GradientParams& p)
      : h(p.h), x(p.x), factor(p.factor), peer_factor(p.peer_factor), h_pitch(p.h_pitch), x_pitch(p.x_pitch) {
    int rows = p.rows, split = p.split_rows;
    if (p.kept != nullptr && *p.kept >= 0) {
      rows = *p.kept;
      const int share = (rows + static_cast<int>(gridDim.y) - 1) / static_cast<int>(gridDim.y);
      split = (share + Tile::kTileK - 1) / Tile::kTileK * Tile::kTileK;
      h = p.kept_h;
      x = p.kept_x;
      factor = p.factor != nullptr ? p.kept_factor : nullptr;
      peer_factor = p.peer_factor != nullptr ? p.kept_peer_factor : nullptr;
      h_pitch = p.kept_h_pitch;
      x_pitch = p.kept_x_pitch;
    }
    begin = min(static_cast<int>(blockIdx.y) * split, rows);
    end = min(begin + split, rows);
  }
};

/// Starts the copies of the factors of one stage's rows; beyond the last row they are zero.
template <class Tile>
__device__ __forceinline__ void load_factors(const GradientRows<Tile>& rows, uint32_t stage, int row, int row_end) {
  const int k = threadIdx.x % Tile::kTileK;
  const float* factors = threadIdx.x < Tile::kTileK ? rows.factor : rows.peer_factor;
  if (threadIdx.x >= 2 * Tile::kTileK || factors == nullptr) return;
  copy_async<4>(stage + threadIdx.x * 4, factors + row + k, row + k < row_end ? 4 : 0);
}

/// Finishes the staged tile, or stores it as a part, kCount neighbours a thread at a time.
template <class Tile, int kCount>
__device__ __forceinline__ void finish_tile(const GradientParams& p, const unsigned char* staging, int unit0,
                                            int input0) {
  constexpr int kVectorsPerRow = Tile::kTileN / kCount;
  const GradientTarget& t = p.target;
  const int units = min(t.units - unit0, Tile::kTileM);
  const UpdateRule rule = p.partial == nullptr && t.dweight == nullptr ? t.rules[0] : UpdateRule{};
#pragma unroll 1
  for (int i = threadIdx.x; i < units * kVectorsPerRow; i += Tile::kThreads) {
    const int row = i / kVectorsPerRow, column = i % kVectorsPerRow * kCount;
    if (input0 + column >= t.inputs) continue;
    const auto g = *reinterpret_cast<const Floats<kCount>*>(staging + row * Tile::kSumsPitch + column * 4);
    if (p.partial != nullptr) {
      const int64_t at = (int64_t{blockIdx.y} * t.units + unit0 + row) * t.inputs + input0 + column;
      *reinterpret_cast<Floats<kCount>*>(p.partial + at) = g;
    } else {
      finish_product(t, rule, unit0 + row, input0 + column, g);
    }
  }
}

template <class Math, class Tile>
__device__ __forceinline__ void gradient_kernel(const GradientParams& p) {
  constexpr int kElement = Tile::kElementBytes;
  constexpr Swizzle kSwizzle = kElement == 2 ? Swizzle::kChunks : Swizzle::kWordsAcross;
  extern __shared__ __align__(128) unsigned char shared[];
  const BlockTile tile(p.tiles_m, p.tiles_n);
  const GradientTarget& t = p.target;
  const int unit0 = tile.m * Tile::kTileM, input0 = tile.n * Tile::kTileN;
  const GradientRows<Tile> rows(p);
  const int row0 = rows.begin, row_end = rows.end;
  WarpTile<Tile> warp;

  const TileLoader<Tile, Tile::kTileK, Tile::kTileM * kElement, kSwizzle> h(rows.h, rows.h_pitch, row0, unit0, row_end,
                                                                            t.units, 0);
  const TileLoader<Tile, Tile::kTileK, Tile::kTileN * kElement, kSwizzle> x(rows.x, rows.x_pitch, row0, input0, row_end,
                                                                            t.inputs, t.classes);
  const RowFactors factors = {p.factor != nullptr, p.mask, p.peer_factor != nullptr};
  const float power = p.power != nullptr ? p.power[0] : 1.0f;
  float peer[2 * Tile::kFragmentsM] = {};
  if (factors.peer) {
#pragma unroll
    for (int i = 0; i < 2 * Tile::kFragmentsM; ++i) {
      const int unit = unit0 + warp.row0() + i * 8 + warp.quad;
      if (unit < t.units) peer[i] = p.peer[unit];
    }
  }
  const auto fill = [&](uint32_t stage, int k) {
    h.load(stage, k * Tile::kTileK, 0);
    x.load(stage + Tile::kTileBytesM, k * Tile::kTileK, 0);
    load_factors(rows, stage + Tile::kStageBytes, row0 + k * Tile::kTileK, row_end);
  };
  const auto multiply = [&](uint32_t stage, int) {
    multiply_stage<Math>(warp, [&](Sums<Tile>& sums) {
#pragma unroll
      for (int step = 0; step < Tile::kSteps; ++step) {
        gradient_step<Math>(warp, sums, stage, stage + Tile::kTileBytesM, stage + Tile::kStageBytes, step, factors,
                            power, peer);
      }
    });
  };
  run_pipeline<Tile::kStages, Tile::kGradientStageBytes>(
      shared_address(shared), (row_end - row0 + Tile::kTileK - 1) / Tile::kTileK, fill, multiply);

  // ---- the tile of dW through shared memory, so that it is finished by whole rows, a vector a thread
  const float inverse = p.power != nullptr ? p.power[1] : 1.0f;
#pragma unroll
  for (int i = 0; i < 2 * Tile::kFragmentsM; ++i) {
    unsigned char* row = shared + (warp.row0() + i * 8 + warp.quad) * Tile::kSumsPitch;
#pragma unroll
    for (int n = 0; n < Tile::kFragmentsN; ++n) {
      const int column = warp.column0() + n * 8 + warp.in_quad * 2;
      *reinterpret_cast<float2*>(row + column * 4) = {warp.sums[i / 2][n][i % 2 * 2] * inverse,
                                                      warp.sums[i / 2][n][i % 2 * 2 + 1] * inverse};
    }
  }
  __syncthreads();
  if (p.wide) {
    finish_tile<Tile, 4>(p, shared, unit0, input0);
  } else {
    finish_tile<Tile, 1>(p, shared, unit0, input0);
  }
}

}  // namespace ffkern::cuda
