// Launches the forward pass of one layer. No torch: pointers, sizes and a stream.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../core/types.h"
#include "driver.h"

namespace ffkern::cuda {

/// Operands in device memory. Matrices have unit inner stride; pitches are distances between rows
/// in elements. No pointer needs more than the alignment of its elements: the kernel is chosen by
/// the alignment found.
struct LayerForward {
  const void* x = nullptr;        // [rows, inputs] bf16
  const void* weight = nullptr;   // [units, inputs] bf16
  const float* bias = nullptr;    // [units] or null
  const float* x_norm = nullptr;  // [rows] L2 norms of the rows of x, or null: computed
  void* h = nullptr;              // [rows, units] bf16
  float* goodness = nullptr;      // [rows]
  float* scale = nullptr;         // [rows]
  float* h_norm = nullptr;        // [rows]
  int64_t x_pitch = 0, weight_pitch = 0, h_pitch = 0;
  int64_t rows = 0, units = 0, inputs = 0;
  LayerKind kind;
};

struct LayerForwardInstance;

/// Which instance runs, and how much scratch it needs.
struct LayerForwardPlan {
  const LayerForwardInstance* instance = nullptr;
  int tiles_m = 0, tiles_n = 0;
  size_t workspace_floats = 0;
};

/// Chooses the instance: the copy width by the alignment of x and weight; of the tiles that fit it
/// the largest that still gives every multiprocessor a block. $FFKERN_CUDA_LAYER_FORWARD forces an
/// instance by name. Throws std::invalid_argument if a size is beyond what the kernels count in, or
/// the forced name does not fit.
LayerForwardPlan plan_layer_forward(const LayerForward& operands, Device device);

/// Launches on `stream`; `workspace` holds plan.workspace_floats. Returns without waiting.
void launch_layer_forward(const LayerForward& operands, const LayerForwardPlan& plan, float* workspace, Device device,
                          Stream stream);

}  // namespace ffkern::cuda
