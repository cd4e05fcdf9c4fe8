// Kernels around the products (rows.h says what each is for). All of them move memory and compute next to nothing;
// what matters is that neighbouring threads read neighbouring elements, and that every sum has one order:
//
//     rows      a thread a row      goodness from the column tiles, left to right; loss and coefficient;
//                                   statistics of the block's 128 rows by a tree
//     finish    one block           statistics of the blocks in order; the optimiser's factors of this step
//     variants  a warp a row        lanes stride over the units, then a tree of shuffles
//     sums      a thread a unit     down the rows of a slice, in order, in float64; the label sums of the unit
//                                   lie in shared memory, in a column of their own
//
//                  units (threads) ->
//          h     +---------------------+
//       slice 0  | |  |  |  |  |  |  | |    db[0], label sums [0][C + 1]       Whoever reads the slices adds
//       (rows)   | v  v  v  v  v  v  v |    (and r dz summed over variants)    them, in order: ffkern_update,
//                +---------------------+                                       ffkern_peer, or the epilogue of
//       slice 1  | |  |  |  |  |  |  | |    db[1], ...                         the gradient product.
//                +---------------------+
//
// Bytes of sums: h once (once more for every further 32 labels), 2 or 4 N M for the operand. FLOPs: a few an element.
#include "../core/math.h"
#include "elements.cuh"
#include "label.cuh"
#include "lessons.h"
#include "rows.h"
#include "target.cuh"

namespace ffkern::cuda {
namespace {

/// `value` of all threads of the block combined by a tree, for thread 0. Scratch: one value a thread.
template <int kThreads, class T, class Combine>
__device__ T block_reduce(T value, T* scratch, Combine combine) {
  __syncthreads();  // the scratch may still be read
  scratch[threadIdx.x] = value;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) scratch[threadIdx.x] = combine(scratch[threadIdx.x], scratch[threadIdx.x + half]);
  }
  return scratch[threadIdx.x];  // its own, which no other thread writes any more
}

__device__ double add(double a, double b) { return a + b; }
/// The larger one; NaN if either is.
__device__ float larger(float a, float b) { return a != a || a > b ? a : b; }

/// Slope of one activity's goodness: dz = slope * h, or slope where h > 0.
__device__ float dz_of(Goodness kind, float slope, float h) {
  return kind == Goodness::kSumAbs ? (h > 0.0f ? slope : h != h ? h : 0.0f) : slope * h;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kRowsThreads) ffkern_rows(const __grid_constant__ RowsParams p) {
  const int64_t row = int64_t{blockIdx.x} * kRowsThreads + threadIdx.x;
  const bool inside = row < p.rows;
  float goodness = 0.0f;
  if (inside) {
    if (p.partial_sq != nullptr) {
      float sum_sq = 0.0f, sum = 0.0f;
      for (int tile = 0; tile < p.tiles_n; ++tile) {
        sum_sq += p.partial_sq[tile * p.rows + row];
        if (p.partial_sum != nullptr) sum += p.partial_sum[tile * p.rows + row];
      }
      goodness = goodness_of(p.kind, sum_sq, sum, p.units);
      p.goodness[row] = goodness;
      p.h_norm[row] = sqrtf(sum_sq);
    } else if (p.sign != nullptr) {
      goodness = p.goodness[row];
    }
  }
  if (p.coef == nullptr) return;

  const float sign = inside && p.sign != nullptr ? p.sign[row] : 0.0f;
  double stats[kStatCount] = {};
  float coef = 0.0f;
  if (sign != 0.0f) {
    const float weight = p.row_weight != nullptr ? p.row_weight[row] : 1.0f / static_cast<float>(p.rows);
    const RowLoss r = row_loss(p.loss, goodness, sign, weight);
    const bool positive = sign > 0.0f;
    coef = r.coef;
    stats[kStatLoss] = r.loss;
    stats[kStatGoodnessPos] = positive ? goodness : 0.0;
    stats[kStatGoodnessNeg] = positive ? 0.0 : goodness;
    stats[kStatCorrectPos] = positive && goodness > p.loss.threshold;
    stats[kStatCorrectNeg] = !positive && goodness < p.loss.threshold;
    stats[kStatRowsPos] = positive;
    stats[kStatRowsNeg] = !positive;
    stats[kStatKeptPos] = positive;  // until an update leaves it out
    stats[kStatKeptNeg] = !positive;
  }
  if (inside) {
    if (p.sign != nullptr) {
      p.coef[row] = coef;
    } else {
      coef = p.coef[row];
    }
  }
  __shared__ double scratch[kRowsThreads];
  if (p.partial_stats != nullptr) {
    for (int k = 0; k < kStatCount; ++k) {
      const double sum = block_reduce<kRowsThreads>(stats[k], scratch, add);
      if (threadIdx.x == 0) p.partial_stats[int64_t{blockIdx.x} * kStatCount + k] = sum;
    }
  }
  if (p.scale == nullptr) return;

  float scale = inside ? p.scale[row] : 0.0f;
  if (p.x != nullptr && scale > 256.0f) {  // rare: such rows alone are looked at
    bool zero = true;
    for (int k = 0; k < p.inputs && zero; ++k) zero = (p.x[row * p.x_pitch + k] & 0x7fff) == 0;
    if (zero) scale = 0.0f;
  }
  const float factor = coef * goodness_slope(p.kind, p.units) * scale;
  const float peer = inside && p.peer_sign != nullptr && p.peer_sign[row] > 0.0f ? scale : 0.0f;
  if (inside) {
    p.factor[row] = factor;
    if (p.peer_factor != nullptr) p.peer_factor[row] = peer;
  }
  if (p.partial_max == nullptr) return;
  __shared__ float largest[kRowsThreads];
  const float most = block_reduce<kRowsThreads>(fabsf(factor), largest, larger);
  if (threadIdx.x == 0) p.partial_max[blockIdx.x] = most;
  const float most_peer = block_reduce<kRowsThreads>(peer, largest, larger);
  if (threadIdx.x == 0) p.partial_max[gridDim.x + blockIdx.x] = most_peer;
}

