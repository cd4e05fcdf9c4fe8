// Both products on devices of compute capability 9.0: the arithmetic and epilogues of forward.cuh and gradient.cuh
// around that architecture's own copies and matrix instructions. One block a multiprocessor, three warpgroups:
//
//                              kTileN                       stage     0     1     2     3
//                 +----------------------------+    full      +---+ +---+ +---+ +---+
//      kTileM     | warpgroup 1: 64 x kTileN   |   <-------   | a | | a | | a | | a |   <---- warpgroup 0: one thread
//                 +----------------------------+              | b | | b | | b | | b |         copies boxes (TMA)
//                 | warpgroup 2: 64 x kTileN   |   ------->   +---+ +---+ +---+ +---+
//                 +----------------------------+    empty
//
// A stage has two barriers. `full` ends a phase when all bytes of its copies have landed, `empty` when the eight warps
// that multiply have left it. So the copies run up to kStages ahead, across the end of a tile too: while the consumers
// are at the epilogue, the first stages of the block's next tile arrive. Blocks are as many as multiprocessors, and
// walk through the tiles in the order of BlockTile.
//
// The left operand goes through registers: ldmatrix hands a warp the fragments of its 16 rows, from which the forward
// product takes the squares of x and to which the gradient applies the factors of the rows, as in the other design;
// wgmma takes them from there, and the right operand from shared memory, where each byte is read by a warpgroup's four
// tensor cores at once. While the wgmma of a stage run, the fragments of the next one are made: two sets of registers.
//
// The right operand of a gradient in tf32 is turned on its way: wgmma reads floats along the depth only, and a gradient
// has them across it. The producers' other three warps turn the boxes of a stage in place, between `full` and a third
// barrier, `turned`, while the consumers make the fragments of that stage:
//
//      box of 32 rows x 32 inputs          k0  x x x x        n0  x x x x     32 words a lane: a row at a time in,
//      as it was copied                    k1  . . . .   ->   n1  x . . .     four rows of a column at a time out
//                                          k2  . . . .        n2  x . . .
//
// Copies are of boxes with rows of 128 bytes, swizzled by the hardware as tile.cuh swizzles (chunk c of row i in place
// c ^ i % 8), and what lies outside of a matrix arrives as zeros. Label inputs are not copied at all: the depth of the
// forward product begins behind them.
//
// FLOPs and bytes as in pipeline.cuh: 85 FLOP a byte for 128 x 256 in bfloat16, 64 for 128 x 128.
#pragma once
#include "forward.cuh"
#include "hopper.h"
#include "ptx_sm90a.cuh"
#include "target.cuh"

namespace ffkern::cuda {

/// A place in the ring; every stage is used once a phase.
template <class Tile>
struct RingPlace {
  uint32_t shared, stage = 0, phase = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == Tile::kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
  __device__ __forceinline__ uint32_t tile_m() const { return shared + stage * Tile::kStageBytes; }
  __device__ __forceinline__ uint32_t tile_n() const { return tile_m() + Tile::kTileBytesM; }
  __device__ __forceinline__ uint32_t factors() const {
    return shared + Tile::kStages * Tile::kStageBytes + stage * Tile::kFactorBytes;
  }
  __device__ __forceinline__ uint32_t full() const { return shared + Tile::kBarriers + stage * 8; }
  __device__ __forceinline__ uint32_t empty() const { return full() + Tile::kStages * 8; }
  __device__ __forceinline__ uint32_t turned() const { return empty() + Tile::kStages * 8; }
};

/// A thread of the warpgroups that multiply, by its place in them.
struct Lane {
  int warpgroup, warp, index, quad, in_quad;

