// Matrix product for one instruction set (FFKERN_ISA); the build compiles this file once for each.
//
// The product's tile: kTileRows rows of A times two vectors of B stay in registers while k runs.
//
//                 B panel [k][2 lanes]          per k: 2 loads of B, kTileRows broadcasts of A, 2 kTileRows FMAs.
//                 +-------+-------+             AVX-512: 12 rows x 32 columns = 24 of the 32 registers; 14 loads
//        A        |       |       |             for 24 FMAs keep both FMA ports busy.
//   +---------+   +-------+-------+
//   |  rows  |   |  acc  |  acc  |             A is read where it lies: a tile walks along kTileRows rows at once,
//   +---------+   +-------+-------+             one cache line of each lasts for 16 steps of k.
//
// k is cut into blocks of kBlockK whose sums are added in order: the B panel of a block stays in the first-level
// cache for all tiles of the block, and the rounding error grows with k / kBlockK + kBlockK instead of k.
//
// Where A is transposed, a tile's rows are neighbours in memory and its steps of k far apart, often a page each. A
// block of it is therefore copied into tiles [k][rows of the tile], which every panel then reads from the second-level
// cache.
//
// Idle steps are passed over while both operands are copied. Blocks end where they end with all steps, and adding
// zero changes no sum, so the bits are the same; only a zero that underflow left negative keeps its sign.
#include "gemm_kernels.h"

#include "vec.h"

namespace ffkern::cpu::FFKERN_ISA {
namespace {

#if FFKERN_LEVEL == 2
constexpr int kTileRows = 12;
#elif FFKERN_LEVEL == 1
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kLanes = Vec::kLanes;

/// Rows of A by their distance from a few base pointers: twelve pointers would not fit the integer registers.
template <int kRows>
struct Rows {
  static constexpr int kBases = (kRows + 2) / 3;
  const float* base[kBases];
  int64_t ld;

  Rows(const float* a, int64_t lda) : ld(lda) {
    for (int q = 0; q < kBases; ++q) base[q] = a + 3 * q * lda;
  }
  float at(int i, int64_t p) const { return base[i / 3][p + (i % 3) * ld]; }
};

/// The same of a packed tile.
template <int kRows>
struct PackedRows {
  const float* base;

  PackedRows(const float* a, int64_t) : base(a) {}
  float at(int i, int64_t p) const { return base[p * kRows + i]; }
};

template <template <int> class A, int kRows, int kVectors>
inline __attribute__((always_inline)) void tile(int64_t k, const float* a, int64_t lda, const float* b, bool add,
                                                float* c, int64_t ldc) {
  Vec acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int u = 0; u < kVectors; ++u) acc[i][u] = zero();
  }
  const A<kRows> rows(a, lda);
  for (int64_t p = 0; p < k; ++p, b += kVectors * kLanes) {
    Vec column[kVectors];
#pragma GCC unroll 2
    for (int u = 0; u < kVectors; ++u) column[u] = load(b + u * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec x = splat(rows.at(i, p));
#pragma GCC unroll 2
      for (int u = 0; u < kVectors; ++u) acc[i][u] = fma(x, column[u], acc[i][u]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int u = 0; u < kVectors; ++u) {
      float* out = c + i * ldc + u * kLanes;
      store(out, add ? load(out) + acc[i][u] : acc[i][u]);
    }
  }
}

/// A column of tiles: all rows of the block against one panel. Row i of A begins at a + i * lda.
template <template <int> class A, int kVectors>
void panel_product(int64_t rows, int64_t k, const float* a, int64_t lda, const float* b, bool add, float* c,
                   int64_t ldc) {
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows) {
    tile<A, kTileRows, kVectors>(k, a + i * lda, lda, b, add, c + i * ldc, ldc);
  }
  for (; i + 4 <= rows; i += 4) tile<A, 4, kVectors>(k, a + i * lda, lda, b, add, c + i * ldc, ldc);
  for (; i < rows; ++i) tile<A, 1, kVectors>(k, a + i * lda, lda, b, add, c + i * ldc, ldc);
}

/// Packed steps [p, p + k) of the product.
template <template <int> class A>
void block_product(int64_t rows, int64_t p, int64_t k, const float* a, int64_t lda, Panels b, bool add, float* c,
                   int64_t ldc) {
  int64_t v = 0;
  for (; v + 2 <= b.vectors; v += 2) {
    panel_product<A, 2>(rows, k, a, lda, b.data + v * kLanes * b.k + p * 2 * kLanes, add, c + v * kLanes, ldc);
  }
  if (v < b.vectors) {
    panel_product<A, 1>(rows, k, a, lda, b.data + v * kLanes * b.k + p * kLanes, add, c + v * kLanes, ldc);
  }
}

template <int kRows>
inline void copy_rows(const float* from, float* to) {
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) to[i] = from[i];
}

/// Transposed A as the tiles of panel_product(): the one that begins with row i is [k][its rows] at out + i * k.
/// Returns how many steps there are without the idle ones.
int64_t pack_tiles(int64_t rows, int64_t k, const float* a, int64_t lda, const uint8_t* idle, float* out) {
  int64_t steps = 0;
  for (int64_t p = 0; p < k; ++p, a += lda) {
    if (idle != nullptr && idle[p]) continue;
    int64_t i = 0;
    for (; i + kTileRows <= rows; i += kTileRows) copy_rows<kTileRows>(a + i, out + i * k + steps * kTileRows);
    for (; i + 4 <= rows; i += 4) copy_rows<4>(a + i, out + i * k + steps * 4);
    for (; i < rows; ++i) out[i * k + steps] = a[i];
    ++steps;
  }
  return steps;
}

