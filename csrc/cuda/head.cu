// Softmax head: forward pass, loss, gradient and update. Device code only: compiled to a fat binary, which images.S
// embeds.
//
// For images i, classes c (about ten) and the units k of every chosen layer l, h_l [N, M_l] of any storage, W and b
// float32:
//
//     z_ic = sum over l of r_li (h_li . w_lc) + b_c          r_li from the norm of h_li, as in layer_forward
//     d_ic = (softmax(z_i)_c - [c = y_i]) / N
//     dW_lck = sum over i of (r_li d_ic) h_lik               and the same for b with 1 instead of r h
//
// The layers are never concatenated and no normalised copy exists: r goes into the factor that a thread holds anyway.
// Ten classes are too narrow for the tensor cores' tiles and make no use of their speed: 20 operations for each
// element of h, which has to come from memory. The kernels below read h twice in all, once forward and once for the
// gradient, in the order in which it lies in memory.
//
// ---- forward: a block kImages images (4, or 1 in small batches), all its threads along the units
//
//              units of layer 0             units of layer 1
//     h_i   [ t0 t1 t2 ... t255 | t0 ... ][ t0 t1 ... ]       thread t: sums[image][class] += (r h_ik) w_ck
//     w_c   [  .  .  .      .   |  .     ][  .  .     ]       for kHeadClasses classes, in registers
//
//     then, in this order: lanes of a warp (a tree, see sum_over_lanes), warps one after the other, bias.
//
// Neighbouring threads read neighbouring units: whole sectors of h and of W. An element of h serves 10 classes, one of
// W kImages images; W comes from L2, in all N / kImages times, h once from memory. More than 10 classes are groups of
// 10 along the grid's y. An image's sums do not depend on kImages or on the images beside it, nor do their bits.
//
// sum_over_lanes halves what it carries as long as it can, instead of adding each sum by itself:
//
//     4 sums a lane -> exchange 2 with lane ^ 16 -> 2 -> 1 with lane ^ 8 -> 1, added to that of ^ 4, ^ 2, ^ 1
//
// 6 shuffles for 4 sums instead of 20. A step adds the same two lanes' values whether they are exchanged or not, so a
// sum by itself comes out with the same bits.
//
// ---- loss: a thread an image, in float64 as on the CPU; a block of kHeadLossThreads images leaves one row of
// statistics and, for the bias, one row of sums of d.
//
// ---- gradient: a thread one column k and kHeadClasses classes, over a slice of the images
//
//                 k: t0 t1 t2 ... t127
//     image i     h_ik, neighbouring threads side by side          r_i d_ic of kImageTile images and 10 classes lie in
//     image i+1   ...                                              shared memory; all threads read the same: broadcast
//
// A slice's sums go to the workspace, [slices, C, width]; head.cpp says how many slices.
//
// ---- update: a thread an element, first the weights, then the biases. It adds the slices in order.
//
// FLOPs: 2 C N width forward and as many for the gradient. Bytes: h twice; with S slices 8 S C width for the partial
// sums, and 16 to 24 a weight for the update. Every sum has a fixed order: the same inputs give the same bits.
//
// Where launch bounds name a number of blocks, it is not for their sake: left to itself, the compiler spills a register
// or two to fit one block more.
#include "../core/math.h"
#include "elements.cuh"
#include "head.h"
#include "update.cuh"

namespace ffkern::cuda {
namespace {

template <Storage kStorage>
__device__ __forceinline__ float load(const void* matrix, int64_t index) {
  return load_element(matrix, kStorage, index);
}

/// Calls fn with the storage as a compile-time constant, so that loops around loads have no branch inside.
template <class Fn>
__device__ __forceinline__ void with_storage(Storage storage, Fn fn) {
  if (storage == Storage::kFloat32) {
    fn([](const void* matrix, int64_t index) { return load<Storage::kFloat32>(matrix, index); });
  } else if (storage == Storage::kBfloat16) {
    fn([](const void* matrix, int64_t index) { return load<Storage::kBfloat16>(matrix, index); });
  } else {
    fn([](const void* matrix, int64_t index) { return load<Storage::kFloat16>(matrix, index); });
  }
}

/// Sums of kCount values over the lanes of a warp; lane l returns that of value l / (32 / kCount).
template <int kCount>
__device__ __forceinline__ float sum_over_lanes(float (&values)[kCount], int lane) {
  static_assert(kCount <= 32 && (kCount & (kCount - 1)) == 0, "halved at every step");
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const int half = kCount * offset / 32;
    if (half > 0) {
      const bool upper = lane & offset;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const float keep = upper ? values[i + half] : values[i], send = upper ? values[i] : values[i + half];
        values[i] = keep + __shfl_xor_sync(~0u, send, offset);
      }
    } else {
      values[0] += __shfl_xor_sync(~0u, values[0], offset);
    }
  }
  return values[0];
}