  __device__ __forceinline__ Lane() {
    const int thread = thread_index();
    warpgroup = thread / 128 - 1;
    warp = thread / 32 % 4;
    index = thread % 32;
    quad = index / 4;
    in_quad = index % 4;
  }
  /// First row of the warp in the block's tile.
  __device__ __forceinline__ int row0() const { return warpgroup * 64 + warp * 16; }
  /// The warp's own memory for rows on their way out.
  template <class Tile>
  __device__ __forceinline__ unsigned char* staging(unsigned char* shared) const {
    return shared + Tile::kStaging + (warpgroup * 4 + warp) * Tile::kStagingBytes;
  }
};

/// What a lane holds of its warp's 16 rows: [4 n + 2 half + e] is row 8 half + quad and column 8 n + 2 in_quad + e.
template <class Tile>
using WideSums = float[Tile::kTileN / 2];

/// Results on their way out: a warp's 16 rows of kPassColumns columns in its staging memory.
template <int kElementBytes>
constexpr int kStagedRow = kPassColumns * kElementBytes;

/// Offset of an element there. Lanes that store pairs of a fragment, or load vectors of a row, meet every bank once.
template <int kElementBytes>
__device__ __forceinline__ int staged_offset(int row, int column) {
  constexpr Swizzle kSwizzle = kElementBytes == 2 ? Swizzle::kChunks : Swizzle::kWordsAcross;
  return tile_offset<kStagedRow<kElementBytes>, kSwizzle>(row, column * kElementBytes);
}

/// The same for a lane's pairs of results, of row 8 half + quad and columns 8 n + 2 in_quad.
template <int kElementBytes>
struct StagedPairs {
  unsigned char* base;
  int key;  // of the row, in chunks of 16 bytes

  __device__ __forceinline__ StagedPairs(const Lane& c, unsigned char* staging)
      : base(staging + c.quad * kStagedRow<kElementBytes> + c.in_quad * 2 * kElementBytes),
        key(kElementBytes == 2 ? c.quad / 2 : c.quad % 4 * 2) {
    pin(key);  // or every address is computed ahead and kept
  }
  __device__ __forceinline__ unsigned char* at(int half, int n) const {
    return base + half * 8 * kStagedRow<kElementBytes> + (n * kElementBytes / 2 ^ key) * 16;
  }
};

/// A float whose upper 19 bits are round_tf32() of it; wgmma reads no others. (ptxas makes wgmma wait for each other
/// where cvt.rna.tf32 made their operands.) A NaN whose payload lies in the other 13 bits alone is read as infinity.
__device__ __forceinline__ uint32_t half_up(uint32_t bits) {
  constexpr uint32_t kInfinity = 0x7f800000u, kHalf = 0x1000u;
  return (bits & kInfinity) == kInfinity ? bits : bits + kHalf;
}

/// Turns the right operand of a stage of floats in place, by the warps 1 to 3: what lay across the depth then lies
/// along it, rounded to tf32. Lanes read a row of a box and write a chunk of a column each; both meet every bank once.
/// Of eight rows the even ones come first: so one lane's pair of the left operand's rows is that of its factors.
template <class Tile>
__device__ __forceinline__ void turn_stage(const RingPlace<Tile>& ring) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int i = threadIdx.x / 32 - 1; i < Tile::kTileN / 32; i += 3) {
    const uint32_t box = ring.tile_n() + i * Tile::kBoxBytes;
    uint32_t column[32];
#pragma unroll
    for (int k = 0; k < 32; ++k) {
      column[k] = __float_as_uint(load_shared(box + tile_offset<128, Swizzle::kChunks>(k, lane * 4)));
    }
    __syncwarp();
#pragma unroll
    for (int chunk = 0; chunk < 8; ++chunk) {
      const uint32_t* rows = column + chunk / 2 * 8 + chunk % 2;
      store_shared(box + tile_offset<128, Swizzle::kChunks>(lane, chunk * 16),
                   uint4{half_up(rows[0]), half_up(rows[2]), half_up(rows[4]), half_up(rows[6])});
    }
  }
  publish_writes();
  __syncwarp();
  if (lane == 0) arrive(ring.turned());
}

/// The skeleton of both kernels. produce(ring, tile, k) starts the copies of one stage of a tile, by one thread;
/// consume(ring, tile) multiplies `depth` stages and finishes the tile, by the threads of two warpgroups. kTurned: in
/// between the right operand is turned.
template <class Tile, bool kTurned, class Produce, class Consume>
__device__ __forceinline__ void run_hopper(uint32_t shared, uint32_t tiles, uint32_t depth, Produce produce,
                                           Consume consume) {
  RingPlace<Tile> ring{shared};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      const uint32_t full = shared + Tile::kBarriers + stage * 8;
      init_barrier(full, 1);
      init_barrier(full + Tile::kStages * 8, 4 * Tile::kConsumers);
      if (kTurned) init_barrier(full + 2 * Tile::kStages * 8, 3);
    }
    publish_barriers();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    release_registers<Tile::kProducerRegisters[kTurned]>();
    if (kTurned && threadIdx.x >= 32) {
      for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        for (uint32_t k = 0; k < depth; ++k) {
          wait(ring.full(), ring.phase);
          turn_stage(ring);
          ring.advance();
        }
      }
    }
    if (threadIdx.x != 0) return;
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      for (uint32_t k = 0; k < depth; ++k) {
        wait(ring.empty(), ring.phase ^ 1);
        produce(ring, tile, k);
        ring.advance();
      }
    }
  } else {
    claim_registers<Tile::kConsumerRegisters[kTurned]>();
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) consume(ring, tile);
  }
}