extern "C" __global__ void __launch_bounds__(256) ffkern_finish(const __grid_constant__ FinishParams p) {
  const int lane = threadIdx.x % 32;
  for (int statistic = threadIdx.x / 32; p.partial_stats != nullptr && statistic < p.count; statistic += 8) {  // a warp
    double sum = 0.0;
    for (int64_t b = lane; b < p.blocks; b += 32) sum += p.partial_stats[b * p.count + statistic];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) {
      p.stats[statistic] = p.add ? p.stats[statistic] + sum : sum;
      if (statistic == 0 && p.loss != nullptr) *p.loss = static_cast<float>(sum);
    }
  }
  __shared__ float scratch[256];
  if (p.power != nullptr) {
    float factor = 0.0f, peer = 0.0f;
    for (int64_t b = threadIdx.x; b < p.blocks; b += 256) {
      factor = larger(factor, p.partial_max[b]);
      peer = larger(peer, p.partial_max[p.blocks + b]);
    }
    factor = block_reduce<256>(factor, scratch, larger);
    peer = block_reduce<256>(peer, scratch, larger);
    if (threadIdx.x == 0) {
      float most = p.peer_max != nullptr ? larger(factor, peer * *p.peer_max) : factor;
      most *= static_cast<float>(p.variants);  // that many factors add up in one element
      int exponent = 0;
      if (most > 0.0f && most < INFINITY) frexpf(most, &exponent);
      exponent = exponent < -100 ? -100 : exponent > 100 ? 100 : exponent;  // both powers are normal numbers
      p.power[0] = ldexpf(1.0f, -exponent);
      p.power[1] = ldexpf(1.0f, exponent);
    }
  }
  if (p.rules != nullptr && threadIdx.x == 0) {
    OptimiserParams params;
    params.kind = p.optimiser.kind;
    params.lr = *p.optimiser.lr;
    params.beta1 = p.optimiser.beta1;
    params.beta2 = p.optimiser.beta2;
    params.eps = p.optimiser.eps;
    params.weight_decay = p.optimiser.weight_decay;
    params.step = ++*p.optimiser.step;
    p.rules[0] = update_rule(params, false);
    p.rules[1] = update_rule(params, true);
  }
}

