#include "pairs.h"

#include "arena.h"
#include "grid.h"

namespace ffkern::cpu {
namespace {

constexpr int64_t kStrip = 8;      // rows of a tile in registers
constexpr int64_t kRows = 256;     // of z at most at once, and
constexpr int64_t kColumns = 240;  // columns: with their operands they stay in the second-level cache

/// Columns of x that make no whole pair: the last of an odd number, and the first behind an odd number of labels.
struct EdgePair {
  int64_t pair;    // of the panels
  int64_t column;  // of x
  bool high;       // which half of the pair it is
};

/// z of a part, in the calling thread.
void multiply_part(const PairKernels& kernels, const Layer& layer, const uint16_t* x, Range rows, Range columns,
                   float* z) {
  const int64_t pitch = pairs_of(layer.inputs), skip = layer.classes, ldz = layer.units;
  const int64_t first = pairs_of(skip), pairs = layer.inputs / 2 - first;
  EdgePair edges[2];
  int edge_count = 0;
  if (skip % 2 == 1) edges[edge_count++] = {skip / 2, skip, true};
  if (layer.inputs % 2 == 1) edges[edge_count++] = {layer.inputs / 2, layer.inputs - 1, false};
  const int64_t strips = parts(rows.end - rows.begin, kStrip), blocks = parts(rows.end - rows.begin, kRows);
  kernels.begin();
  for (int64_t block = 0; block < blocks; ++block) {  // alike, so that no small one is left to read all of W again
    const int64_t i = rows.begin + slice_begin(strips, blocks, block) * kStrip;
    const int64_t height = std::min(rows.begin + slice_begin(strips, blocks, block + 1) * kStrip, rows.end) - i;
    for (int64_t j = columns.begin; j < columns.end; j += kColumns) {
      const int64_t width = std::min(kColumns, columns.end - j);
      const uint32_t* panels = layer.weight_low + j * pitch;
      float* c = z + i * ldz + j;
      const PairRows a{x + i * layer.ldx + 2 * first, 2 * layer.ldx};
      kernels.multiply(height, width, std::max(pairs, int64_t{0}), a, {panels + first * kPanel, pitch}, false, c, ldz);
      for (int e = 0; e < edge_count; ++e) {
        uint32_t edge[kRows];
        for (int64_t r = 0; r < height; ++r) {
          edge[r] = static_cast<uint32_t>(x[(i + r) * layer.ldx + edges[e].column]) << (edges[e].high ? 16 : 0);
        }
        kernels.multiply(height, width, 1, {edge, 4}, {panels + edges[e].pair * kPanel, pitch}, true, c, ldz);
      }
    }
  }
  kernels.end();
}

}  // namespace

void low_product(const Provider& provider, const Layer& layer, int64_t begin, int64_t images, float* z) {
  if (images == 0) return;
  const PairKernels& kernels = pair_kernels();
  const int64_t strips = parts(images, kStrip), panels = panels_of(layer.units);
  const int64_t tasks = product_tasks(provider, images * layer.units * layer.inputs);
  constexpr int64_t kFetch = 16;  // multiply-adds in the time that an element of W takes from memory
  const Grid grid = choose_grid(tasks, strips, panels, [](int64_t part_strips, int64_t part_panels) {
    return (part_strips * kStrip + kFetch) * part_panels * kPanel;
  });
  const uint16_t* x = layer.x_low + begin * layer.ldx;
  parallel_tasks(provider, grid.rows * grid.columns, [&](int64_t task) {
    multiply_part(kernels, layer, x, cut(strips, grid.rows, task / grid.columns, kStrip, images),
                  cut(panels, grid.columns, task % grid.columns, kPanel, layer.units), z);
  });
}

LowOperands::LowOperands(Arena& arena, const Layer& layer, int64_t rows) : pairs(pairs_of(rows) + kPackSteps) {
  rdz = reinterpret_cast<uint32_t*>(arena.take(panels_of(layer.units) * kPanel * pairs));
  x = reinterpret_cast<uint32_t*>(arena.take(panels_of(layer.inputs) * kPanel * pairs));
}

void pack_operands(const Provider& provider, const Layer& layer, int64_t begin, SummedRows rows, const float* rdz,
                   LowOperands& operands) {
  const PairKernels& kernels = pair_kernels();
  const int64_t total = rows.total();
  operands.pairs = parts(pairs_of(total), kernels.depth_step) * kernels.depth_step;
  const int64_t blocks = parts(operands.pairs, kPackSteps);
  const int64_t slices = slice_count(provider, blocks, 2 * kPackSteps * (layer.units + layer.inputs));
  parallel_tasks(provider, slices, [&](int64_t s) {
    for (int64_t block = slice_begin(blocks, slices, s); block < slice_begin(blocks, slices, s + 1); ++block) {
      const float* left[2 * kPackSteps];
      const uint16_t* right[2 * kPackSteps];
      for (int64_t q = 0; q < 2 * kPackSteps; ++q) {
        const int64_t t = block * 2 * kPackSteps + q;
        const int64_t row = rows.index != nullptr && t < rows.count ? rows.index[t] : t;
        left[q] = t < rows.count ? rdz + row * layer.units : t < total ? rows.more_rdz : nullptr;
        right[q] = t < rows.count ? layer.x_low + (begin + row) * layer.ldx : t < total ? rows.more_x : nullptr;
      }
      kernels.pack_left(left, layer.units, block * kPackSteps, operands.pairs, operands.rdz);
      kernels.pack_right(right, layer.inputs, block * kPackSteps, operands.pairs, operands.x);
    }
  });
}

void low_gradient(const Layer& layer, const LowOperands& operands, int64_t first, int64_t units, bool add, float* c) {
  const PairKernels& kernels = pair_kernels();
  const PairRows a = kernels.left(operands.rdz, operands.pairs, first);
  kernels.begin();
  kernels.multiply(units, layer.inputs, operands.pairs, a, {operands.x, operands.pairs}, add, c, layer.inputs);
  kernels.end();
}

}  // namespace ffkern::cpu