/// How the right operand of a stage lies.
enum class Right { kAlong, kAcross, kTurned };

/// Multiplies `depth` stages from `ring` on. fragments(ring, a) makes a warp's fragments of one stage.
template <class Math, class Tile, Right kRight, class Fragments>
__device__ __forceinline__ void multiply_stages(WideSums<Tile>& sums, const Lane& lane, RingPlace<Tile>& ring,
                                                uint32_t depth, Fragments fragments) {
#pragma unroll
  for (int i = 0; i < Tile::kTileN / 2; ++i) sums[i] = 0.0f;
  uint32_t a[2][Tile::kSteps][4], previous = 0;
  const auto stage = [&](uint32_t (&own)[Tile::kSteps][4], uint32_t k) {
    wait(ring.full(), ring.phase);
    fragments(ring, own);
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) pin(own[step][i]);
    }
    if (kRight == Right::kTurned) wait(ring.turned(), ring.phase);
    fence_wgmma();
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step) {
      constexpr bool kAcross = kRight == Right::kAcross;
      const uint64_t b = kAcross ? operand(ring.tile_n() + step * 16 * 128, 1024, Tile::kBoxBytes)
                                 : operand(ring.tile_n() + step * 32, 1024, 0);
      multiply_wide<Math::kProduct, kAcross>(sums, own[step], b);
    }
    commit_wgmma();
    wait_for_wgmma<1>();  // the stage before has been multiplied
    __syncwarp();         // and read by all lanes
    if (k > 0 && lane.index == 0) arrive(previous);
    previous = ring.empty();
    ring.advance();
  };
  for (uint32_t k = 0; k < depth; k += 2) {
    stage(a[0], k);
    if (k + 1 < depth) stage(a[1], k + 1);
  }
  wait_for_wgmma<0>();
  if (depth != 0 && lane.index == 0) arrive(previous);
}

// ---------------------------------------------------------------- forward

/// Scale, bias, ReLU, sums of the rows and the rows themselves, from the sums of the tile at (tile_row, tile_column);
/// once a variant.
template <class Math, class Tile>
__device__ __forceinline__ void finish_forward(const ForwardParams& p, const WideSums<Tile>& sums,
                                               const float (&norms)[2], int tile_row, int tile_column,
                                               unsigned char* shared) {
  const int64_t all_rows = int64_t{p.images} * p.variants;
#pragma unroll 1
  for (int variant = 0; variant < p.variants; ++variant) {
    // Pinned and read anew, or whatever does not depend on the variant would be kept for the next: more than registers.
    const Lane c;
    int row0 = tile_row, col0 = tile_column;
    float own_norms[2] = {norms[0], norms[1]};
    pin(row0);
    pin(col0);
    pin(own_norms[0]);
    pin(own_norms[1]);
    row0 += c.row0();
    const int first_col = col0 + c.in_quad * 2;
    unsigned char* staging = c.staging<Tile>(shared);
    const int64_t variant_row = variant * p.variant_step;
    float scale[2] = {}, value[2] = {}, sum_sq[2] = {}, sum[2] = {};
    const float* columns[2] = {};  // of the row's label, or null
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row0 + i * 8 + c.quad;
      if (row >= p.images) continue;
      float norm = own_norms[i];
      if (p.classes > 0) {
        const int64_t at = int64_t{variant} * p.images + row;
        const RowLabel given(p.labels != nullptr ? p.labels[at] : variant, p.classes, p.overlay);
        columns[i] = p.columns + int64_t{given.index} * p.units;
        value[i] = given.value;
        norm = given.norm_with(norm);
      }
      scale[i] = row_scale(p.kind, norm, p.inputs);
      if (c.in_quad == 0 && col0 == 0 && p.scale != nullptr) p.scale[row * p.image_step + variant_row] = scale[i];
    }
#pragma unroll
    for (int pass = 0; pass < Tile::kTileN / kPassColumns; ++pass) {
      const StagedPairs<Tile::kElementBytes> pairs(c, staging);
#pragma unroll
      for (int n = 0; n < kPassColumns / 8; ++n) {
        const int col = first_col + pass * kPassColumns + n * 8;
        float bias[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) bias[e] = p.bias != nullptr && col + e < p.units ? p.bias[col + e] : 0.0f;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float h[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float product = sums[(pass * kPassColumns / 8 + n) * 4 + i * 2 + e];
            const bool inside = col + e < p.units;
            if (columns[i] != nullptr && inside) product = fmaf(value[i], columns[i][col + e], product);
            const float z = fmaf(scale[i], product, bias[e]);
            h[e] = z < 0.0f || !inside ? 0.0f : z;
            sum_sq[i] = fmaf(h[e], h[e], sum_sq[i]);
            sum[i] += h[e];
          }
          if (p.h == nullptr) continue;
          unsigned char* staged = pairs.at(i, n);
          if constexpr (Tile::kElementBytes == 2) {
            *reinterpret_cast<uint32_t*>(staged) = Math::pack(h[0], h[1]);
          } else {
            *reinterpret_cast<float2*>(staged) = {h[0], h[1]};
          }
        }
      }
      if (p.h == nullptr) continue;
      __syncwarp();
      store_rows<Tile::kElementBytes, 16, kPassColumns, 32>(
          p, c.index, row0, col0 + pass * kPassColumns, variant_row,
          [&](int row, int column) { return staging + staged_offset<Tile::kElementBytes>(row, column); });
      __syncwarp();  // the next columns are written over what has just been read
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float squares = quad_sum(sum_sq[i]), plain = quad_sum(sum[i]);
      const int row = row0 + i * 8 + c.quad;
      if (c.in_quad != 0 || row >= p.images) continue;
      const int64_t at = col0 / Tile::kTileN * all_rows + row * p.image_step + variant_row;
      p.partial_sq[at] = squares;
      if (p.partial_sum != nullptr) p.partial_sum[at] = plain;
    }
  }
}

