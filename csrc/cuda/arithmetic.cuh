// How a warp multiplies: one step of 32 bytes of depth, for every arithmetic and both products.
//
// All of them hold their sums alike. With g = lane / 4 and t = lane % 4, sums[m][n][2 half + e] is row
// 16 m + 8 half + g and column 8 n + 2 t + e of the warp's tile, which is how mma.sync leaves them; float32 without
// tensor cores follows suit, so that there is one epilogue.
//
// Forward: both operands lie along the depth.  ldmatrix hands out rows of 16 bytes, whatever they hold: of 2-byte
// elements the fragments of m16n8k16, of 4-byte elements those of m16n8k8.
//
// Gradient: both operands lie across the depth. Two-byte elements are transposed by ldmatrix.trans on their way to the
// registers; 4-byte elements are read word by word. The rows of h carry their factors: an element of the left operand
// is f h (or f [h > 0]) + q p, rounded once to the operand's type.
#pragma once
#include "product.h"
#include "tile.cuh"

namespace ffkern::cuda {

struct Bf16 {
  static constexpr Product kProduct = Product::kBf16;
  static __device__ __forceinline__ float low(uint32_t pair) { return low_bf16(pair); }
  static __device__ __forceinline__ float high(uint32_t pair) { return high_bf16(pair); }
  static __device__ __forceinline__ uint32_t pack(float low, float high) { return pack_bf16(low, high); }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    multiply_bf16(d, a, b0, b1);
  }
};

struct F16 {
  static constexpr Product kProduct = Product::kF16;
  static __device__ __forceinline__ float low(uint32_t pair) { return from_f16(static_cast<uint16_t>(pair)); }
  static __device__ __forceinline__ float high(uint32_t pair) { return from_f16(static_cast<uint16_t>(pair >> 16)); }
  static __device__ __forceinline__ uint32_t pack(float low, float high) { return pack_f16(low, high); }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    multiply_f16(d, a, b0, b1);
  }
};

struct Tf32 {
  static constexpr Product kProduct = Product::kTf32;
};
struct Tf32x3 {
  static constexpr Product kProduct = Product::kTf32x3;
};
struct F32 {
  static constexpr Product kProduct = Product::kF32;
};

/// What a row's factors do to its elements; uniform over the launch.
struct RowFactors {
  bool given, mask, peer;  // there are factors at all; f [h > 0] instead of f h; plus q p

  /// Calls body(apply) with apply(h, f, q, p) for one element: the choice is made once a step, not once an element.
  template <class Body>
  __device__ __forceinline__ void choose(Body body) const {
    if (mask) {
      body([](float h, float f, float q, float p) { return fmaf(q, p, h > 0.0f ? f : h != h ? h : 0.0f); });
    } else if (peer) {
      body([](float h, float f, float q, float p) { return fmaf(q, p, f * h); });
    } else {
      body([](float h, float f, float, float) { return f * h; });
    }
  }
};

/// What a lane holds of its warp's tile of results.
template <class Tile>
using Sums = float[Tile::kFragmentsM][Tile::kFragmentsN][4];

/// Sums of a warp's tile, and the lane's place in it.
template <class Tile>
struct WarpTile {
  Sums<Tile> sums = {};
  const int warp_m, warp_n, lane, quad, in_quad;

  __device__ __forceinline__ WarpTile()
      : warp_m(threadIdx.x / 32 / Tile::kWarpsN),
        warp_n(threadIdx.x / 32 % Tile::kWarpsN),
        lane(threadIdx.x % 32),
        quad(lane / 4),
        in_quad(lane % 4) {}

  /// First row and first column of the warp in the block's tile.
  __device__ __forceinline__ int row0() const { return warp_m * Tile::kWarpTileM; }
  __device__ __forceinline__ int column0() const { return warp_n * Tile::kWarpTileN; }
};

