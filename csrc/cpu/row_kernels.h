// Vector kernels on one row of x, z or h, or on a span of weights.
#pragma once
#include "../core/api.h"
#include "../core/types.h"

namespace ffkern::cpu {

struct RowSums {
  float squares;  // sum of h^2
  float plain;    // sum of h
};

/// Gradient of one row of activities: dz = slope * (h, or [h > 0]) + peer.
struct RowGradient {
  float slope;        // coefficient times dg/dh's constant factor
  bool on_mask;       // true: slope applies where h > 0 (goodness "sum_abs"); false: slope * h
  const float* peer;  // [M] added to every unit of a positive row, or null
  float scale;        // r, the factor of the row in dW
};

/// One column of labels inside the first layer: its weights, and what the label input is worth.
struct LabelColumn {
  const float* weights;  // [M] one column of W, or the sum of the label columns for the neutral label
  float value;
};

struct RowKernels {
  const char* name;

  /// Sum of x[j]^2.
  float (*sum_sq)(const float* x, int64_t n);

  /// h = relu(scale * z + bias), z and h may be the same row; bias may be null.
  RowSums (*epilogue)(const float* z, const float* bias, float scale, float* h, int64_t n);

  /// h = relu(scale * (base + value * weights) + bias) for one label variant; h may be null (goodness only).
  RowSums (*epilogue_label)(const float* base, LabelColumn label, const float* bias, float scale, float* h, int64_t n);

  /// out = scale * dz, db += dz without the peer term (it is the same for every positive row: the caller adds it
  /// once, times their number, instead of rounding it once per row); h and out may be the same row.
  void (*gradient)(const float* h, RowGradient gradient, float* out, float* db, int64_t n);

  /// The same for one variant of a shared row: out = (add ? out : 0) + scale * dz, db as above,
  /// dlabel += value * scale * dz.
  void (*gradient_label)(const float* h, RowGradient gradient, bool add, float value, float* out, float* db,
                         float* dlabel, int64_t n);

  /// y += x, and y += a * x.
  void (*add)(const float* x, float* y, int64_t n);
  void (*axpy)(float a, const float* x, float* y, int64_t n);

  /// One optimiser update of n weights. m and v are the state slots (v null with one slot).
  void (*update)(const UpdateRule& rule, const float* gradient, float* weight, float* m, float* v, int64_t n);
};

/// The kernels of the instruction set in use: the best of the machine, or $FFKERN_CPU_ISA. Throws std::runtime_error
/// for a name that is unknown, not built in, or not supported by this processor.
FFKERN_API const RowKernels& row_kernels();

/// Comma-separated names that this build contains and this processor runs, best last.
FFKERN_API const char* supported_isas();

/// Forgets the choice, so that the next call reads $FFKERN_CPU_ISA again (tests switch in one process).
FFKERN_API void reset_isa();

}  // namespace ffkern::cpu