/// @tparam kImages images of a block, a power of two
template <int kImages>
__device__ __forceinline__ void head_forward(const HeadForwardParams& p) {
  constexpr int kWarps = kHeadForwardThreads / 32, kLanesAnImage = 32 / kImages;
  __shared__ float warp_sums[kWarps][kImages * kHeadClasses];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t image0 = static_cast<int64_t>(blockIdx.x) * kImages;

  for (int64_t class0 = static_cast<int64_t>(blockIdx.y) * kHeadClasses; class0 < p.classes;
       class0 += static_cast<int64_t>(gridDim.y) * kHeadClasses) {
    float sums[kImages][kHeadClasses] = {};
    for (int l = 0; l < p.group.count; ++l) {
      const HeadGroup::Entry& entry = p.group.entries[l];
      const HeadLayer& layer = entry.layer;
      // Images and classes beyond the last stand for the last once more; their sums are left out at the end.
      float scale[kImages];
      int64_t row[kImages];
#pragma unroll
      for (int i = 0; i < kImages; ++i) {
        const int64_t image = min(image0 + i, p.images - 1);
        scale[i] = row_scale(p.kind, layer.h_norm[image], layer.units);
        row[i] = image * layer.pitch;
      }
      with_storage(layer.storage, [&](auto load) {
#pragma unroll kImages == 1 ? 4 : 2
        for (int64_t k = threadIdx.x; k < layer.units; k += kHeadForwardThreads) {
          float values[kImages];
#pragma unroll
          for (int i = 0; i < kImages; ++i) values[i] = scale[i] * load(layer.h, row[i] + k);
          const float* weight = p.weight + entry.column + k;
#pragma unroll
          for (int c = 0; c < kHeadClasses; ++c) {
            const float w = weight[min(class0 + c, p.classes - 1) * p.weight_pitch];
#pragma unroll
            for (int i = 0; i < kImages; ++i) sums[i][c] = fmaf(values[i], w, sums[i][c]);
          }
        }
      });
    }

#pragma unroll
    for (int c = 0; c < kHeadClasses; ++c) {
      float values[kImages];
#pragma unroll
      for (int i = 0; i < kImages; ++i) values[i] = sums[i][c];
      const float sum = sum_over_lanes(values, lane);
      if (lane % kLanesAnImage == 0) warp_sums[warp][lane / kLanesAnImage * kHeadClasses + c] = sum;
    }
    __syncthreads();
    if (threadIdx.x < kImages * kHeadClasses) {
      const int64_t image = image0 + threadIdx.x / kHeadClasses, c = class0 + threadIdx.x % kHeadClasses;
      if (image < p.images && c < p.classes) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum += warp_sums[w][threadIdx.x];
        float* logit = p.logits + image * p.classes + c;
        *logit = sum + (p.add ? *logit : p.bias != nullptr ? p.bias[c] : 0.0f);
      }
    }
    __syncthreads();
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kHeadForwardThreads, 2)
    ffkern_head_forward_4(const __grid_constant__ HeadForwardParams params) {
  head_forward<kHeadImages>(params);
}

extern "C" __global__ void __launch_bounds__(kHeadForwardThreads)
    ffkern_head_forward_1(const __grid_constant__ HeadForwardParams params) {
  head_forward<1>(params);
}

extern "C" __global__ void __launch_bounds__(kHeadLossThreads, 6)
    ffkern_head_loss(const __grid_constant__ HeadLossParams params) {
  const HeadLossParams& p = params;
  __shared__ double losses[kHeadLossThreads];
  const int64_t image0 = static_cast<int64_t>(blockIdx.x) * kHeadLossThreads, image = image0 + threadIdx.x;
  const int here = static_cast<int>(min(p.images - image0, static_cast<int64_t>(kHeadLossThreads)));
  double loss = 0;
  bool hit = false;
  if (image < p.images) {
    const float* row = p.logits + image * p.classes;
    float* d = p.dlogits + image * p.classes;
    const int64_t label = p.labels[image];
    const bool valid = label >= 0 && label < p.classes;
    int64_t best = 0;
    for (int64_t c = 1; c < p.classes; ++c) best = row[c] > row[best] ? c : best;
    const double top = row[best];
    double total = 0;
    for (int64_t c = 0; c < p.classes; ++c) total += exp(row[c] - top);
    const double share = 1.0 / static_cast<double>(p.images);
    for (int64_t c = 0; c < p.classes; ++c) {
      const double wanted = c == label ? 1.0 : 0.0;
      d[c] = valid ? static_cast<float>((exp(row[c] - top) / total - wanted) * share) : NAN;
    }
    loss = valid ? log(total) + top - row[label] : NAN;
    hit = best == label;
  }
  losses[threadIdx.x] = loss;
  const int hits = __syncthreads_count(hit);
  // A tree: whoever is in the upper half hands over.
  for (int half = kHeadLossThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) losses[threadIdx.x] += losses[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    double* stats = p.stats + static_cast<int64_t>(blockIdx.x) * 3;
    stats[0] = losses[0];
    stats[1] = hits;
    stats[2] = here;
  }
  if (p.dbias == nullptr) return;
  for (int64_t c = threadIdx.x; c < p.classes; c += kHeadLossThreads) {
    const float* d = p.dlogits + image0 * p.classes + c;  // written by this block before the barriers
    float sum = 0.0f;
#pragma unroll 4
    for (int i = 0; i < here; ++i) sum += d[i * p.classes];
    p.dbias[blockIdx.x * p.classes + c] = sum;
  }
}

