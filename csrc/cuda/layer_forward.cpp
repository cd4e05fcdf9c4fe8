#include "layer_forward.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "layer_forward_tile.h"
#include "module.h"

namespace ffkern::cuda {

struct LayerForwardInstance {
  const char *name, *kernel;
  int tile_m, tile_n, threads, copy_bytes, shared_bytes;
};

namespace {

#define FFKERN_ROW(name, ...)                 \
  {#name,                                     \
   "ffkern_layer_forward_bf16_" #name,        \
   LayerForwardTile<__VA_ARGS__>::kTileM,     \
   LayerForwardTile<__VA_ARGS__>::kTileN,     \
   LayerForwardTile<__VA_ARGS__>::kThreads,   \
   LayerForwardTile<__VA_ARGS__>::kCopyBytes, \
   LayerForwardTile<__VA_ARGS__>::kSharedBytes},
constexpr LayerForwardInstance kInstances[] = {FFKERN_LAYER_FORWARD_INSTANCES(FFKERN_ROW)};
#undef FFKERN_ROW

// The kernels count rows, units and inputs in 32 bits and step past the last tile; offsets in
// memory have 64.
constexpr int64_t kMaxSize = std::numeric_limits<int>::max() - 4096;

void check_size(const char* name, int64_t size, int64_t least) {
  if (size < least || size > kMaxSize) {
    throw std::invalid_argument("ffkern: layer_forward on CUDA got " + std::to_string(size) + " " + name +
                                "; it takes " + std::to_string(least) + " to " + std::to_string(kMaxSize) + ".");
  }
}

/// Widest access, of 16, 8, 4 or 2 bytes, that the address of every row of a bf16 matrix is a
/// multiple of.
int alignment(const void* matrix, int64_t pitch, int64_t rows) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(matrix) | (rows > 1 ? static_cast<uint64_t>(pitch) * 2 : 0) | 16;
  return static_cast<int>(bits & ~(bits - 1));  // the lowest bit set
}

int tiles(int64_t size, int tile) { return static_cast<int>((size + tile - 1) / tile); }

std::string names() {
  std::string list;
  for (const auto& instance : kInstances) {
    list += (list.empty() ? "" : ", ") + std::string(instance.name);
  }
  return list;
}

const LayerForwardInstance& forced_instance(const char* name, int aligned) {
  for (const auto& instance : kInstances) {
    if (std::strcmp(name, instance.name) != 0) continue;
    if (instance.copy_bytes <= aligned) return instance;
    throw std::invalid_argument("ffkern: FFKERN_CUDA_LAYER_FORWARD=" + std::string(name) +
                                " needs x, weight and their rows aligned to " + std::to_string(instance.copy_bytes) +
                                " bytes, but they are aligned to " + std::to_string(aligned) + ".");
  }
  throw std::invalid_argument("ffkern: FFKERN_CUDA_LAYER_FORWARD=" + std::string(name) + " is not one of " + names() +
                              ".");
}

const LayerForwardInstance& choose_instance(const LayerForward& op, Device device) {
  const int aligned = std::min(alignment(op.x, op.x_pitch, op.rows), alignment(op.weight, op.weight_pitch, op.units));
  const char* forced = std::getenv("FFKERN_CUDA_LAYER_FORWARD");
  if (forced && *forced) return forced_instance(forced, aligned);

  const DeviceFacts facts = device_facts(ContextGuard(device));
  const LayerForwardInstance* chosen = nullptr;
  for (const auto& instance : kInstances) {  // from the widest copies and the largest tiles down
    if (instance.copy_bytes > aligned || instance.shared_bytes > facts.shared_bytes) continue;
    // Smaller tiles do not make up for narrower copies.
    if (chosen && instance.copy_bytes < chosen->copy_bytes) break;
    chosen = &instance;
    const int64_t blocks = int64_t{tiles(op.rows, chosen->tile_m)} * tiles(op.units, chosen->tile_n);
    if (blocks >= facts.multiprocessors) break;
  }
  if (!chosen) {
    throw std::runtime_error("ffkern: the device grants a block " + std::to_string(facts.shared_bytes) +
                             " bytes of shared memory, too few for every instance of layer_forward.");
  }
  return *chosen;
}

}  // namespace

LayerForwardPlan plan_layer_forward(const LayerForward& op, Device device) {
  check_size("rows", op.rows, 0);
  check_size("units", op.units, 1);
  check_size("inputs", op.inputs, 1);
  if (op.rows == 0) return {};
  LayerForwardPlan plan;
  plan.instance = &choose_instance(op, device);
  plan.tiles_m = tiles(op.rows, plan.instance->tile_m);
  plan.tiles_n = tiles(op.units, plan.instance->tile_n);
  if (int64_t{plan.tiles_m} * plan.tiles_n > std::numeric_limits<int>::max()) {
    throw std::invalid_argument("ffkern: layer_forward on CUDA cannot count the tiles of " + std::to_string(op.rows) +
                                " rows of " + std::to_string(op.units) + " units: split the batch.");
  }
  const size_t sums = op.kind.goodness == Goodness::kSumAbs ? 2 : 1;
  plan.workspace_floats = sums * static_cast<size_t>(plan.tiles_n) * static_cast<size_t>(op.rows);
  return plan;
}

void launch_layer_forward(const LayerForward& op, const LayerForwardPlan& plan, float* workspace, Device device,
                          Stream stream) {
  if (op.rows == 0) return;
  const LayerForwardInstance& instance = *plan.instance;
  LayerForwardParams params;
  params.x = static_cast<const uint16_t*>(op.x);
  params.weight = static_cast<const uint16_t*>(op.weight);
  params.bias = op.bias;
  params.x_norm = op.x_norm;
  params.h = static_cast<uint16_t*>(op.h);
  params.scale = op.scale;
  params.partial_sq = workspace;
  if (op.kind.goodness == Goodness::kSumAbs) {
    params.partial_sum = workspace + int64_t{plan.tiles_n} * op.rows;
  }
  params.x_pitch = op.x_pitch;
  params.weight_pitch = op.weight_pitch;
  params.h_pitch = op.h_pitch;
  params.rows = static_cast<int>(op.rows);
  params.units = static_cast<int>(op.units);
  params.inputs = static_cast<int>(op.inputs);
  params.tiles_m = plan.tiles_m;
  params.tiles_n = plan.tiles_n;
  params.store_bytes = alignment(op.h, op.h_pitch, op.rows);
  params.kind = op.kind;

  LayerGoodnessParams sums;
  sums.partial_sq = params.partial_sq;
  sums.partial_sum = params.partial_sum;
  sums.goodness = op.goodness;
  sums.h_norm = op.h_norm;
  sums.rows = params.rows;
  sums.units = params.units;
  sums.tiles_n = plan.tiles_n;
  sums.kind = op.kind.goodness;

  constexpr const char* kGoodness = "ffkern_layer_goodness";
  const ContextGuard context(device);
  launch(instance.kernel, kernel(context, kLayerForwardImage, instance.kernel, instance.shared_bytes),
         {static_cast<unsigned>(plan.tiles_m * plan.tiles_n)}, static_cast<unsigned>(instance.threads),
         instance.shared_bytes, stream, params);
  launch(kGoodness, kernel(context, kLayerForwardImage, kGoodness),
         {static_cast<unsigned>(tiles(op.rows, kGoodnessThreads))}, kGoodnessThreads, 0, stream, sums);
}

}  // namespace ffkern::cuda
