// Forward pass of one layer: one product, and everything else in its epilogue.
//
// For rows x_i (images), weight rows w_j and biases b_j (float32 or none):
//
//     n_i  = ||x_i||  or  ||x_i|| / sqrt(K)        from the tiles of x as they pass, or given
//     r_i  = 1 / (n_i + eps), or 1 without norm    written by the blocks of the first column
//     z_ij = r_i (x_i . w_j) + b_j                 the scale commutes with the product
//     h_ij = z_ij < 0 ? 0 : z_ij                   stored as x is; a NaN stays a NaN
//     s_it = sum of h_ij^2 over column tile t      of h before it is rounded; likewise sum of h_ij
//
// A second kernel (rows.cu) adds s_it over t, in order. Blocks of one launch never communicate and no float is added
// atomically: the same inputs give the same bits, whatever the schedule.
//
// Label variants share the product. Variant v of image i has a label c in the inputs that the product counts as zero,
// so only the epilogue differs, and runs once a variant on the same sums:
//
//     n_iv^2 = n_i^2 + (value of c)^2       z_ivj = r_iv (x_i . w_j + (value of c) w_jc) + b_j
//
// with w_jc from `columns`, label columns of W as rows (the last is their sum, for the neutral label). A product for V
// variants costs what one costs for one.
//
// Bytes besides those of the product (pipeline.cuh): 2 or 4 R M for h, 4 R (1 + tiles_n) for scales and sums, 4 R M
// from L2 for label columns. h leaves through shared memory, in whole sectors of whole rows.
//
// The squares for ||x_i|| are taken from the fragments of x that have just come into registers: no extra memory access.
// Warps beside each other hold the same fragments, so each squares every kWarpsN-th step of them.
//
// Numerics. Products and squares of 2-byte operands are exact in float32; tf32 operands err by 2^-11 each, in three
// products by 2^-22; float32 rounds every multiply-add, and adds up a stage before it joins the sum. The tensor cores
// add in float32 with a truncation of their own: K 2^-23 sum |x w| is a bound for all (docs/numerics.md). A row's sums
// are added in the order: own columns from left to right, the four lanes of a quad, warps, tiles. ||x_i|| overflows
// where its square does, at 1.8e19. A zero row has r = 1 / eps and h = relu(b). Rows, units and inputs beyond the
// matrix are filled with zeros by the copies, and units beyond it are left out of the sums explicitly, since 0 NaN and
// 0 inf are not 0.
#pragma once
#include "../core/math.h"
#include "arithmetic.cuh"
#include "label.cuh"
#include "pipeline.cuh"