extern "C" __global__ void __launch_bounds__(kHeadGradientThreads, 6)
    ffkern_head_gradient(const __grid_constant__ HeadGradientParams params) {
  const HeadGradientParams& p = params;
  constexpr int kImageTile = 32;
  constexpr int kPitch = 12;  // a multiple of 4 from 10 on: a row is read as vectors of 16 bytes
  static_assert(kHeadClasses <= kPitch);
  __shared__ __align__(16) float factors[kImageTile][kPitch];

  int l = 0;
  while (l + 1 < p.group.count && p.group.entries[l + 1].first_block <= blockIdx.x) ++l;
  const HeadGroup::Entry& entry = p.group.entries[l];
  const HeadLayer& layer = entry.layer;
  const int64_t column = (blockIdx.x - entry.first_block) * kHeadGradientThreads + threadIdx.x;
  const int64_t read_column = min(column, layer.units - 1);  // threads beyond the last read it too, and write nothing
  const int64_t begin = blockIdx.z * p.slice, end = min(begin + p.slice, p.images);

  for (int64_t class0 = static_cast<int64_t>(blockIdx.y) * kHeadClasses; class0 < p.classes;
       class0 += static_cast<int64_t>(gridDim.y) * kHeadClasses) {
    float sums[kHeadClasses] = {};
    for (int64_t image0 = begin; image0 < end; image0 += kImageTile) {
      const int images = static_cast<int>(min(end - image0, static_cast<int64_t>(kImageTile)));
      __syncthreads();  // everybody has left the tile before
      for (int i = threadIdx.x; i < kImageTile * kPitch; i += kHeadGradientThreads) {
        const int row = i / kPitch, c = i % kPitch;
        float factor = 0.0f;
        if (row < images && c < kHeadClasses && class0 + c < p.classes) {
          const int64_t image = image0 + row;
          const float scale = row_scale(p.kind, layer.h_norm[image], layer.units);
          factor = scale * p.dlogits[image * p.classes + class0 + c];
        }
        factors[row][c] = factor;
      }
      __syncthreads();
      with_storage(layer.storage, [&](auto load) {
        int64_t at = image0 * layer.pitch + read_column;
#pragma unroll 4
        for (int row = 0; row < images; ++row, at += layer.pitch) {
          const float h = load(layer.h, at);
          float factor[kPitch];
#pragma unroll
          for (int c = 0; c < kPitch; c += 4) {
            const float4 four = *reinterpret_cast<const float4*>(&factors[row][c]);
            factor[c] = four.x, factor[c + 1] = four.y, factor[c + 2] = four.z, factor[c + 3] = four.w;
          }
#pragma unroll
          for (int c = 0; c < kHeadClasses; ++c) sums[c] = fmaf(factor[c], h, sums[c]);
        }
      });
    }
    if (column < layer.units) {
      float* partial = p.partial + (blockIdx.z * p.classes + class0) * p.width + entry.column + column;
#pragma unroll
      for (int c = 0; c < kHeadClasses; ++c) {
        if (class0 + c < p.classes) partial[c * p.width] = sums[c];
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(kHeadUpdateThreads)
    ffkern_head_update(const __grid_constant__ HeadUpdateParams params) {
  const HeadUpdateParams& p = params;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kHeadUpdateThreads + threadIdx.x;
  const bool is_bias = thread >= p.weights;
  const int64_t size = is_bias ? p.biases : p.weights, e = is_bias ? thread - p.weights : thread;
  if (e >= size) return;
  const float* partial = (is_bias ? p.dbias : p.partial) + e;
  const int64_t count = is_bias ? p.bias_parts : p.slices;
  float gradient = 0.0f;
#pragma unroll 4
  for (int64_t s = 0; s < count; ++s, partial += size) gradient += *partial;
  const UpdateRule rule = p.rules[is_bias];
  float* const value = (is_bias ? p.bias : p.weight) + e;
  float* const state = (is_bias ? p.bias_state : p.weight_state) + e;
  const bool two = rule.kind == Optimiser::kAdam || rule.kind == Optimiser::kAdamW;  // state slots
  float v = two ? state[size] : 0.0f;
  update_element(rule, gradient, *value, *state, v);
  if (two) state[size] = v;
}

}  // namespace ffkern::cuda
