// Labels: into the inputs, and wrong ones to learn from; hybrid images. Device code only: compiled to a fat binary,
// which images.S embeds. What each kernel computes is said in labels.h.
//
// All of this is bound by memory, or by the launch: bytes are those of the inputs and outputs, once each.
//
//   place_label        a warp a row: lanes on neighbouring columns read and write whole sectors, whatever the pitch.
//                      Elements are copied as bits, not converted.
//
//        x     [ x0 x1 x2 x3 x4 ...]                overlay, C = 3, label 1   [ 0 on  0 x3 x4 ...]
//                                                   concat                    [ 0 on  0 x0 x1 x2 x3 x4 ...]
//
//   wrong_labels       a thread a row, neighbours on neighbouring rows.
//   all_wrong_labels   the same, and the grid's second dimension runs over the C - 1 wrong labels.
//   hard_labels        a thread a row, which walks over its C logits three times (maximum, total, draw), all but the
//                      first from the cache; 2 (C - 1) exponentials in float64, in the order of csrc/cpu/labels.cpp.
//                      Ten classes leave too little work in a row to share it between lanes.
//
// ---- hybrid images
//
//     bits [H,W] --blur in both directions, `blurs` times--> value --value > 1/2--> mask: x where 1, `other` where 0
//
// A block an image, from its random bits to its blend. Two planes of float32 take turns:
//
//        value                    between                  value
//      +-------+   along rows   +-------+  along columns +-------+
//      | a b c | -------------> | p q r | -------------> | ...   |     one barrier after each arrow
//      +-------+                +-------+                +-------+
//
// They lie in shared memory up to kHybridSharedBytes (an image of 71 x 71; 28 x 28 takes 6 KB), otherwise in the
// block's part of the workspace, which stays in L2; a block then takes one image after the other.
//
// Threads run over the pixels in steps of the block, so every access to a plane is one of 32 consecutive words: no bank
// conflicts. Only the column of a pixel is needed (for the border), and it is moved along without dividing:
//
//     pixel += threads        column += threads mod W, less W if that reaches W
//
// A warp draws one Philox block of 128 bits: its lanes compute the same four words, which costs a warp no more than one
// lane would, and lane l writes bit l of each: 4 consecutive rows of 32 words.
//
// Bytes of global memory: the result and half of x and of other (each pixel is read from the image it is chosen from),
// and one for the mask. FLOPs: 8 a pixel and blur; in shared memory 6 reads and 2 writes a pixel and blur. The bits are
// those of every other backend (csrc/core/hybrid.h).
//
// The counter is advanced by a launch of its own: no block may write what another of the same launch still reads.
#include "../core/hybrid.h"
#include "elements.cuh"
#include "labels.h"

