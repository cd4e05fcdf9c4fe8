// Which instance of a product runs: launches of the two products.
#pragma once
#include "module.h"
#include "product.h"

namespace ffkern::cuda {

/// Widest access, of 16, 8, 4 or 2 bytes, that the address of every row of a matrix is a multiple of.
int alignment(const void* matrix, int64_t pitch, int64_t rows, Storage storage);

/// The instances of one arithmetic, as `FFKERN_CUDA_PRODUCT` names them (for error messages and tests).
struct Instance {
  const char *name, *forward, *gradient;
  int tile_m, tile_n, tile_k, threads, copy_bytes;
  int passes;                         // over the banks of shared memory, for a tile and 32 bytes of depth
  int forward_bytes, gradient_bytes;  // of shared memory
  bool hopper = false;                // for devices of compute capability 9.0, and no other
};

/// A size as the kernels count it, in 32 bits; offsets in memory have 64. Throws std::invalid_argument with its name
/// beyond that.
int checked_size(const char* name, int64_t size);

/// Launches the forward kernel: fills in tiles_m, tiles_n and store_bytes. The instance is the one that
/// $FFKERN_CUDA_PRODUCT names, else chosen by alignment and by how many tiles there are. Returns tiles_n.
int forward_product(const Queue&, Product, ForwardParams);
/// Most tiles_n that any instance has for so many units.
int64_t most_column_tiles(Product, int64_t units);

/// Launches the gradient kernel, and the second launch that adds the parts where the batch is split. `partial` holds
/// gradient_parts() floats.
void gradient_product(const Queue&, Product, GradientParams, float* partial);
/// Most floats of partial gradients that any instance wants.
int64_t gradient_parts(const Queue&, Product, int64_t rows, int64_t units, int64_t inputs);

}  // namespace ffkern::cuda
