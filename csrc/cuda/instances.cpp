#include "instances.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>

#include "hopper.h"
#include "rows.h"

namespace ffkern::cuda {
namespace {

#define FFKERN_ROW(math, bytes, instance, ...) \
  {#instance,                                  \
   "ffkern_forward_" #math "_" #instance,      \
   "ffkern_gradient_" #math "_" #instance,     \
   Tile<bytes, __VA_ARGS__>::kTileM,           \
   Tile<bytes, __VA_ARGS__>::kTileN,           \
   Tile<bytes, __VA_ARGS__>::kTileK,           \
   Tile<bytes, __VA_ARGS__>::kThreads,         \
   Tile<bytes, __VA_ARGS__>::kCopyBytes,       \
   Tile<bytes, __VA_ARGS__>::kPasses,          \
   Tile<bytes, __VA_ARGS__>::kForwardBytes,    \
   Tile<bytes, __VA_ARGS__>::kGradientBytes},
#define FFKERN_BF16(...) FFKERN_ROW(bf16, 2, __VA_ARGS__)
#define FFKERN_F16(...) FFKERN_ROW(f16, 2, __VA_ARGS__)
#define FFKERN_TF32(...) FFKERN_ROW(tf32, 4, __VA_ARGS__)
#define FFKERN_TF32X3(...) FFKERN_ROW(tf32x3, 4, __VA_ARGS__)
#define FFKERN_F32(...) FFKERN_ROW(f32, 4, __VA_ARGS__)
#define FFKERN_HOPPER_ROW(math, bytes, instance, m, n, k, stages) \
  {#instance,                                                     \
   "ffkern_forward_" #math "_" #instance,                         \
   "ffkern_gradient_" #math "_" #instance,                        \
   m,                                                             \
   n,                                                             \
   k,                                                             \
   HopperTile<bytes, n, stages>::kThreads,                        \
   16,                                                            \
   HopperTile<bytes, n, stages>::kPasses,                         \
   HopperTile<bytes, n, stages>::kBytes,                          \
   HopperTile<bytes, n, stages>::kBytes,                          \
   true},
#define FFKERN_HOPPER_BF16(...) FFKERN_HOPPER_ROW(bf16, 2, __VA_ARGS__)
#define FFKERN_HOPPER_F16(...) FFKERN_HOPPER_ROW(f16, 2, __VA_ARGS__)
#define FFKERN_HOPPER_TF32(...) FFKERN_HOPPER_ROW(tf32, 4, __VA_ARGS__)
constexpr Instance kBf16[] = {FFKERN_HOPPER_16BIT(FFKERN_HOPPER_BF16) FFKERN_TILES_16BIT(FFKERN_BF16)};
constexpr Instance kF16[] = {FFKERN_HOPPER_16BIT(FFKERN_HOPPER_F16) FFKERN_TILES_16BIT(FFKERN_F16)};
constexpr Instance kTf32[] = {FFKERN_HOPPER_32BIT(FFKERN_HOPPER_TF32) FFKERN_TILES_32BIT(FFKERN_TF32)};
constexpr Instance kTf32x3[] = {FFKERN_TILES_32BIT(FFKERN_TF32X3)};
constexpr Instance kF32[] = {FFKERN_TILES_32BIT(FFKERN_F32)};

std::span<const Instance> instances(Product product) {
  switch (product) {
    case Product::kBf16:
      return kBf16;
    case Product::kF16:
      return kF16;
    case Product::kTf32:
      return kTf32;
    case Product::kTf32x3:
      return kTf32x3;
    case Product::kF32:
      break;
  }
  return kF32;
}

const Image& image_of(Product product) {
  switch (product) {
    case Product::kBf16:
      return kImageBf16;
    case Product::kF16:
      return kImageF16;
    case Product::kTf32:
    case Product::kTf32x3:
      return kImageTf32;
    case Product::kF32:
      break;
  }
  return kImageF32;
}

/// What decides about an instance, besides the tiles of the result.
struct Operands {
  int aligned;            // bytes that the rows of both are aligned to
  bool boxes;             // both can be described for copies of boxes
  int Instance::* bytes;  // of the direction
  const DeviceFacts& facts;