namespace ffkern::cuda {
namespace {

__device__ __forceinline__ int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ bool is_class(int64_t label, int64_t classes) { return label >= 0 && label < classes; }

/// Copies columns of one row from `first` to the end, lanes side by side. T: an unsigned integer of the element's size.
template <class T>
__device__ __forceinline__ void copy_row(const T* from, T* to, int64_t first, int64_t end) {
#pragma unroll 4
  for (int64_t c = first; c < end; c += 32) to[c] = from[c];
}

/// (label + shift) mod classes for label < classes and shift <= classes.
__device__ __forceinline__ int64_t wrap(int64_t label, int64_t shift, int64_t classes) {
  const int64_t left = classes - label;  // label + shift itself might leave int64
  return shift < left ? label + shift : shift - left;
}

__device__ __forceinline__ int64_t hard_label(const HardLabelsParams& p, int64_t row, int64_t label) {
  const int64_t classes = p.classes, begin = row * p.logits_pitch;
  const auto logit = [&](int64_t c) { return static_cast<double>(load_element(p.logits, p.storage, begin + c)); };
  // The maximum over the wrong classes only: one term of the sum is then exactly 1, so the sum cannot underflow
  // however sure the network is of the true class.
  double top = -INFINITY;
  for (int64_t c = 0; c < classes; ++c) {
    const double value = logit(c);
    if (c != label && value > top) top = value;
  }
  double total = 0;
  for (int64_t c = 0; c < classes; ++c) {
    if (c != label) total += exp(logit(c) - top);
  }
  if (!(total < INFINITY)) return wrap(label, 1, classes);  // NaN or infinite logits give no distribution
  const double target = static_cast<double>(p.u[row]) * total;
  double sum = 0;
  int64_t last = label == 0 ? 1 : 0;
  for (int64_t c = 0; c < classes; ++c) {
    if (c == label) continue;
    const double mass = exp(logit(c) - top);
    if (mass > 0) last = c;
    sum += mass;
    if (sum > target) break;
  }
  return last;
}

/// Random bits of one image as 0 and 1, a warp a block of them.
template <class Index>
__device__ __forceinline__ void draw(uint64_t seed, uint64_t image, Index pixels, float* value) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (Index begin = warp * static_cast<Index>(kHybridBlock); begin < pixels;
       begin += kHybridThreads / 32 * static_cast<Index>(kHybridBlock)) {
    const PhiloxBlock bits = hybrid_bits(seed, image, static_cast<uint32_t>(begin / kHybridBlock));
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const Index pixel = begin + w * 32 + lane;
      if (pixel < pixels) value[pixel] = static_cast<float>(bits.word[w] >> lane & 1);
    }
  }
}

/// Writes mask and image. A choice, not a product with 0 and 1: the result has the bits of the image chosen.
template <class T, class Index>
__device__ __forceinline__ void blend(const HybridParams& p, int64_t image, Index pixels, const float* value) {
  const T* x = static_cast<const T*>(p.x) + image * p.x_pitch;
  const T* other = static_cast<const T*>(p.other) + image * p.other_pitch;
  T* out = static_cast<T*>(p.out) + image * p.channels * pixels;
  bool* mask = p.mask + image * pixels;
  for (Index pixel = threadIdx.x; pixel < pixels; pixel += kHybridThreads) {
    const bool chosen = value[pixel] > 0.5f;
    mask[pixel] = chosen;
    const T* from = chosen ? x : other;
    int64_t at = pixel;
#pragma unroll 1
    for (int64_t c = 0; c < p.channels; ++c, at += pixels) out[at] = from[at];
  }
}

