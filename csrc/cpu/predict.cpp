// Goodness of every label of every image, without ever holding all label rows.
//
//     block of images --product--> z [n, M1] --variants--> h1 [n C, M1] --product--> h2 [n C, M2] --...
//
// Blocks are independent, so each is one task with its own scratch: its activities stay in the second-level cache
// between layers, and memory does not grow with the number of images. The first product runs on n rows instead of
// n C; its variants give the goodness and, as ||h||, the row scale of the next layer.
#include <algorithm>
#include <utility>

#include "arena.h"
#include "rows.h"

namespace ffkern::cpu {
namespace {

constexpr int64_t kBlockImages = 64;
constexpr int64_t kStripRows = 96;

struct BlockPlan {
  int64_t images, tasks, widest;

  BlockPlan(const Provider& provider, const Layer& first, const Stack& stack) {
    // Enough blocks to keep every thread busy, none larger than the cache likes.
    const int64_t share = (first.images + provider.threads - 1) / provider.threads;
    images = share < 1 ? 1 : (share < kBlockImages ? share : kBlockImages);
    const int64_t blocks = (first.images + images - 1) / images;
    tasks = blocks < provider.threads ? blocks : provider.threads;
    widest = 0;
    for (int64_t l = 0; l < stack.depth; ++l) widest = stack.units[l] > widest ? stack.units[l] : widest;
  }
};

struct BlockScratch {
  float *z, *h, *next, *norm, *next_norm;          // activities and their norms, now and after the next product
  uint16_t *h_low = nullptr, *next_low = nullptr;  // instead of h and next, with rows of bfloat16
  float* strip = nullptr;                          // products of kStripRows rows of these

  BlockScratch(Arena& arena, const BlockPlan& plan, const Layer& first, const Stack& stack) {
    const int64_t rows = plan.images * first.classes;
    z = arena.take(plan.images * first.units);
    const bool low = first.x_low != nullptr;
    const int64_t kept = stack.depth > 1 ? rows * plan.widest : 0;
    h = arena.take(low ? plan.widest : kept);
    next = arena.take(low ? 0 : kept);
    if (low) {
      h_low = reinterpret_cast<uint16_t*>(arena.take((kept + 1) / 2));
      next_low = reinterpret_cast<uint16_t*>(arena.take((kept + 1) / 2));
      strip = arena.take(kStripRows * plan.widest);
    }
    norm = arena.take(rows);
    next_norm = arena.take(rows);
  }
};

}  // namespace

int64_t predict_floats(const Provider& provider, const Layer& first, const Stack& stack) {
  const BlockPlan plan(provider, first, stack);
  Arena arena(nullptr);
  arena.take(label_floats(first));
  for (int64_t t = 0; t < plan.tasks; ++t) BlockScratch(arena, plan, first, stack);
  return arena.used();
}

void predict_goodness(const Provider& provider, const Layer& first, const Stack& stack, float* goodness,
                      float* memory) {
  const RowKernels& kernels = row_kernels();
  const BlockPlan plan(provider, first, stack);
  const int64_t classes = first.classes, blocks = (first.images + plan.images - 1) / plan.images;
  Arena arena(memory);
  float* columns = arena.take(label_floats(first));
  gather_labels(first, columns);
  const int64_t per_task = [&] {
    Arena size(nullptr);
    BlockScratch(size, plan, first, stack);
    return size.used();
  }();
  float* blocks_memory = arena.take(0);

  parallel_tasks(provider, plan.tasks, [&](int64_t task) {
    Arena own(blocks_memory + task * per_task);
    BlockScratch scratch(own, plan, first, stack);
    for (int64_t block = slice_begin(blocks, plan.tasks, task); block < slice_begin(blocks, plan.tasks, task + 1);
         ++block) {
      const int64_t begin = block * plan.images;
      const int64_t left = first.images - begin, images = left < plan.images ? left : plan.images;
      Layer layer = first;
      if (first.x_low != nullptr) {
        layer.x_low = first.x_low + begin * first.ldx;
      } else {
        layer.x = first.x + begin * first.ldx;
      }
      layer.x_norm = nullptr;
      layer.images = images;
      base_product(provider, layer, scratch.z, scratch.norm);
      // Rows of a block are image-major: the C rows of an image lie together, as the next product reads them.
      for (int64_t i = 0; i < images; ++i) {
        for (int64_t c = 0; c < classes; ++c) {
          const int64_t row = i * classes + c;
          const bool low = first.x_low != nullptr;
          float* h = stack.depth == 1 ? nullptr : low ? scratch.h : scratch.h + row * layer.units;
          const Row r = variant_row(layer, kernels, columns, scratch.z + i * layer.units, scratch.norm[i], c, h);
          if (low && h != nullptr) pair_kernels().narrow(h, scratch.h_low + row * layer.units, layer.units);
          goodness[begin * classes + row] = r.goodness;
          scratch.next_norm[row] = r.h_norm;
        }
      }
      const int64_t rows = images * classes;
      for (int64_t l = 1; l < stack.depth; ++l) {
        std::swap(scratch.norm, scratch.next_norm);
        layer.inputs = layer.units;
        layer.units = stack.units[l];
        layer.weight = stack.weights[l];
        layer.bias = stack.biases[l];
        layer.classes = 0;
        layer.ldx = layer.inputs;
        float* out = goodness + (l * first.images + begin) * classes;
        const auto finish = [&](int64_t row, float* z) {
          const Row r = plain_row(layer, kernels, z, scratch.norm[row], z);
          out[row] = r.goodness;
          scratch.next_norm[row] = r.h_norm;
        };
        if (first.x_low != nullptr) {
          layer.weight_low = stack.weights_low[l];
          layer.x_low = scratch.h_low;
          for (int64_t at = 0; at < rows; at += kStripRows) {
            const int64_t count = std::min(kStripRows, rows - at);
            product(provider, layer, at, count, scratch.strip);
            for (int64_t row = at; row < at + count; ++row) {
              float* z = scratch.strip + (row - at) * layer.units;
              finish(row, z);
              if (l + 1 < stack.depth) pair_kernels().narrow(z, scratch.next_low + row * layer.units, layer.units);
            }
          }
          std::swap(scratch.h_low, scratch.next_low);
        } else {
          layer.x = scratch.h;
          product(provider, layer, 0, rows, scratch.next);
          for (int64_t row = 0; row < rows; ++row) finish(row, scratch.next + row * layer.units);
          std::swap(scratch.h, scratch.next);
        }
      }
    }
  });
}

}  // namespace ffkern::cpu
