#include "hopper.h"

#include <algorithm>

#include "instances.h"

namespace ffkern::cuda {
namespace {

/// The maps are filled in where they lie: the driver wants them aligned, and a temporary may not be.
void encode(TensorMap& map, int type, uint32_t rank, const void* data, const uint64_t (&sizes)[2], uint64_t pitch_bytes,
            const uint32_t (&box)[2], int swizzle) {
  constexpr uint32_t kEvery[2] = {1, 1};
  check(driver().tensor_map_encode(reinterpret_cast<CUtensorMap_st*>(&map), type, rank, const_cast<void*>(data), sizes,
                                   &pitch_bytes, box, kEvery, kTensorNotInterleaved, swizzle, kTensorPromote128,
                                   kTensorFillZero),
        "cuTensorMapEncodeTiled");
}

/// Boxes of box_rows rows of 128 bytes.
void set_boxes(TensorMap& map, const void* matrix, int type, int element, int64_t rows, int64_t columns, int64_t pitch,
               uint32_t box_rows) {
  if (rows == 1) pitch = parts(columns * element, 16) * 16 / element;  // any: there is no second row
  encode(map, type, 2, matrix, {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)},
         static_cast<uint64_t>(pitch * element), {128u / static_cast<uint32_t>(element), box_rows}, kTensorSwizzle128);
}

void set_pieces(TensorMap& map, const float* vector, int64_t count, uint32_t piece) {
  encode(map, kTensorFloat32, 1, vector, {static_cast<uint64_t>(count), 1}, 0, {piece, 1}, kTensorNoSwizzle);
}

/// One block a multiprocessor walks through the tiles.
Dim blocks(const Queue& queue, int tiles_m, int tiles_n) {
  return {std::min<int64_t>(int64_t{tiles_m} * tiles_n, device_facts(queue.device).multiprocessors)};
}

}  // namespace

bool has_boxes(const void* matrix, int64_t rows, int64_t columns, int64_t pitch) {
  return reinterpret_cast<uintptr_t>(matrix) % 16 == 0 && rows > 0 && columns > 0 && (rows == 1 || pitch >= columns);
}

void hopper_forward(const Queue& queue, Product product, const Instance& instance, const ForwardParams& p) {
  const bool wide = product == Product::kTf32;
  const int element = wide ? 4 : 2;
  HopperForward params;
  params.p = p;
  set_boxes(params.x, p.x, wide ? kTensorFloat32 : kTensorUint16, element, p.images, p.inputs, p.x_pitch,
            static_cast<uint32_t>(instance.tile_m));
  set_boxes(params.weight, p.weight, wide ? kTensorTf32 : kTensorUint16, element, p.units, p.inputs, p.weight_pitch,
            static_cast<uint32_t>(instance.tile_n));
  launch(queue, kImageHopper, instance.forward, blocks(queue, p.tiles_m, p.tiles_n), instance.threads,
         instance.forward_bytes, params);
}

void hopper_gradient(const Queue& queue, Product product, const Instance& instance, const GradientParams& p) {
  const bool wide = product == Product::kTf32;
  const int element = wide ? 4 : 2, type = wide ? kTensorFloat32 : kTensorUint16;
  const auto box = static_cast<uint32_t>(instance.tile_k);
  HopperGradient params;
  params.p = p;
  set_boxes(params.h, p.h, type, element, p.rows, p.target.units, p.h_pitch, box);
  set_boxes(params.x, p.x, type, element, p.rows, p.target.inputs, p.x_pitch, box);
  if (p.factor != nullptr) set_pieces(params.factor, p.factor, p.rows, box);
  if (p.peer_factor != nullptr) set_pieces(params.peer_factor, p.peer_factor, p.rows, box);
  launch(queue, kImageHopper, instance.gradient, blocks(queue, p.tiles_m, p.tiles_n), instance.threads,
         instance.gradient_bytes, params);
}

}  // namespace ffkern::cuda