/// @tparam Index int where the planes are in shared memory and so small
template <class Index>
__device__ __forceinline__ void hybrid(const HybridParams& p, float* value, float* between) {
  const Index width = static_cast<Index>(p.width), pixels = static_cast<Index>(p.height) * width;
  const bool wide = width > kHybridThreads;  // 32 bits are enough to divide by a width that is not
  const Index first_column = wide ? threadIdx.x : threadIdx.x % static_cast<uint32_t>(width);
  const Index step = wide ? kHybridThreads : kHybridThreads % static_cast<uint32_t>(width);
  const uint64_t seed = static_cast<uint64_t>(p.generator[0]), drawn = static_cast<uint64_t>(p.generator[1]);
  for (int64_t image = blockIdx.x; image < p.images; image += gridDim.x) {
    draw(seed, drawn + static_cast<uint64_t>(image), pixels, value);
    __syncthreads();
    for (int64_t b = 0; b < p.blurs; ++b) {
      Index column = first_column;
      for (Index pixel = threadIdx.x; pixel < pixels; pixel += kHybridThreads) {
        const float centre = value[pixel];
        const float before = column > 0 ? value[pixel - 1] : centre;
        const float after = column + 1 < width ? value[pixel + 1] : centre;
        between[pixel] = hybrid_blur(before, centre, after);
        column += step;
        if (column >= width) column -= width;
      }
      __syncthreads();
      for (Index pixel = threadIdx.x; pixel < pixels; pixel += kHybridThreads) {
        const float centre = between[pixel];
        const float above = pixel >= width ? between[pixel - width] : centre;
        const float below = pixel < pixels - width ? between[pixel + width] : centre;
        value[pixel] = hybrid_blur(above, centre, below);
      }
      __syncthreads();
    }
    if (p.element_bytes == 4) {
      blend<uint32_t>(p, image, pixels, value);
    } else {
      blend<uint16_t>(p, image, pixels, value);
    }
    __syncthreads();  // the planes are about to hold the next image
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kLabelThreads)
    ffkern_place_label(const __grid_constant__ PlaceLabelParams params) {
  const PlaceLabelParams& p = params;
  const int64_t row = global_thread() / 32;
  const int lane = threadIdx.x % 32;
  if (row >= p.rows) return;
  const int64_t width = p.extra + p.cols, label = p.labels[row];
  const float on = p.overlay[0], neutral = p.overlay[1];
  for (int64_t c = lane; c < p.classes; c += 32) {
    const float value = is_class(label, p.classes) ? (label == c ? on : 0.0f) : label == kNeutralLabel ? neutral : NAN;
    store_element(p.out, p.storage, row * width + c, value);
  }
  // The first column that keeps its value: classes in the result, and in x as many fewer as are in front of it.
  const int64_t from = row * p.x_pitch - p.extra, to = row * width;
  if (p.storage == Storage::kFloat32) {
    copy_row(static_cast<const uint32_t*>(p.x) + from, static_cast<uint32_t*>(p.out) + to, p.classes + lane, width);
  } else {
    copy_row(static_cast<const uint16_t*>(p.x) + from, static_cast<uint16_t*>(p.out) + to, p.classes + lane, width);
  }
}

extern "C" __global__ void __launch_bounds__(kLabelThreads)
    ffkern_wrong_labels(const __grid_constant__ WrongLabelsParams params) {
  const WrongLabelsParams& p = params;
  const int64_t row = global_thread();
  if (row >= p.rows) return;
  const int64_t label = p.labels[row];
  if (!is_class(label, p.classes)) {
    p.out[row] = kInvalidLabel;
    return;
  }
  // u (C - 1) can round up to C - 1 although u < 1: the true label again, so it is held back.
  const int64_t drawn = static_cast<int64_t>(floorf(p.u[row] * static_cast<float>(p.classes - 1)));
  p.out[row] = wrap(label, 1 + max(min(drawn, p.classes - 2), int64_t{0}), p.classes);
}

extern "C" __global__ void __launch_bounds__(kLabelThreads)
    ffkern_hard_labels(const __grid_constant__ HardLabelsParams params) {
  const int64_t row = global_thread();
  if (row >= params.rows) return;
  const int64_t label = params.labels[row];
  params.out[row] = is_class(label, params.classes) ? hard_label(params, row, label) : kInvalidLabel;
}

extern "C" __global__ void __launch_bounds__(kLabelThreads)
    ffkern_all_wrong_labels(const __grid_constant__ AllWrongLabelsParams params) {
  const AllWrongLabelsParams& p = params;
  const int64_t row = global_thread();
  if (row >= p.rows) return;
  const int64_t label = p.labels[row];
  const bool valid = is_class(label, p.classes);
  for (int64_t k = blockIdx.y; k < p.classes - 1; k += gridDim.y) {
    p.out[k * p.rows + row] = valid ? wrap(label, 1 + k, p.classes) : kInvalidLabel;
  }
}

extern "C" __global__ void __launch_bounds__(kHybridThreads)
    ffkern_hybrid_shared(const __grid_constant__ HybridParams params) {
  extern __shared__ float planes[];
  hybrid<int>(params, planes, planes + static_cast<int>(params.height) * static_cast<int>(params.width));
}

extern "C" __global__ void __launch_bounds__(kHybridThreads)
    ffkern_hybrid_global(const __grid_constant__ HybridParams params) {
  const int64_t pixels = params.height * params.width;
  float* planes = params.workspace + blockIdx.x * 2 * pixels;
  hybrid<int64_t>(params, planes, planes + pixels);
}

extern "C" __global__ void __launch_bounds__(1) ffkern_hybrid_advance(const __grid_constant__ HybridParams params) {
  params.generator[1] += params.images;
}

}  // namespace ffkern::cuda
