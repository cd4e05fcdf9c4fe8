// The forward pass of a layer, its local loss and its peer term, as operations of their own.
//
//     x [R,K] --product--> z [R,M] --row by row, in cache--> h = relu(r z + b), goodness, ||h||
//
// The row scale r = 1 / (norm(x) + eps) commutes with the product, so raw x goes in and r enters behind it.
// Bytes: x twice (product and norm; once when the norm is given), W once, h written, read and written once.
// FLOPs: 2RKM; the rest is O(RM + RK).
#include "arena.h"
#include "rows.h"

namespace ffkern::cpu {

void base_product(const Provider& provider, const Layer& layer, float* base, float* rest_norm) {
  product(provider, layer, 0, layer.images, base);
  if (rest_norm == nullptr) return;
  const RowKernels& kernels = row_kernels();
  const int64_t slices = slice_count(provider, layer.images, layer.inputs);
  parallel_tasks(provider, slices, [&](int64_t s) {
    for (int64_t i = slice_begin(layer.images, slices, s); i < slice_begin(layer.images, slices, s + 1); ++i) {
      rest_norm[i] = row_length(layer, kernels, i);
    }
  });
}

int64_t forward_floats(const Layer& layer) { return layer.x_low != nullptr ? layer.images * layer.units : 0; }

void forward(const Provider& provider, const Layer& layer, const Activities& out, float* scratch) {
  const RowKernels& kernels = row_kernels();
  float* z = out.h_low != nullptr ? scratch : out.h;
  product(provider, layer, 0, layer.images, z);
  const int64_t slices = slice_count(provider, layer.images, layer.inputs + layer.units);
  parallel_tasks(provider, slices, [&](int64_t s) {
    for (int64_t i = slice_begin(layer.images, slices, s); i < slice_begin(layer.images, slices, s + 1); ++i) {
      float* h = z + i * layer.units;
      const Row row = forward_row(layer, kernels, nullptr, h, input_norm(layer, kernels, i), i, h);
      if (out.h_low != nullptr) pair_kernels().narrow(h, out.h_low + i * layer.units, layer.units);
      out.goodness[i] = row.goodness;
      out.scale[i] = row.scale;
      out.h_norm[i] = row.h_norm;
    }
  });
}

void pack_weight(const Provider& provider, int64_t units, int64_t inputs, const float* weight, uint32_t* out) {
  const PairKernels& kernels = pair_kernels();
  const int64_t panels = panels_of(units), slices = slice_count(provider, panels, kPanel * inputs);
  parallel_tasks(provider, slices, [&](int64_t s) {
    pack_panels(kernels, slice_begin(panels, slices, s), slice_begin(panels, slices, s + 1), units, inputs, weight,
                out);
  });
}

int64_t packed_weight(int64_t units, int64_t inputs) { return panels_of(units) * pairs_of(inputs) * kPanel; }

namespace {

struct VariantsScratch {
  int64_t slices;
  float *columns, *h;  // label columns of W; [slices, M] activities of a row that are stored in bfloat16

  VariantsScratch(Arena& arena, const Provider& provider, const Layer& layer)
      : slices(slice_count(provider, layer.images, layer.variants * layer.units)),
        columns(arena.take(label_floats(layer))),
        h(arena.take(slices * layer.units)) {}
};

}  // namespace

int64_t variants_floats(const Provider& provider, const Layer& layer) {
  Arena arena(nullptr);
  VariantsScratch(arena, provider, layer);
  return arena.used();
}

void variants(const Provider& provider, const Layer& layer, const float* base, const Activities& out, float* memory) {
  const RowKernels& kernels = row_kernels();
  Arena arena(memory);
  const VariantsScratch scratch(arena, provider, layer);
  gather_labels(layer, scratch.columns);
  const int64_t slices = scratch.slices;
  parallel_tasks(provider, slices, [&](int64_t s) {
    for (int64_t i = slice_begin(layer.images, slices, s); i < slice_begin(layer.images, slices, s + 1); ++i) {
      for (int64_t v = 0; v < layer.variants; ++v) {
        const int64_t at = v * layer.images + i;
        float* h = out.h_low != nullptr ? scratch.h + s * layer.units
                   : out.h != nullptr   ? out.h + at * layer.units
                                        : nullptr;
        const Row row = forward_row(layer, kernels, scratch.columns, base + i * layer.units, layer.x_norm[i], at, h);
        if (out.h_low != nullptr) pair_kernels().narrow(h, out.h_low + at * layer.units, layer.units);
        out.goodness[at] = row.goodness;
        out.scale[at] = row.scale;
        out.h_norm[at] = row.h_norm;
      }
    }
  });
}

void local_loss(int64_t rows, const float* goodness, const Lesson& lesson, float* coef, double* stats) {
  std::memset(stats, 0, sizeof(double) * kStatCount);
  for (int64_t i = 0; i < rows; ++i) coef[i] = row_lesson(lesson, rows, i, goodness[i], stats);
}

void peer_update(const Provider& provider, int64_t rows, int64_t units, const float* h, const float* sign,
                 PeerParams params, float* mean, float* p, float* scratch) {
  const RowKernels& kernels = row_kernels();
  const int64_t slices = slice_count(provider, rows, units);
  std::memset(scratch, 0, sizeof(float) * slices * 2 * units);
  parallel_tasks(provider, slices, [&](int64_t s) {
    for (int64_t i = slice_begin(rows, slices, s); i < slice_begin(rows, slices, s + 1); ++i) {
      if (sign[i] > 0) kernels.add(h + i * units, scratch + s * 2 * units, units);
      if (i % kRunRows == kRunRows - 1) end_run(kernels, scratch + s * 2 * units, units);
    }
  });
  peer_from_sums(units, total_of_runs(kernels, scratch, slices, units), count_positive(rows, sign), params, mean, p);
}

}  // namespace ffkern::cpu