extern "C" __global__ void __launch_bounds__(128) ffkern_columns(const __grid_constant__ ColumnsParams p) {
  const int j = blockIdx.x * 128 + threadIdx.x;
  if (j >= p.units) return;
  float total = 0.0f;
  for (int c = 0; c < p.classes; ++c) {
    const float w = load_element(p.weight, p.storage, j * p.pitch + c);
    p.columns[int64_t{c} * p.units + j] = w;
    total += w;
  }
  p.columns[int64_t{p.classes} * p.units + j] = total;
}

extern "C" __global__ void __launch_bounds__(256) ffkern_variants(const __grid_constant__ VariantsParams p) {
  const int64_t row = int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= int64_t{p.variants} * p.images) return;  // whole warps leave
  const int64_t image = row % p.images;
  const RowLabel label(p.labels[row], p.classes, p.overlay);
  const float scale = row_scale(p.kind, label.norm_with(p.rest_norm[image]), p.inputs);
  const float* column = p.columns + int64_t{label.index} * p.units;
  float sum_sq = 0.0f, sum = 0.0f;
  for (int j = lane; j < p.units; j += 32) {
    const float base = load_element(p.base, p.base_storage, image * p.base_pitch + j);
    const float z = fmaf(scale, fmaf(label.value, column[j], base), p.bias != nullptr ? p.bias[j] : 0.0f);
    const float h = z < 0.0f ? 0.0f : z;
    store_element(p.h, p.h_storage, row * p.h_pitch + j, h);
    sum_sq = fmaf(h, h, sum_sq);
    sum += h;
  }
  for (int step = 1; step < 32; step *= 2) {
    sum_sq += __shfl_xor_sync(0xffffffffu, sum_sq, step);
    sum += __shfl_xor_sync(0xffffffffu, sum, step);
  }
  if (lane == 0) {
    p.goodness[row] = goodness_of(p.kind.goodness, sum_sq, sum, p.units);
    p.scale[row] = scale;
    p.h_norm[row] = sqrtf(sum_sq);
  }
}

namespace {

/// Sum over rows [begin, end) of dz, or of h of positive rows: eight at a time in float32, so that as many loads are
/// under way, and these in float64.
__device__ double sum_rows(const SumsParams& p, float slope, int j, int64_t begin, int64_t end) {
  constexpr int kTogether = 8;
  double sum = 0.0;
  for (int64_t first = begin; first < end; first += kTogether) {
    float part = 0.0f;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int64_t row = first + i;
      if (row >= end) continue;
      const float h = load_element(p.h, p.storage, row * p.h_pitch + j);
      part += p.coef != nullptr ? dz_of(p.kind, p.coef[row] * slope, h) : p.sign[row] > 0.0f ? h : 0.0f;
    }
    sum += part;
  }
  return sum;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kSumsThreads) ffkern_sums(const __grid_constant__ SumsParams p) {
  extern __shared__ double of_label[];  // [labels, kSumsThreads]
  const int j = blockIdx.x * kSumsThreads + threadIdx.x;
  if (j >= p.units) return;
  const float slope = goodness_slope(p.kind, p.units);
  const int64_t begin = blockIdx.y * p.slice_images;
  const int64_t end = begin + p.slice_images < p.images ? begin + p.slice_images : p.images;
  if (p.classes == 0) {
    p.sums[int64_t{blockIdx.y} * p.units + j] = static_cast<float>(sum_rows(p, slope, j, begin, end));
    return;
  }

  const int first_label = blockIdx.z * kSumsLabels;  // the first group of labels does the rest too
  const int labels = min(p.classes + 1 - first_label, kSumsLabels);
  double* own = of_label + threadIdx.x;
  for (int c = 0; c < labels; ++c) own[c * kSumsThreads] = 0.0;
  const float peer = p.peer != nullptr ? p.peer[j] : 0.0f;
  const float power = p.power != nullptr ? p.power[0] : 1.0f;
  double db = 0.0;
  for (int64_t i = begin; i < end; ++i) {
    float operand = 0.0f;
    for (int v = 0; v < p.variants; ++v) {
      const int64_t row = v * p.images + i, label = p.labels[row];
      float dz = dz_of(p.kind, p.coef[row] * slope, load_element(p.h, p.storage, row * p.h_pitch + j));
      if (label < -1 || label >= p.classes) dz = __int_as_float(0x7fffffff);  // as in the forward
      const bool positive = p.sign != nullptr && p.sign[row] > 0.0f;
      const float scaled = (dz + (positive ? peer : 0.0f)) * p.scale[row];
      db += dz;
      operand += scaled;
      const int64_t at = (label == -1 ? p.classes : label) - first_label;
      if (at >= 0 && at < labels) own[at * kSumsThreads] += scaled;
    }
    if (blockIdx.z == 0) store_element(p.operand, p.storage, i * p.units + j, operand * power);
  }
  float* sums = p.sums + blockIdx.y * (int64_t{p.classes} + 2) * p.units + j;
  if (blockIdx.z == 0) sums[0] = static_cast<float>(db);
  for (int c = 0; c < labels; ++c) {
    sums[(1 + int64_t{first_label} + c) * p.units] = static_cast<float>(own[c * kSumsThreads]);
  }
}