/// One stage: steps(sums) adds its products. Where results are to be float32 the products of a stage add up on their
/// own before they join the sum, whose roundings are as many as there are stages then, and not products.
template <class Math, class Tile, class Steps>
__device__ __forceinline__ void multiply_stage(WarpTile<Tile>& warp, Steps steps) {
  if constexpr (Math::kProduct == Product::kF32 || Math::kProduct == Product::kTf32x3) {
    Sums<Tile> part = {};
    steps(part);
#pragma unroll
    for (int m = 0; m < Tile::kFragmentsM; ++m) {
#pragma unroll
      for (int n = 0; n < Tile::kFragmentsN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) warp.sums[m][n][i] += part[m][n][i];
      }
    }
  } else {
    steps(warp.sums);
  }
}

/// Fragments of both operands for one step on the tensor cores.
template <class Math, class Tile>
struct Fragments {
  static constexpr bool kFloats = Tile::kElementBytes == 4;
  static constexpr bool kSplit = Math::kProduct == Product::kTf32x3;
  uint32_t a[Tile::kFragmentsM][4], b[Tile::kFragmentsN / 2][4];

  /// d += a b, all fragments of the warp. Floats are rounded to tf32 on the way; in three products what the rounding
  /// leaves, up to 2^-22 of the element, goes through the tensor cores too.
  __device__ __forceinline__ void multiply(Sums<Tile>& sums) {
    uint32_t a_rest[kSplit ? Tile::kFragmentsM : 1][4], b_rest[kSplit ? Tile::kFragmentsN / 2 : 1][4];
    if constexpr (kFloats) {
      const auto round = [](uint32_t& value, uint32_t& rest) {
        const float whole = __uint_as_float(value);
        value = round_tf32(whole);
        if constexpr (kSplit) rest = round_tf32(whole - __uint_as_float(value));
      };
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int m = 0; m < Tile::kFragmentsM; ++m) round(a[m][i], a_rest[kSplit ? m : 0][i]);
#pragma unroll
        for (int n = 0; n < Tile::kFragmentsN / 2; ++n) round(b[n][i], b_rest[kSplit ? n : 0][i]);
      }
    }
#pragma unroll
    for (int m = 0; m < Tile::kFragmentsM; ++m) {
#pragma unroll
      for (int n = 0; n < Tile::kFragmentsN; ++n) {
        const int i = n / 2, j = n % 2 * 2;
        if constexpr (!kFloats) {
          Math::multiply(sums[m][n], a[m], b[i][j], b[i][j + 1]);
        } else {
          if constexpr (kSplit) {  // the small ones first
            multiply_tf32(sums[m][n], a_rest[m], b[i][j], b[i][j + 1]);
            multiply_tf32(sums[m][n], a[m], b_rest[i][j], b_rest[i][j + 1]);
          }
          multiply_tf32(sums[m][n], a[m], b[i][j], b[i][j + 1]);
        }
      }
    }
  }
};

/// Adds the squares of a register: of two 2-byte elements, or of one float.
template <class Math>
__device__ __forceinline__ float add_squares(float sum, uint32_t bits) {
  if constexpr (Math::kProduct != Product::kBf16 && Math::kProduct != Product::kF16) {
    const float value = __uint_as_float(bits);
    return fmaf(value, value, sum);
  } else {
    const float low = Math::low(bits), high = Math::high(bits);
    return fmaf(high, high, fmaf(low, low, sum));
  }
}

