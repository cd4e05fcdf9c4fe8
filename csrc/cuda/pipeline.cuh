// The loop that both products share: a ring of stages in shared memory, filled ahead of the multiplication.
//
//                        columns (kTileN a block)
//                   +---------+--------+----         A block computes kTileM x kTileN of the result with
//                   | warp 0  | warp 1 |             kWarpsM x kWarpsN warps, each of which holds
//   rows            |         |        |             kWarpTileM x kWarpTileN sums in registers. It walks
//   (kTileM         +---------+--------+  block 1    along the depth in steps of kTileK through a ring of
//   a block)        | warp 2  | warp 3 |             kStages stages:
//                   |         |        |
//                   +---------+--------+----             step    k            k + 1      k + 2
//                   |     block 2      |                 stage   multiplied   arriving   refilled
//
// A step: wait until this thread's copies of step k have landed; barrier (now everybody's have, and everybody has left
// step k - 1); start the copies of step k + kStages - 1 into the stage that step k - 1 has left; multiply. One barrier
// a step is enough, because the stage that is refilled is never one that is being read.
//
// FLOPs: 2 M N K for an M x N result of depth K. Bytes from L2: every tile of rows is read N / kTileN times and every
// tile of columns M / kTileM times, so M N K (1 / kTileM + 1 / kTileN) elements: 64 FLOP a byte for bfloat16 tiles of
// 128 x 128, 32 for 64 x 64. From global memory, each tile cached once read: (M + N) K elements. A warp of the
// 128 x 128 tile does 16 mma for every 6 ldmatrix.x4, one of the 64 x 64 tile 8 for 4.
#pragma once
#include "ptx.cuh"

namespace ffkern::cuda {

/// Multiplies `depth_tiles` stages. fill(stage address, tile) starts the copies of one tile, multiply(stage address,
/// tile) uses it. On return nothing is under way and every warp has left the ring.
template <int kStages, int kStageBytes, class Fill, class Multiply>
__device__ __forceinline__ void run_pipeline(uint32_t ring, int depth_tiles, Fill fill, Multiply multiply) {
  // A group is committed even when it is empty, so that the number of groups counts steps to the very end.
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < depth_tiles) fill(ring + stage * kStageBytes, stage);
    commit_copies();
  }
  int read_stage = 0, fill_stage = kStages - 1;
  for (int tile = 0; tile < depth_tiles; ++tile) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    if (tile + kStages - 1 < depth_tiles) fill(ring + fill_stage * kStageBytes, tile + kStages - 1);
    commit_copies();
    __syncwarp();  // whatever the copies branched over: what follows is for whole warps
    multiply(ring + read_stage * kStageBytes, tile);
    read_stage = read_stage + 1 == kStages ? 0 : read_stage + 1;
    fill_stage = fill_stage + 1 == kStages ? 0 : fill_stage + 1;
  }
  wait_for_copies<0>();  // only empty groups are left, but the memory is about to change its use
  __syncthreads();
}

/// A block's tile of the result. Blocks run in groups of kGroup tiles of rows, column by column within a group: blocks
/// that run at the same time share tiles of both operands in L2.
struct BlockTile {
  int m, n;

  __device__ __forceinline__ BlockTile(int tiles_m, int tiles_n, unsigned block = blockIdx.x) {
    constexpr int kGroup = 8;
    const int group = block / (kGroup * tiles_n), in_group = block % (kGroup * tiles_n);
    const int group_rows = min(tiles_m - group * kGroup, kGroup);
    m = group * kGroup + in_group % group_rows;
    n = in_group / group_rows;
  }
};

}  // namespace ffkern::cuda