extern "C" __global__ void __launch_bounds__(256) ffkern_peer(const __grid_constant__ PeerTermParams p) {
  __shared__ double totals[256];
  __shared__ float largest[256];
  __shared__ double shared_positives, shared_centre;
  double count = 0.0;
  for (int64_t i = threadIdx.x; i < p.rows; i += 256) count += p.sign[i] > 0.0f;
  count = block_reduce<256>(count, totals, add);
  if (threadIdx.x == 0) shared_positives = count;
  __syncthreads();
  const float positives = static_cast<float>(shared_positives);
  if (threadIdx.x == 0 && p.positives != nullptr) *p.positives = positives;

  if (p.sums != nullptr) {  // else p is there already
    double total = 0.0;
    for (int j = threadIdx.x; j < p.units; j += 256) {
      double sum = 0.0;
      for (int s = 0; s < p.slices; ++s) sum += p.sums[int64_t{s} * p.units + j];
      if (positives > 0.0f) {
        const float mean = static_cast<float>(sum) / positives;
        p.mean[j] = p.peer.momentum * p.mean[j] + (1.0f - p.peer.momentum) * mean;
      }
      total += p.mean[j];
    }
    total = block_reduce<256>(total, totals, add);
    if (threadIdx.x == 0) shared_centre = total / p.units;
    __syncthreads();
    const float centre = static_cast<float>(shared_centre);
    for (int j = threadIdx.x; j < p.units; j += 256) {
      p.p[j] = positives > 0.0f ? p.peer.strength / positives * (p.mean[j] - centre) : 0.0f;
    }
  }
  if (p.largest == nullptr) return;
  float most = 0.0f;
  for (int j = threadIdx.x; j < p.units; j += 256) most = larger(most, fabsf(p.p[j]));
  most = block_reduce<256>(most, largest, larger);
  if (threadIdx.x == 0) *p.largest = most;
}

/// The parts of dW [unit x, 4 or 1 inputs a thread]; then blocks of biases (y = 0) and of label columns (y = 1 +
/// label).
extern "C" __global__ void __launch_bounds__(kUpdateThreads) ffkern_update(const __grid_constant__ UpdateParams p) {
  const GradientTarget& t = p.target;
  const int weight_blocks = p.partial != nullptr ? t.units : 0;
  if (blockIdx.x >= weight_blocks) {
    const int j = (blockIdx.x - weight_blocks) * kUpdateThreads + threadIdx.x;
    if (j >= t.units) return;
    if (blockIdx.y == 0) finish_bias(t, j);
    if (blockIdx.y >= 1 && blockIdx.y <= t.classes) finish_label(t, j, blockIdx.y - 1);
    return;
  }
  const int j = blockIdx.x;  // (grid y may reach further, for label columns: such blocks find no input)
  const int64_t size = int64_t{t.units} * t.inputs;
  const auto finish = [&](auto zero) {
    constexpr int kCount = sizeof(zero) / sizeof(float);
    const int k = (blockIdx.y * kUpdateThreads + threadIdx.x) * kCount;
    if (k >= t.inputs) return;
    const float* source = p.partial + int64_t{j} * t.inputs + k;
    Floats<kCount> g = *reinterpret_cast<const Floats<kCount>*>(source);
    for (int s = 1; s < p.splits; ++s) {
      const auto more = *reinterpret_cast<const Floats<kCount>*>(source + s * size);
      for (int e = 0; e < kCount; ++e) g.at[e] += more.at[e];
    }
    finish_product(t, t.dweight == nullptr ? t.rules[0] : UpdateRule{}, j, k, g);
  };
  if (p.wide) {
    finish(Floats<4>{});
  } else {
    finish(Floats<1>{});
  }
}