/// One step of the forward product on tiles at these addresses; adds the squares of the rows of x that this lane holds
/// where `square` (rows 8 i + g of the warp's tile, i the index).
template <class Math, class Tile>
__device__ __forceinline__ void forward_step(const WarpTile<Tile>& warp, Sums<Tile>& sums, uint32_t x_tile,
                                             uint32_t weight_tile, int step, bool square,
                                             float (&squares)[2 * Tile::kFragmentsM]) {
  constexpr int kRowBytes = Tile::kTileK * Tile::kElementBytes;
  const auto place = [](int row, int chunk) { return tile_offset<kRowBytes, Swizzle::kChunks>(row, chunk * 16); };
  if constexpr (Math::kProduct != Product::kF32) {
    Fragments<Math, Tile> f;
    const int x_row = warp.row0() + warp.lane % 16, x_chunk = warp.lane / 16;
    const int weight_row = warp.column0() + warp.lane / 16 * 8 + warp.lane % 8, weight_chunk = warp.lane / 8 % 2;
#pragma unroll
    for (int m = 0; m < Tile::kFragmentsM; ++m) {
      load_matrices(f.a[m], x_tile + place(x_row + m * 16, step * 2 + x_chunk));
    }
#pragma unroll
    for (int n = 0; n < Tile::kFragmentsN / 2; ++n) {
      load_matrices(f.b[n], weight_tile + place(weight_row + n * 16, step * 2 + weight_chunk));
    }
    if (square) {
#pragma unroll
      for (int m = 0; m < Tile::kFragmentsM; ++m) {
        squares[2 * m] = add_squares<Math>(add_squares<Math>(squares[2 * m], f.a[m][0]), f.a[m][2]);
        squares[2 * m + 1] = add_squares<Math>(add_squares<Math>(squares[2 * m + 1], f.a[m][1]), f.a[m][3]);
      }
    }
    f.multiply(sums);
  } else {
#pragma unroll
    for (int chunk = step * 2; chunk < step * 2 + 2; ++chunk) {
      // 16 bytes a lane: four lanes read the same row of x, eight the same row of weight.
      float4 x[2 * Tile::kFragmentsM], weight[2 * Tile::kFragmentsN];
#pragma unroll
      for (int i = 0; i < 2 * Tile::kFragmentsM; ++i) {
        x[i] = load_shared4(x_tile + place(warp.row0() + i * 8 + warp.quad, chunk));
      }
#pragma unroll
      for (int j = 0; j < 2 * Tile::kFragmentsN; ++j) {
        const int row = warp.column0() + j / 2 * 8 + warp.in_quad * 2 + j % 2;
        weight[j] = load_shared4(weight_tile + place(row, chunk));
      }
#pragma unroll
      for (int i = 0; i < 2 * Tile::kFragmentsM; ++i) {
#pragma unroll
        for (int j = 0; j < 2 * Tile::kFragmentsN; ++j) {
          float& sum = sums[i / 2][j / 2][i % 2 * 2 + j % 2];
          sum = fmaf(x[i].x, weight[j].x, sum);
          sum = fmaf(x[i].y, weight[j].y, sum);
          sum = fmaf(x[i].z, weight[j].z, sum);
          sum = fmaf(x[i].w, weight[j].w, sum);
        }
        if (square) {  // each lane of a quad another element of the four
          const float own = warp.in_quad == 0   ? x[i].x
                            : warp.in_quad == 1 ? x[i].y
                            : warp.in_quad == 2 ? x[i].z
                                                : x[i].w;
          squares[i] = fmaf(own, own, squares[i]);
        }
      }
    }
  }
}