namespace ffkern::cuda {

/// Sum over the four lanes that hold one row of a fragment, in all of them.
__device__ __forceinline__ float quad_sum(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

/// Stores up to kRows rows of h from staged(row, column) in shared memory, by kLanes lanes and the widest vectors that
/// h allows: neighbouring lanes write neighbouring vectors. One that sticks out of the last column is stored element by
/// element.
template <int kElementBytes, int kRows, int kColumns, int kLanes, class Staged>
__device__ __forceinline__ void store_rows(const ForwardParams& p, int lane, int row0, int col0, int64_t variant_row,
                                           Staged staged) {
  using Element = std::conditional_t<kElementBytes == 2, uint16_t, uint32_t>;
  const int rows = min(p.images - row0, kRows);
  const auto store = [&](auto vector) {
    using Vector = decltype(vector);
    constexpr int kElements = sizeof(Vector) / kElementBytes, kVectorsPerRow = kColumns / kElements;
#pragma unroll 2  // with 4 float16 spills on sm_90
    for (int i = lane; i < rows * kVectorsPerRow; i += kLanes) {
      const int row = i / kVectorsPerRow, column = i % kVectorsPerRow * kElements;
      const unsigned char* source = staged(row, column);
      Element* target =
          static_cast<Element*>(p.h) + ((row0 + row) * p.image_step + variant_row) * p.h_pitch + col0 + column;
      const int left = p.units - col0 - column;
      if (left >= kElements) {
        *reinterpret_cast<Vector*>(target) = *reinterpret_cast<const Vector*>(source);
      } else {
        for (int e = 0; e < left; ++e) target[e] = reinterpret_cast<const Element*>(source)[e];
      }
    }
  };
  if (p.store_bytes == 16) {
    store(uint4{});
  } else if (p.store_bytes == 8) {
    store(uint2{});
  } else if (kElementBytes == 4 || p.store_bytes == 4) {
    store(uint32_t{});
  } else if constexpr (kElementBytes == 2) {
    store(uint16_t{});
  }
}

/// Values of the block's rows in shared memory, once the product is done.
template <class Tile>
struct RowValues {
  float *norm, *scale, *value;
  int* label;   // -1: the row has none
  float* sums;  // [2][kWarpsN][kTileM]

  __device__ __forceinline__ explicit RowValues(unsigned char* shared) {
    norm = reinterpret_cast<float*>(shared + Tile::kRowValues);
    scale = norm + Tile::kTileM;
    value = scale + Tile::kTileM;
    label = reinterpret_cast<int*>(value + Tile::kTileM);
    sums = value + 2 * Tile::kTileM;
  }
};

/// The bare product into base, and the norms.
template <class Tile>
__device__ __forceinline__ void store_base(const ForwardParams& p, const WarpTile<Tile>& warp, const float* norms,
                                           int tile_n, int row0, int col0) {
#pragma unroll
  for (int i = 0; i < 2 * Tile::kFragmentsM; ++i) {
    const int row = row0 + warp.row0() + i * 8 + warp.quad;
    if (row >= p.images) continue;
#pragma unroll
    for (int n = 0; n < Tile::kFragmentsN; ++n) {  // a quad writes 32 bytes, a whole sector
      const int col = col0 + warp.column0() + n * 8 + warp.in_quad * 2;
      float* target = p.base + int64_t{row} * p.units + col;
      if (col < p.units) target[0] = warp.sums[i / 2][n][i % 2 * 2];
      if (col + 1 < p.units) target[1] = warp.sums[i / 2][n][i % 2 * 2 + 1];
    }
  }
  if (tile_n == 0 && threadIdx.x < Tile::kTileM && row0 + threadIdx.x < p.images) {
    p.rest_norm[row0 + threadIdx.x] = norms[threadIdx.x];
  }
}

/// The kernel's body; the entry points of every arithmetic give each instance its name.
template <class Math, class Tile>
__device__ __forceinline__ void forward_kernel(const ForwardParams& p) {
  constexpr int kRowBytes = Tile::kTileK * Tile::kElementBytes;
  extern __shared__ __align__(128) unsigned char shared[];
  const BlockTile tile(p.tiles_m, p.tiles_n);
  const int row0 = tile.m * Tile::kTileM, col0 = tile.n * Tile::kTileN;
  WarpTile<Tile> warp;

  // ---- product
  const TileLoader<Tile, Tile::kTileM, kRowBytes, Swizzle::kChunks> x(p.x, p.x_pitch, row0, 0, p.images, p.inputs,
                                                                      p.classes);
  const TileLoader<Tile, Tile::kTileN, kRowBytes, Swizzle::kChunks> weight(p.weight, p.weight_pitch, col0, 0, p.units,
                                                                           p.inputs, p.classes);
  const bool squares_wanted = p.x_norm == nullptr && (p.kind.norm != Norm::kNone || p.classes > 0 || p.base != nullptr);
  float squares[2 * Tile::kFragmentsM] = {};
  const auto fill = [&](uint32_t stage, int k) {
    x.load(stage, 0, k * Tile::kTileK);
    weight.load(stage + Tile::kTileBytesM, 0, k * Tile::kTileK);
  };
  const auto multiply = [&](uint32_t stage, int k) {
    float part[2 * Tile::kFragmentsM] = {};
    multiply_stage<Math>(warp, [&](Sums<Tile>& sums) {
#pragma unroll
      for (int step = 0; step < Tile::kSteps; ++step) {
        const bool square = squares_wanted && (k * Tile::kSteps + step) % Tile::kWarpsN == warp.warp_n;
        forward_step<Math>(warp, sums, stage, stage + Tile::kTileBytesM, step, square, part);
      }
    });
#pragma unroll
    for (int i = 0; i < 2 * Tile::kFragmentsM; ++i) squares[i] += part[i];
  };
  run_pipeline<Tile::kStages, Tile::kStageBytes>(shared_address(shared), (p.inputs + Tile::kTileK - 1) / Tile::kTileK,
                                                 fill, multiply);

  // ---- norms of the rows of x
  const RowValues<Tile> rows(shared);
  if (squares_wanted) {
#pragma unroll
    for (int i = 0; i < 2 * Tile::kFragmentsM; ++i) {
      const float sum = quad_sum(squares[i]);
      const int row = warp.row0() + i * 8 + warp.quad;
      if (warp.in_quad == 0) rows.sums[warp.warp_n * Tile::kTileM + row] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x < Tile::kTileM) {
    float norm = 0.0f;
    if (squares_wanted) {
      float sum = 0.0f;
      for (int w = 0; w < Tile::kWarpsN; ++w) sum += rows.sums[w * Tile::kTileM + threadIdx.x];
      norm = sqrtf(sum);
    } else if (p.x_norm != nullptr && row0 + threadIdx.x < p.images) {
      norm = p.x_norm[row0 + threadIdx.x];
    }
    rows.norm[threadIdx.x] = norm;
  }
  if (p.base != nullptr) {
    __syncthreads();
    store_base(p, warp, rows.norm, tile.n, row0, col0);
    return;
  }

  // ---- activities: scale, bias, ReLU, sums of the row
  float bias[Tile::kFragmentsN][2];
#pragma unroll
  for (int n = 0; n < Tile::kFragmentsN; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int col = col0 + warp.column0() + n * 8 + warp.in_quad * 2 + e;
      bias[n][e] = p.bias != nullptr && col < p.units ? p.bias[col] : 0.0f;
    }
  }
  const int64_t all_rows = int64_t{p.images} * p.variants;
  for (int variant = 0; variant < p.variants; ++variant) {
    const int64_t variant_row = variant * p.variant_step;
    const bool own_row = threadIdx.x < Tile::kTileM && row0 + threadIdx.x < p.images;
    const int64_t out_row = (row0 + threadIdx.x) * p.image_step + variant_row;
    if (threadIdx.x < Tile::kTileM) {  // a thread reads here what it wrote itself
      float scale = 0.0f, value = 0.0f;
      int label = -1;
      if (own_row) {
        float norm = rows.norm[threadIdx.x];
        if (p.classes > 0) {
          const int64_t at = int64_t{variant} * p.images + row0 + threadIdx.x;
          const RowLabel given(p.labels != nullptr ? p.labels[at] : variant, p.classes, p.overlay);
          label = given.index;
          value = given.value;
          norm = given.norm_with(norm);
        }
        scale = row_scale(p.kind, norm, p.inputs);
      }
      rows.scale[threadIdx.x] = scale;
      rows.label[threadIdx.x] = label;
      rows.value[threadIdx.x] = value;
      if (own_row && tile.n == 0 && p.scale != nullptr) p.scale[out_row] = scale;
    }
    __syncthreads();

#pragma unroll
    for (int i = 0; i < 2 * Tile::kFragmentsM; ++i) {
      const int row = warp.row0() + i * 8 + warp.quad;
      const float scale = rows.scale[row], value = rows.value[row];
      const int label = rows.label[row];
      const float* columns = p.columns + int64_t{label} * p.units + col0;
      float sum_sq = 0.0f, sum = 0.0f;
#pragma unroll
      for (int n = 0; n < Tile::kFragmentsN; ++n) {
        const int col = warp.column0() + n * 8 + warp.in_quad * 2;
        float h[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float product = warp.sums[i / 2][n][i % 2 * 2 + e];
          const bool inside = col0 + col + e < p.units;
          if (label >= 0 && inside) product = fmaf(value, columns[col + e], product);
          const float z = fmaf(scale, product, bias[n][e]);
          h[e] = z < 0.0f || !inside ? 0.0f : z;
          sum_sq = fmaf(h[e], h[e], sum_sq);
          sum += h[e];
        }
        unsigned char* staged = shared + row * Tile::kStagingPitch + col * Tile::kElementBytes;
        if constexpr (Tile::kElementBytes == 2) {
          *reinterpret_cast<uint32_t*>(staged) = Math::pack(h[0], h[1]);
        } else {
          *reinterpret_cast<float2*>(staged) = {h[0], h[1]};
        }
      }
      sum_sq = quad_sum(sum_sq);
      sum = quad_sum(sum);
      if (warp.in_quad == 0) {
        rows.sums[warp.warp_n * Tile::kTileM + row] = sum_sq;
        rows.sums[(Tile::kWarpsN + warp.warp_n) * Tile::kTileM + row] = sum;
      }
    }
    __syncthreads();

    if (own_row) {
      float sum_sq = 0.0f, sum = 0.0f;
      for (int w = 0; w < Tile::kWarpsN; ++w) {
        sum_sq += rows.sums[w * Tile::kTileM + threadIdx.x];
        sum += rows.sums[(Tile::kWarpsN + w) * Tile::kTileM + threadIdx.x];
      }
      p.partial_sq[tile.n * all_rows + out_row] = sum_sq;
      if (p.partial_sum != nullptr) p.partial_sum[tile.n * all_rows + out_row] = sum;
    }
    if (p.h != nullptr) {
      store_rows<Tile::kElementBytes, Tile::kTileM, Tile::kTileN, Tile::kThreads>(
          p, threadIdx.x, row0, col0, variant_row,
          [&](int row, int column) { return shared + row * Tile::kStagingPitch + column * Tile::kElementBytes; });
    }
    if (variant + 1 < p.variants) __syncthreads();  // the next variant writes over what has just been read
  }
}

}  // namespace ffkern::cuda