// ---------------------------------------------------------------- rows that still teach (lessons.h)

namespace {

/// `value` summed over the lanes of a warp, in all of them.
__device__ float warp_sum(float value) {
  for (int step = 1; step < 32; step *= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

/// Norm of elements [begin, end) of a matrix in memory, by a warp.
__device__ float warp_norm(const void* matrix, Storage storage, int64_t begin, int64_t end) {
  float sum = 0.0f;
  for (int64_t at = begin + threadIdx.x % 32; at < end; at += 32) {
    const float value = load_element(matrix, storage, at);
    sum = fmaf(value, value, sum);
  }
  return sqrtf(warp_sum(sum));
}

/// Copies a row of `count` elements by all threads of the block, 16 bytes at a time where it can.
__device__ __forceinline__ void copy_row(const void* from, void* to, int64_t from_row, int64_t to_row, int count,
                                         int element) {
  const auto* source = static_cast<const char*>(from) + from_row * element;
  auto* target = static_cast<char*>(to) + to_row * element;
  const int bytes = count * element;
  const int wide =
      (reinterpret_cast<uintptr_t>(source) | reinterpret_cast<uintptr_t>(target)) % 16 == 0 ? bytes / 16 : 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < wide; i += kLessonsThreads) {
    reinterpret_cast<uint4*>(target)[i] = reinterpret_cast<const uint4*>(source)[i];
  }
#pragma unroll 1
  for (int i = wide * 8 + threadIdx.x; i < bytes / 2; i += kLessonsThreads) {
    reinterpret_cast<uint16_t*>(target)[i] = reinterpret_cast<const uint16_t*>(source)[i];
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kLessonsThreads) ffkern_masses(const __grid_constant__ LessonsParams p) {
  const int64_t image = int64_t{blockIdx.x} * (kLessonsThreads / 32) + threadIdx.x / 32;
  if (image >= p.images) return;  // whole warps leave
  const int64_t begin = image * p.x_pitch;
  const double length = warp_norm(p.x, p.storage, begin + p.classes, begin + p.inputs);
  const float slope = goodness_slope(p.kind, p.units);
  double mass = 0.0;
  float owed = 0.0f;
  for (int v = 0; v < p.variants; ++v) {
    const int64_t row = v * p.images + image, first = row * p.h_pitch;
    const float dh = p.kind == Goodness::kSumAbs ? sqrtf(static_cast<float>(p.units))
                     : p.h_norm != nullptr       ? p.h_norm[row]
                                                 : warp_norm(p.h, p.storage, first, first + p.units);
    mass += fabs(static_cast<double>(p.coef[row]) * slope) * dh * p.scale[row] * length;
    if (p.peer != nullptr && p.sign[row] > 0.0f) owed += p.scale[row];
  }
  if (threadIdx.x % 32 != 0) return;
  p.mass[image] = mass;
  if (p.peer != nullptr) p.owed[image] = owed;
}

extern "C" __global__ void __launch_bounds__(kLessonsThreads) ffkern_choose(const __grid_constant__ LessonsParams p) {
  __shared__ double scratch[kLessonsThreads];
  __shared__ int first_slot[kLessonsThreads];  // of the images of each thread
  __shared__ double shared_total;
  __shared__ int shared_kept;
  const int64_t begin = p.images * threadIdx.x / kLessonsThreads, end = p.images * (threadIdx.x + 1) / kLessonsThreads;
  double total = 0.0;
  for (int64_t i = begin; i < end; ++i) total += p.mass[i];
  total = block_reduce<kLessonsThreads>(total, scratch, add);
  if (threadIdx.x == 0) shared_total = total;
  __syncthreads();
  const double least = p.tolerance * shared_total / static_cast<double>(p.images);
  int kept = 0;
  for (int64_t i = begin; i < end; ++i) kept += p.mass[i] > least;
  first_slot[threadIdx.x] = kept;
  __syncthreads();
  if (threadIdx.x == 0) {
    int sum = 0;
    for (int t = 0; t < kLessonsThreads; ++t) {
      const int own = first_slot[t];
      first_slot[t] = sum;
      sum += own;
    }
    const bool some = isfinite(shared_total) && sum <= p.most;
    shared_kept = some ? sum + (p.peer != nullptr ? kOwedRows : 0) : -1;
    *p.kept = shared_kept;
  }
  __syncthreads();
  if (shared_kept < 0) return;
  int slot = first_slot[threadIdx.x];
  double positive = 0.0, negative = 0.0;  // rows left out
  for (int64_t i = begin; i < end; ++i) {
    const bool teaches = p.mass[i] > least;
    p.slot[i] = teaches ? slot++ : -1;
    for (int v = 0; v < p.variants && !teaches && p.stats != nullptr; ++v) {
      positive += p.sign[v * p.images + i] > 0.0f;
      negative += p.sign[v * p.images + i] < 0.0f;
    }
  }
  if (p.stats == nullptr) return;
  positive = block_reduce<kLessonsThreads>(positive, scratch, add);
  if (threadIdx.x == 0) p.stats[kStatKeptPos] -= positive;
  negative = block_reduce<kLessonsThreads>(negative, scratch, add);
  if (threadIdx.x == 0) p.stats[kStatKeptNeg] -= negative;
}

extern "C" __global__ void __launch_bounds__(kLessonsThreads) ffkern_gather(const __grid_constant__ LessonsParams p) {
  const int64_t image = blockIdx.x;
  if (*p.kept < 0) return;
  const int64_t slot = p.slot[image];
  if (slot < 0) return;
  const int element = p.storage == Storage::kFloat32 ? 4 : 2;
  copy_row(p.x, p.kept_x, image * p.x_pitch, slot * p.kept_x_pitch, p.inputs, element);
  copy_row(p.operand, p.kept_operand, image * p.operand_pitch, slot * p.kept_operand_pitch, p.units, element);
  if (threadIdx.x != 0 || p.factor == nullptr) return;
  p.kept_factor[slot] = p.factor[image];
  if (p.peer_factor != nullptr) p.kept_peer_factor[slot] = p.peer_factor[image];
}

extern "C" __global__ void __launch_bounds__(kLessonsThreads) ffkern_owed(const __grid_constant__ LessonsParams p) {
  if (*p.kept < 0) return;
  const int column = blockIdx.x * kLessonsThreads + threadIdx.x, slice = blockIdx.y;
  const int64_t begin = p.images * slice / kOwedRows, end = p.images * (slice + 1) / kOwedRows;
  float largest = 0.0f, sum = 0.0f;
  int debtors = 0;
  for (int64_t i = begin; i < end; ++i) {
    const float owed = p.slot[i] < 0 ? p.owed[i] : 0.0f;  // the same for every thread
    if (owed == 0.0f) continue;
    ++debtors;
    largest = fmaxf(largest, owed);
    if (column < p.inputs) sum = fmaf(owed, load_element(p.x, p.storage, i * p.x_pitch + column), sum);
  }
  const float q = largest * static_cast<float>(debtors);
  const int64_t slot = *p.kept - kOwedRows + slice;
  if (column < p.inputs) store_element(p.kept_x, p.storage, slot * p.kept_x_pitch + column, q > 0.0f ? sum / q : 0.0f);
  if (column < p.units) {
    const float power = p.power != nullptr ? p.power[0] : 1.0f;
    const float operand = p.factor == nullptr ? q * power * p.peer[column] : 0.0f;
    store_element(p.kept_operand, p.storage, slot * p.kept_operand_pitch + column, operand);
  }
  if (column != 0 || p.factor == nullptr) return;
  p.kept_factor[slot] = 0.0f;
  p.kept_peer_factor[slot] = q;
}

extern "C" __global__ void __launch_bounds__(256) ffkern_convert(const __grid_constant__ ConvertParams p) {
  const int64_t column = int64_t{blockIdx.y} * 256 + threadIdx.x;
  if (column >= p.columns) return;
  const float value = load_element(p.from, p.from_storage, blockIdx.x * p.from_pitch + column);
  store_element(p.to, p.to_storage, blockIdx.x * p.to_pitch + column, value);
}

}  // namespace ffkern::cuda