/// The bare product into base, and the norms.
template <class Tile>
__device__ __forceinline__ void store_sums(const ForwardParams& p, const Lane& c, const WideSums<Tile>& sums,
                                           const float (&norms)[2], int row0, int col0) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = row0 + i * 8 + c.quad;
    if (row >= p.images) continue;
#pragma unroll
    for (int n = 0; n < Tile::kFragmentsN; ++n) {  // a quad writes 32 bytes, a whole sector
      const int col = col0 + n * 8 + c.in_quad * 2;
      float* target = p.base + int64_t{row} * p.units + col;
      if (col < p.units) target[0] = sums[n * 4 + i * 2];
      if (col + 1 < p.units) target[1] = sums[n * 4 + i * 2 + 1];
    }
    if (c.in_quad == 0 && col0 == 0) p.rest_norm[row] = norms[i];
  }
}

template <class Math, class Tile>
__device__ __forceinline__ void hopper_forward_kernel(const HopperForward& params) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const ForwardParams& p = params.p;
  const uint32_t depth = (static_cast<uint32_t>(p.inputs - p.classes) + Tile::kTileK - 1) / Tile::kTileK;

  const auto produce = [&](const RingPlace<Tile>& ring, uint32_t index, uint32_t k) {
    const BlockTile tile(p.tiles_m, p.tiles_n, index);
    arrive_expecting(ring.full(), Tile::kStageBytes);
    const int column = p.classes + static_cast<int>(k) * Tile::kTileK;
    copy_box(ring.tile_m(), &params.x, column, tile.m * Tile::kTileM, ring.full());
    copy_box(ring.tile_n(), &params.weight, column, tile.n * Tile::kTileN, ring.full());
  };
  const auto consume = [&](RingPlace<Tile>& ring, uint32_t index) {
    WideSums<Tile> sums;
    float squares[2] = {};
    const Lane at;
    multiply_stages<Math, Tile, Right::kAlong>(sums, at, ring, depth, [&](const auto& ring, auto& a) {
      float part[2] = {};
#pragma unroll
      for (int step = 0; step < Tile::kSteps; ++step) {
        const int row = at.row0() + at.index % 16, chunk = step * 2 + at.index / 16;
        load_matrices(a[step], ring.tile_m() + tile_offset<128, Swizzle::kChunks>(row, chunk * 16));
        part[0] = add_squares<Math>(add_squares<Math>(part[0], a[step][0]), a[step][2]);
        part[1] = add_squares<Math>(add_squares<Math>(part[1], a[step][1]), a[step][3]);
        if constexpr (Math::kProduct == Product::kTf32) {
#pragma unroll
          for (int i = 0; i < 4; ++i) a[step][i] = half_up(a[step][i]);
        }
      }
      squares[0] += part[0];
      squares[1] += part[1];
    });

    const Lane lane;
    const BlockTile tile(p.tiles_m, p.tiles_n, index);
    const int row0 = tile.m * Tile::kTileM + lane.row0(), col0 = tile.n * Tile::kTileN;
    float norms[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row0 + i * 8 + lane.quad;
      norms[i] = sqrtf(quad_sum(squares[i]));
      if (p.x_norm != nullptr) norms[i] = row < p.images ? p.x_norm[row] : 0.0f;
    }
    if (p.base != nullptr) {
      store_sums<Tile>(p, lane, sums, norms, row0, col0);
    } else {
      finish_forward<Math, Tile>(p, sums, norms, tile.m * Tile::kTileM, tile.n * Tile::kTileN, shared);
    }
  };
  run_hopper<Tile, false>(shared_address(shared), p.tiles_m * p.tiles_n, depth, produce, consume);
}

