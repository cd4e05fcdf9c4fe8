// The inner kernels of products of bfloat16 (pairs.h): packing, rounding, and the product itself.
//
// A pair is 32 bits: two elements that follow each other along the sum, the first in the low half. With pairs as its
// elements such a product looks like one of float32 of half the depth: the step of a pair adds two products.
//
// A panel holds sixteen columns of the right operand, [pairs][16] pairs: 64 bytes a step, the rows of a tile of AMX and
// the register of AVX-512.
#pragma once
#include <cstdint>

#include "../core/api.h"

namespace ffkern::cpu {

constexpr int64_t kPanel = 16;  // columns of a panel

constexpr int64_t pairs_of(int64_t elements) { return (elements + 1) / 2; }
constexpr int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

/// Left operand: rows of pairs as they lie in memory, pair (i, p) at byte i * row_bytes + 4 p; or panels whose columns
/// are the rows, at byte i / 16 * row_bytes + 64 p + 4 (i % 16).
struct PairRows {
  const void* data;
  int64_t row_bytes;  // from one row, or panel, to the next
  bool panels = false;
};

/// Right operand: panel j begins at data + j * pitch * 16.
struct PairPanels {
  const uint32_t* data;
  int64_t pitch;  // pairs from one panel to the next
};

constexpr int64_t kExactPairs = 512;  // that every kernel adds up without a stop in between
constexpr int64_t kPackSteps = 16;    // pairs that pack_left() and pack_right() take in one call

struct PairKernels {
  const char* name;
  int64_t depth_step;  // the depth of operands packed for a sum over rows is a multiple of this: 1, or a tile's 16

  /// C[rows, columns] = (add ? C : 0) + A[rows, pairs] B, between begin() and end() of the same thread.
  void (*multiply)(int64_t rows, int64_t columns, int64_t pairs, PairRows a, PairPanels b, bool add, float* c,
                   int64_t ldc);
  void (*begin)();
  void (*end)();

  /// Sums over rows: pair p is made of rows 2 p and 2 p + 1. Both take steps [p, p + 16) of `pairs`, that is 32 rows of
  /// n elements, null where there is none: 0.
  /// The left operand, float32 rows that are rounded; left() is what multiply() wants of it, from row `first` on, a
  /// multiple of 16.
  void (*pack_left)(const float* const* rows, int64_t n, int64_t p, int64_t pairs, uint32_t* out);
  PairRows (*left)(const uint32_t* packed, int64_t pairs, int64_t first);
  /// The right one, panels of `pairs` steps.
  void (*pack_right)(const uint16_t* const* rows, int64_t n, int64_t p, int64_t pairs, uint32_t* out);

  /// Sums over columns: one panel of the right operand from `rows` <= 16 rows of x[rows, k], which are rounded:
  /// out[pairs_of(k)][16], with 0 for rows and elements that are not there.
  void (*pack_rows)(const float* x, int64_t ldx, int64_t rows, int64_t k, uint32_t* out);

  /// Rounds to bfloat16, to the nearest and to even in a tie; and back.
  void (*narrow)(const float* x, uint16_t* out, int64_t n);
  void (*widen)(const uint16_t* x, float* out, int64_t n);
};

/// The kernels in use for bfloat16: the best of the machine, or $FFKERN_BF16. "amx": tiles of AMX; "avx512_bf16": its
/// dot products; "fma": two float32 multiply-adds a pair on the instruction set of row_kernels(); "amx_emulated": the
/// kernels for AMX on tiles in software, for tests on other machines, and never chosen unasked. Throws
/// std::runtime_error for a name that is unknown, not built in, or not supported by this processor.
FFKERN_API const PairKernels& pair_kernels();

/// Comma-separated names that this build contains and this processor runs with the instruction set in use, best last.
FFKERN_API const char* supported_bf16();

}  // namespace ffkern::cpu