/// One step of the gradient product: dW += (factors h)^T x. `peer` holds p of the lane's rows 8 i + g; f and q are read
/// from shared memory, one a row of h.
template <class Math, class Tile>
__device__ __forceinline__ void gradient_step(const WarpTile<Tile>& warp, Sums<Tile>& sums, uint32_t h_tile,
                                              uint32_t x_tile, uint32_t factors, int step, RowFactors rows, float power,
                                              const float (&peer)[2 * Tile::kFragmentsM]) {
  constexpr int kElement = Tile::kElementBytes;
  constexpr Swizzle kSwizzle = kElement == 2 ? Swizzle::kChunks : Swizzle::kWordsAcross;
  const auto h_at = [&](int k, int m) {
    return h_tile + tile_offset<Tile::kTileM * kElement, kSwizzle>(k, (warp.row0() + m) * kElement);
  };
  const auto x_at = [&](int k, int n) {
    return x_tile + tile_offset<Tile::kTileN * kElement, kSwizzle>(k, (warp.column0() + n) * kElement);
  };
  const int depth = step * Tile::kDepth;  // first row of h and x
  const auto f_at = [&](int k) { return factors + k * 4; };
  const auto q_at = [&](int k) { return factors + (Tile::kTileK + k) * 4; };

  if constexpr (kElement == 2) {
    Fragments<Math, Tile> f;
    const int matrix = warp.lane / 8, in_matrix = warp.lane % 8;
#pragma unroll
    for (int m = 0; m < Tile::kFragmentsM; ++m) {
      load_matrices_transposed(f.a[m], h_at(depth + matrix / 2 * 8 + in_matrix, m * 16 + matrix % 2 * 8));
    }
#pragma unroll
    for (int n = 0; n < Tile::kFragmentsN / 2; ++n) {
      load_matrices_transposed(f.b[n], x_at(depth + matrix % 2 * 8 + in_matrix, n * 16 + matrix / 2 * 8));
    }
    if (rows.given) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // rows 2t, 2t + 1 and 2t + 8, 2t + 9
        const int k = depth + half * 8 + warp.in_quad * 2;
        const float2 factor = load_shared2(f_at(k));
        const float2 q = rows.peer ? load_shared2(q_at(k)) : float2{};
        rows.choose([&](auto apply) {
#pragma unroll
          for (int m = 0; m < Tile::kFragmentsM; ++m) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {  // units g and g + 8
              uint32_t& pair = f.a[m][half * 2 + i];
              pair = Math::pack(apply(Math::low(pair), factor.x * power, q.x * power, peer[2 * m + i]),
                                apply(Math::high(pair), factor.y * power, q.y * power, peer[2 * m + i]));
            }
          }
        });
      }
    }
    f.multiply(sums);
  } else if constexpr (Math::kProduct != Product::kF32) {
    Fragments<Math, Tile> f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // rows t and t + 4
      const int k = depth + half * 4 + warp.in_quad;
      const float factor = rows.given ? load_shared(f_at(k)) : 1.0f;
      const float q = rows.peer ? load_shared(q_at(k)) : 0.0f;
#pragma unroll
      for (int m = 0; m < Tile::kFragmentsM; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          f.a[m][half * 2 + i] = __float_as_uint(load_shared(h_at(k, m * 16 + i * 8 + warp.quad)));
        }
      }
      if (rows.given) {
        rows.choose([&](auto apply) {
#pragma unroll
          for (int m = 0; m < 2 * Tile::kFragmentsM; ++m) {
            uint32_t& h = f.a[m / 2][half * 2 + m % 2];
            h = __float_as_uint(apply(__uint_as_float(h), factor, q, peer[m]));
          }
        });
      }
#pragma unroll
      for (int n = 0; n < Tile::kFragmentsN; ++n) {
        f.b[n / 2][n % 2 * 2 + half] = __float_as_uint(load_shared(x_at(k, n * 8 + warp.quad)));
      }
    }
    f.multiply(sums);
  } else {
#pragma unroll
    for (int k = depth; k < depth + Tile::kDepth; ++k) {
      const float factor = rows.given ? load_shared(f_at(k)) : 1.0f;
      const float q = rows.peer ? load_shared(q_at(k)) : 0.0f;
      float a[2 * Tile::kFragmentsM];
      float2 b[Tile::kFragmentsN];
#pragma unroll
      for (int i = 0; i < 2 * Tile::kFragmentsM; ++i) {
        a[i] = load_shared(h_at(k, i * 8 + warp.quad));
      }
      if (rows.given) {
        rows.choose([&](auto apply) {
#pragma unroll
          for (int i = 0; i < 2 * Tile::kFragmentsM; ++i) a[i] = apply(a[i], factor, q, peer[i]);
        });
      }
#pragma unroll
      for (int n = 0; n < Tile::kFragmentsN; ++n) b[n] = load_shared2(x_at(k, n * 8 + warp.in_quad * 2));
#pragma unroll
      for (int i = 0; i < 2 * Tile::kFragmentsM; ++i) {
#pragma unroll
        for (int n = 0; n < Tile::kFragmentsN; ++n) {
          float (&sum)[4] = sums[i / 2][n];
          sum[i % 2 * 2] = fmaf(a[i], b[n].x, sum[i % 2 * 2]);
          sum[i % 2 * 2 + 1] = fmaf(a[i], b[n].y, sum[i % 2 * 2 + 1]);
        }
      }
    }
  }
}

}  // namespace ffkern::cuda