  /// Whether the device is one that the instance is made for.
  bool at_home(const Instance& instance) const {
    return !instance.hopper ||
           (facts.capability == 90 && kImageHopper.data != nullptr && driver().tensor_map_encode != nullptr);
  }
  /// Whether the instance takes such operands.
  bool takes(const Instance& instance) const { return boxes || !instance.hopper; }
};

/// The instance that $FFKERN_CUDA_PRODUCT names, if it is set and takes such operands.
const Instance* forced(std::span<const Instance> all, const Operands& operands) {
  const char* name = std::getenv("FFKERN_CUDA_PRODUCT");
  if (!name || !*name) return nullptr;
  std::string names;
  for (const Instance& instance : all) {
    if (!operands.at_home(instance)) continue;
    names += (names.empty() ? "" : ", ") + std::string(instance.name);
    if (std::string_view(name) != instance.name) continue;
    if (!operands.takes(instance)) return nullptr;
    if (instance.*operands.bytes > operands.facts.shared_bytes) {
      throw std::invalid_argument("ffkern: FFKERN_CUDA_PRODUCT=" + std::string(name) + " needs " +
                                  std::to_string(instance.*operands.bytes) +
                                  " bytes of shared memory, but the device grants a block " +
                                  std::to_string(operands.facts.shared_bytes) + ".");
    }
    if (instance.copy_bytes <= operands.aligned) return &instance;
    throw std::invalid_argument("ffkern: FFKERN_CUDA_PRODUCT=" + std::string(name) +
                                " needs operands and their rows aligned to " + std::to_string(instance.copy_bytes) +
                                " bytes, but they are aligned to " + std::to_string(operands.aligned) + ".");
  }
  throw std::invalid_argument("ffkern: FFKERN_CUDA_PRODUCT=" + std::string(name) + " is not one of " + names + ".");
}

int64_t tiles(const Instance& instance, int64_t m, int64_t n) {
  return parts(m, instance.tile_m) * parts(n, instance.tile_n);
}

/// What the busiest multiprocessor does: its tiles, times what binds in one. That is shared memory, or where products
/// are those of float32 or three, arithmetic: the multiply-adds, and what a row or column costs beside them.
int64_t busiest(Product product, const Instance& instance, int64_t m, int64_t n, const DeviceFacts& facts) {
  const bool multiplies = product == Product::kF32 || product == Product::kTf32x3;
  const int64_t arithmetic = int64_t{instance.tile_m} * instance.tile_n + 8 * (instance.tile_m + instance.tile_n);
  const int64_t each = multiplies ? arithmetic : instance.passes;
  return parts(tiles(instance, m, n), facts.multiprocessors) * each;
}

/// The widest copies that the alignment allows (smaller tiles do not make up for narrower ones), and with them the tile
/// with which the busiest multiprocessor does least; of equals the largest.
const Instance& choose(Product product, int64_t m, int64_t n, const Operands& operands) {
  const std::span<const Instance> all = instances(product);
  if (const Instance* instance = forced(all, operands)) return *instance;
  const DeviceFacts& facts = operands.facts;
  const Instance* chosen = nullptr;
  for (const Instance& instance : all) {
    if (!operands.at_home(instance) || !operands.takes(instance)) continue;
    if (instance.copy_bytes > operands.aligned || instance.*operands.bytes > facts.shared_bytes) continue;
    if (chosen && instance.copy_bytes < chosen->copy_bytes) break;
    if (!chosen || busiest(product, instance, m, n, facts) < busiest(product, *chosen, m, n, facts)) {
      chosen = &instance;
    }
  }
  if (!chosen) {
    throw std::runtime_error("ffkern: the device grants a block " + std::to_string(facts.shared_bytes) +
                             " bytes of shared memory, too few for every instance of the product.");
  }
  return *chosen;
}

/// How often the batch is split: until the grid fills the chip, as long as a split has a few stages of rows to itself.
/// Hopper's instances take the whole batch: they are chosen where small tiles would fill the chip more than once.
int64_t split_count(const Instance& instance, int64_t rows, int64_t units, int64_t inputs, const DeviceFacts& facts) {
  if (instance.hopper) return 1;
  const int64_t fill = facts.multiprocessors / std::max<int64_t>(1, tiles(instance, units, inputs));
  const int64_t most = std::max<int64_t>(1, rows / (4 * instance.tile_k));
  return std::clamp<int64_t>(fill, 1, most);
}

bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

int checked_size(const char* name, int64_t size) {
  constexpr int64_t kMaxSize = (int64_t{1} << 29) - 4096;  // bytes of a row are counted in 32 bits
  if (size <= kMaxSize) return static_cast<int>(size);
  throw std::invalid_argument("ffkern: a layer on CUDA got " + std::to_string(size) + " " + name + "; it takes up to " +
                              std::to_string(kMaxSize) + ".");
}

int alignment(const void* matrix, int64_t pitch, int64_t rows, Storage storage) {
  const int64_t bytes = storage_bytes(storage);
  const uint64_t bits =
      reinterpret_cast<uintptr_t>(matrix) | (rows > 1 ? static_cast<uint64_t>(pitch * bytes) : 0) | 16;
  return static_cast<int>(bits & ~(bits - 1));  // the lowest bit set
}

int forward_product(const Queue& queue, Product product, ForwardParams p) {
  // A single row has no pitch that has to be aligned, but addresses of rows beyond the matrix are formed with it.
  if (p.images == 1) p.x_pitch = 0;
  if (p.units == 1) p.weight_pitch = 0;
  const Storage storage = storage_of(product);
  const int aligned =
      std::min(alignment(p.x, p.x_pitch, p.images, storage), alignment(p.weight, p.weight_pitch, p.units, storage));
  const bool boxes =
      has_boxes(p.x, p.images, p.inputs, p.x_pitch) && has_boxes(p.weight, p.units, p.inputs, p.weight_pitch);
  const DeviceFacts facts = device_facts(queue.device);
  const Instance& instance = choose(product, p.images, p.units, {aligned, boxes, &Instance::forward_bytes, facts});
  p.tiles_m = static_cast<int>(parts(p.images, instance.tile_m));
  p.tiles_n = static_cast<int>(parts(p.units, instance.tile_n));
  p.store_bytes = p.h != nullptr ? alignment(p.h, p.h_pitch, int64_t{p.images} * p.variants, storage) : 0;
  if (instance.hopper) {
    hopper_forward(queue, product, instance, p);
  } else {
    launch(queue, image_of(product), instance.forward, {int64_t{p.tiles_m} * p.tiles_n}, instance.threads,
           instance.forward_bytes, p);
  }
  return p.tiles_n;
}

int64_t most_column_tiles(Product product, int64_t units) {
  int64_t most = 0;
  for (const Instance& instance : instances(product)) most = std::max(most, parts(units, instance.tile_n));
  return most;
}

void gradient_product(const Queue& queue, Product product, GradientParams p, float* partial) {
  if (p.rows == 1) p.h_pitch = p.x_pitch = 0;
  const Storage storage = storage_of(product);
  const GradientTarget& t = p.target;
  const int aligned = std::min(alignment(p.h, p.h_pitch, p.rows, storage), alignment(p.x, p.x_pitch, p.rows, storage));
  const DeviceFacts facts = device_facts(queue.device);
  // Boxes are cut from matrices whose rows the host knows.
  const bool boxes = p.kept == nullptr && aligned16(p.factor) && aligned16(p.peer_factor) &&
                     has_boxes(p.h, p.rows, t.units, p.h_pitch) && has_boxes(p.x, p.rows, t.inputs, p.x_pitch);
  const Instance& instance = choose(product, t.units, t.inputs, {aligned, boxes, &Instance::gradient_bytes, facts});
  const int64_t splits = split_count(instance, p.rows, t.units, t.inputs, facts);
  p.split_rows =
      static_cast<int>(std::max<int64_t>(1, parts(parts(p.rows, splits), instance.tile_k)) * instance.tile_k);
  const int64_t used = std::max<int64_t>(1, parts(p.rows, p.split_rows));  // rounding up may leave the last ones empty
  p.tiles_m = static_cast<int>(parts(t.units, instance.tile_m));
  p.tiles_n = static_cast<int>(parts(t.inputs, instance.tile_n));
  p.partial = used > 1 ? partial : nullptr;
  p.wide = t.inputs % 4 == 0 && aligned16(t.weight) && aligned16(t.m) && aligned16(t.v) && aligned16(t.low) &&
           aligned16(t.dweight) && aligned16(partial);
  if (instance.hopper) {
    hopper_gradient(queue, product, instance, p);
  } else {
    launch(queue, image_of(product), instance.gradient, {int64_t{p.tiles_m} * p.tiles_n, used}, instance.threads,
           instance.gradient_bytes, p);
  }
  UpdateParams rest;
  rest.partial = p.partial;
  rest.splits = static_cast<int>(used);
  rest.wide = p.wide;
  rest.target = t;
  update(queue, rest);
}

int64_t gradient_parts(const Queue& queue, Product product, int64_t rows, int64_t units, int64_t inputs) {
  const DeviceFacts facts = device_facts(queue.device);
  int64_t most = 1;
  for (const Instance& instance : instances(product)) {
    most = std::max(most, split_count(instance, rows, units, inputs, facts));
  }
  return most > 1 ? most * units * inputs : 0;
}

}  // namespace ffkern::cuda