void multiply(int64_t rows, Left a, Panels b, float* scratch, float* c, int64_t ldc) {
  int64_t p = 0, packed = 0;
  do {  // at least once: k = 0 has to write zeros
    const int64_t left = b.k - p, k = left < kBlockK ? left : kBlockK;
    if (a.transposed) {
      const uint8_t* idle = a.idle != nullptr ? a.idle + p : nullptr;
      const int64_t steps = pack_tiles(rows, k, a.data + p * a.ld, a.ld, idle, scratch);
      block_product<PackedRows>(rows, packed, steps, scratch, k, b, p > 0, c, ldc);
      packed += steps;
    } else {
      block_product<Rows>(rows, p, k, a.data + p, a.ld, b, p > 0, c, ldc);
    }
    p += kBlockK;
  } while (p < b.k);
}

/// Columns of panel `panel` out of `vectors` vectors, and where it begins.
struct PanelShape {
  int64_t width, column;
  PanelShape(int64_t panel, int64_t columns) {
    const int64_t vectors = (columns + kLanes - 1) / kLanes;
    width = (panel * 2 + 2 <= vectors ? 2 : 1) * kLanes;
    column = panel * 2 * kLanes;
  }
};

/// out[p * ldo + i] = x[i * ldx + p] for four rows and four steps.
inline void transpose_4x4(const float* x, int64_t ldx, float* out, int64_t ldo) {
  typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));
#if defined(__clang__)
#define FFKERN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
  typedef int Index __attribute__((vector_size(16)));
#define FFKERN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Index{__VA_ARGS__})
#endif
  Quad row[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) row[i] = *reinterpret_cast<const Quad*>(x + i * ldx);
  const Quad a = FFKERN_SHUFFLE(row[0], row[1], 0, 4, 1, 5), b = FFKERN_SHUFFLE(row[2], row[3], 0, 4, 1, 5);
  const Quad c = FFKERN_SHUFFLE(row[0], row[1], 2, 6, 3, 7), d = FFKERN_SHUFFLE(row[2], row[3], 2, 6, 3, 7);
  const Quad column[4] = {FFKERN_SHUFFLE(a, b, 0, 1, 4, 5), FFKERN_SHUFFLE(a, b, 2, 3, 6, 7),
                          FFKERN_SHUFFLE(c, d, 0, 1, 4, 5), FFKERN_SHUFFLE(c, d, 2, 3, 6, 7)};
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) *reinterpret_cast<Quad*>(out + p * ldo) = column[p];
#undef FFKERN_SHUFFLE
}

void pack_rows(const float* x, int64_t ldx, int64_t rows, int64_t k, int64_t first, int64_t last, float* panels) {
  for (int64_t panel = first; panel < last; ++panel) {
    const PanelShape shape(panel, rows);
    float* out = panels + shape.column * k;
    const int64_t there = rows - shape.column < shape.width ? rows - shape.column : shape.width;
    for (int64_t lane = there; lane < shape.width; ++lane) {
      for (int64_t p = 0; p < k; ++p) out[p * shape.width + lane] = 0.0f;
    }
    // Sixteen inputs at a time: one cache line of every row, and 16 short stretches of the panel.
    for (int64_t p0 = 0; p0 < k; p0 += 16) {
      const int64_t p1 = p0 + 16 < k ? p0 + 16 : k;
      int64_t lane = 0;
      for (; p1 == p0 + 16 && lane + 4 <= there; lane += 4) {
        const float* row = x + (shape.column + lane) * ldx;
#pragma GCC unroll 4
        for (int64_t p = p0; p < p0 + 16; p += 4)
          transpose_4x4(row + p, ldx, out + p * shape.width + lane, shape.width);
      }
      for (; lane < there; ++lane) {
        const float* row = x + (shape.column + lane) * ldx;
        for (int64_t p = p0; p < p1; ++p) out[p * shape.width + lane] = row[p];
      }
    }
  }
}

void pack_columns(const float* x, int64_t ldx, int64_t k, const uint8_t* idle, int64_t cols, int64_t first,
                  int64_t last, float* panels) {
  for (int64_t panel = first; panel < last; ++panel) {
    const PanelShape shape(panel, cols);
    float* out = panels + shape.column * k;
    const int64_t left = cols - shape.column;
    for (int64_t p = 0; p < k; ++p) {
      if (idle != nullptr && idle[p]) continue;
      for (int64_t u = 0; u < shape.width; u += kLanes) {
        const int64_t there = left - u;
        const float* from = x + p * ldx + shape.column + u;
        store(out + u, there >= kLanes ? load(from) : (there > 0 ? load(from, there) : zero()));
      }
      out += shape.width;
    }
  }
}

#define FFKERN_TEXT_(a) #a
#define FFKERN_TEXT(a) FFKERN_TEXT_(a)

}  // namespace

extern const GemmKernels kGemmKernels;
const GemmKernels kGemmKernels = {FFKERN_TEXT(FFKERN_ISA), kLanes, multiply, pack_rows, pack_columns};

}  // namespace ffkern::cpu::FFKERN_ISA