// ---------------------------------------------------------------- gradient

/// Finishes 16 staged rows, kCount neighbours a lane at a time.
template <int kCount>
__device__ __forceinline__ void finish_rows(const GradientTarget& t, const UpdateRule& rule,
                                            const unsigned char* staging, int lane, int unit0, int input0) {
  constexpr int kVectorsPerRow = kStagedRow<4> / 4 / kCount;
  const int units = min(t.units - unit0, 16);
#pragma unroll 1
  for (int i = lane; i < units * kVectorsPerRow; i += 32) {
    const int row = i / kVectorsPerRow, column = i % kVectorsPerRow * kCount;
    if (input0 + column >= t.inputs) continue;
    const auto g = *reinterpret_cast<const Floats<kCount>*>(staging + staged_offset<4>(row, column));
    finish_product(t, rule, unit0 + row, input0 + column, g);
  }
}

/// A warp's fragments of one stage: 16 units of h with the factors of the rows, whose order is that of turn_stage().
template <class Math, class Tile>
__device__ __forceinline__ void gradient_fragments(const RingPlace<Tile>& ring, const Lane& at, RowFactors factors,
                                                   float power, const float (&peer)[2],
                                                   uint32_t (&a)[Tile::kSteps][4]) {
  constexpr bool kFloats = Tile::kElementBytes == 4;
  const uint32_t h = ring.tile_m() + at.row0() / Tile::kTileK * Tile::kBoxBytes;
  const int unit0 = at.row0() % Tile::kTileK;
#pragma unroll
  for (int step = 0; step < Tile::kSteps; ++step) {
    if constexpr (kFloats) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // rows 2t and 2t + 1, of units g and g + 8
        const int row = step * 8 + at.in_quad * 2 + i / 2, unit = unit0 + i % 2 * 8 + at.quad;
        a[step][i] = __float_as_uint(load_shared(h + tile_offset<128, Swizzle::kChunks>(row, unit * 4)));
      }
    } else {
      const int matrix = at.index / 8, row = step * 16 + matrix / 2 * 8 + at.index % 8, unit = unit0 + matrix % 2 * 8;
      load_matrices_transposed(a[step], h + tile_offset<128, Swizzle::kChunks>(row, unit * 2));
    }
  }
  if (factors.given) {
    factors.choose([&](auto apply) {
#pragma unroll
      for (int pair = 0; pair < Tile::kTileK / 8; ++pair) {  // rows 2t and 2t + 1 of eight
        const uint32_t factor_at = ring.factors() + (pair * 8 + at.in_quad * 2) * 4;
        const float2 f = load_shared2(factor_at);
        const float2 q = factors.peer ? load_shared2(factor_at + Tile::kFactorBytes / 2) : float2{};
#pragma unroll
        for (int i = 0; i < 2; ++i) {  // units g and g + 8
          if constexpr (kFloats) {
            uint32_t &even = a[pair][i], &odd = a[pair][2 + i];
            even = __float_as_uint(apply(__uint_as_float(even), f.x, q.x, peer[i]));
            odd = __float_as_uint(apply(__uint_as_float(odd), f.y, q.y, peer[i]));
          } else {
            uint32_t& both = a[pair / 2][pair % 2 * 2 + i];
            both = Math::pack(apply(Math::low(both), f.x * power, q.x * power, peer[i]),
                              apply(Math::high(both), f.y * power, q.y * power, peer[i]));
          }
        }
      }
    });
  }
  if constexpr (kFloats) {
#pragma unroll
    for (int i = 0; i < 4 * Tile::kSteps; ++i) a[i / 4][i % 4] = half_up(a[i / 4][i % 4]);
  }
}

template <class Math, class Tile>
__device__ __forceinline__ void hopper_gradient_kernel(const HopperGradient& params) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const GradientParams& p = params.p;
  const GradientTarget& t = p.target;
  const uint32_t depth = (static_cast<uint32_t>(p.rows) + Tile::kTileK - 1) / Tile::kTileK;
  const RowFactors factors = {p.factor != nullptr, p.mask, p.peer_factor != nullptr};
  constexpr bool kFloats = Tile::kElementBytes == 4;
  constexpr int kBox = Tile::kTileK;

  const auto produce = [&](const RingPlace<Tile>& ring, uint32_t index, uint32_t k) {
    const BlockTile tile(p.tiles_m, p.tiles_n, index);
    const int row = static_cast<int>(k) * Tile::kTileK;
    const int vectors = (factors.given ? 1 : 0) + (factors.peer ? 1 : 0);
    arrive_expecting(ring.full(), Tile::kStageBytes + vectors * Tile::kFactorBytes / 2);
#pragma unroll
    for (int box = 0; box < Tile::kTileM / kBox; ++box) {
      copy_box(ring.tile_m() + box * Tile::kBoxBytes, &params.h, tile.m * Tile::kTileM + box * kBox, row, ring.full());
    }
#pragma unroll
    for (int box = 0; box < Tile::kTileN / kBox; ++box) {
      copy_box(ring.tile_n() + box * Tile::kBoxBytes, &params.x, tile.n * Tile::kTileN + box * kBox, row, ring.full());
    }
    if (factors.given) copy_piece(ring.factors(), &params.factor, row, ring.full());
    if (factors.peer) copy_piece(ring.factors() + Tile::kFactorBytes / 2, &params.peer_factor, row, ring.full());
  };
  const auto consume = [&](RingPlace<Tile>& ring, uint32_t index) {
    const Lane at;
    const float power = p.power != nullptr ? p.power[0] : 1.0f;
    float peer[2] = {};
    if (factors.peer) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int unit = BlockTile(p.tiles_m, p.tiles_n, index).m * Tile::kTileM + at.row0() + i * 8 + at.quad;
        if (unit < t.units) peer[i] = p.peer[unit];
      }
    }
    WideSums<Tile> sums;
    constexpr Right kRight = kFloats ? Right::kTurned : Right::kAcross;
    multiply_stages<Math, Tile, kRight>(sums, at, ring, depth, [&](const auto& ring, auto& a) {
      gradient_fragments<Math>(ring, at, factors, power, peer, a);
    });

    const Lane lane;
    const BlockTile tile(p.tiles_m, p.tiles_n, index);
    const int unit0 = tile.m * Tile::kTileM + lane.row0(), input0 = tile.n * Tile::kTileN;
    const float inverse = p.power != nullptr ? p.power[1] : 1.0f;
    const UpdateRule rule = t.dweight == nullptr ? t.rules[0] : UpdateRule{};
    unsigned char* staging = lane.staging<Tile>(shared);
#pragma unroll
    for (int pass = 0; pass < Tile::kTileN / kPassColumns; ++pass) {
      const StagedPairs<4> pairs(lane, staging);
#pragma unroll
      for (int n = 0; n < kPassColumns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float* pair = sums + (pass * kPassColumns / 8 + n) * 4 + i * 2;
          *reinterpret_cast<float2*>(pairs.at(i, n)) = {pair[0] * inverse, pair[1] * inverse};
        }
      }
      __syncwarp();
      const int first = input0 + pass * kPassColumns;
      if (p.wide) {
        finish_rows<4>(t, rule, staging, lane.index, unit0, first);
      } else {
        finish_rows<1>(t, rule, staging, lane.index, unit0, first);
      }
      __syncwarp();  // the next columns are written over what has just been read
    }
  };
  run_hopper<Tile, kFloats>(shared_address(shared), p.tiles_m * p.tiles_n, depth, produce, consume);
}

}  // namespace ffkern::cuda
