// Products of bfloat16 for one instruction set (FFKERN_ISA); the build compiles this file once for each.
//
// Sums are float32 throughout. A product of two bfloat16 is exact in float32, so the kernels differ in the order of
// their sums and in what they do with subnormal numbers (the units for bfloat16 take them for 0), not in accuracy.
//
// The tile in registers, as in gemm_kernels.cpp:
//
//                 panels [p][16]                  per pair: kPanels loads of B, kRows broadcasts of A, kRows kPanels
//                 +-----+-----+-----+             steps. AVX-512 with dot products: 8 rows x 3 panels = 24 of the 32
//        A        |     |     |     |             registers; 11 loads for 24 steps of 32 multiply-adds.
//   +---------+   +-----+-----+-----+
//   |  rows  |   | acc | acc | acc |             Without dot products both halves of a pair are widened to float32
//   +---------+   +-----+-----+-----+             (a shift, a mask) and cost a multiply-add each.
//
// The tile of AMX: two by two tiles of 16 x 16 sums, 1 KiB each, from two tiles of A and two of B: 4 loads for 4
// products of 16 x 16 x 32. A tile of A is 16 rows of 16 pairs as they lie in memory, so pack_left() transposes (16 x
// 16 pairs in registers). What is left of a depth that is no multiple of 16 pairs, and of rows that are none of 32,
// goes through copies filled up with 0.
#include "pair_kernels.h"

#include "vec.h"

#ifndef FFKERN_TILES
#define FFKERN_TILES 0  // 1: of AMX; 2: in software
#endif

#if FFKERN_TILES == 1
#include <immintrin.h>
#endif

namespace ffkern::cpu::FFKERN_ISA {
namespace {

typedef uint32_t Bits __attribute__((may_alias, aligned(2)));  // a pair, wherever it lies
typedef uint32_t Word __attribute__((may_alias));              // the bits of a float

constexpr int64_t kPairBytes = 4;

const char* at(PairRows a, int64_t i, int64_t p) {
  const char* data = static_cast<const char*>(a.data);
  if (!a.panels) return data + i * a.row_bytes + kPairBytes * p;
  return data + i / kPanel * a.row_bytes + kPairBytes * (p * kPanel + i % kPanel);
}

// ---------------------------------------------------------------- rounding and packing

/// bfloat16 of the float32 with these bits. NaN stays NaN: rounding alone could carry it over into infinity or -0.
inline __attribute__((always_inline)) uint32_t rounded(uint32_t bits) {
  const uint32_t up = bits + 0x7fffu + ((bits >> 16) & 1u);
  return ((bits & 0x7fffffffu) > 0x7f800000u ? (bits | 0x400000u) : up) >> 16;
}

void narrow(const float* x, uint16_t* out, int64_t n) {
  const Word* bits = reinterpret_cast<const Word*>(x);
  for (int64_t j = 0; j < n; ++j) out[j] = static_cast<uint16_t>(rounded(bits[j]));
}

void widen(const uint16_t* x, float* out, int64_t n) {
  Word* bits = reinterpret_cast<Word*>(out);
  for (int64_t j = 0; j < n; ++j) bits[j] = static_cast<uint32_t>(x[j]) << 16;
}

/// Calls pair(j) for n columns of one step of panels, whole panels first so that they become vector code.
template <class F>
inline __attribute__((always_inline)) void fill_step(int64_t n, uint32_t* out, int64_t pitch, F pair) {
  int64_t j = 0;
  for (; j + kPanel <= n; j += kPanel, out += pitch * kPanel) {
    for (int64_t lane = 0; lane < kPanel; ++lane) out[lane] = pair(j + lane);
  }
  for (int64_t lane = 0; j < n && lane < kPanel; ++lane) out[lane] = j + lane < n ? pair(j + lane) : 0;
}

/// The step of panels made of two rows; either may be null.
void fill_pair(const float* a, const float* b, int64_t n, uint32_t* out, int64_t pitch) {
  const Word *low = reinterpret_cast<const Word*>(a), *high = reinterpret_cast<const Word*>(b);
  if (low == nullptr) return fill_step(n, out, pitch, [=](int64_t) { return uint32_t{0}; });
  if (high == nullptr) return fill_step(n, out, pitch, [=](int64_t j) { return rounded(low[j]); });
  fill_step(n, out, pitch, [=](int64_t j) { return rounded(low[j]) | rounded(high[j]) << 16; });
}

void fill_pair(const uint16_t* a, const uint16_t* b, int64_t n, uint32_t* out, int64_t pitch) {
  if (a == nullptr) return fill_step(n, out, pitch, [=](int64_t) { return uint32_t{0}; });
  if (b == nullptr) return fill_step(n, out, pitch, [=](int64_t j) { return uint32_t{a[j]}; });
  fill_step(n, out, pitch, [=](int64_t j) { return uint32_t{a[j]} | uint32_t{b[j]} << 16; });
}

template <class T>
void fill_steps(const T* const* rows, int64_t n, int64_t p, int64_t pairs, uint32_t* out) {
  for (int64_t q = 0; q < kPackSteps && p + q < pairs; ++q) {
    fill_pair(rows[2 * q], rows[2 * q + 1], n, out + (p + q) * kPanel, pairs);
  }
}

void pack_right(const uint16_t* const* rows, int64_t n, int64_t p, int64_t pairs, uint32_t* out) {
  fill_steps(rows, n, p, pairs, out);
}

/// out[j][i] = row(i)[j] for 16 x 16 pairs.
#if FFKERN_LEVEL == 2
template <class Row>
inline __attribute__((always_inline)) void transpose_rows(Row row, uint32_t* out) {
  __m512i r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = row(i);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  // Now r[4 i + q] holds, in its lane of 128 bits number l, column 4 l + q of rows 4 i to 4 i + 3.
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const __m512i a = _mm512_shuffle_i32x4(r[q], r[4 + q], 0x88), b = _mm512_shuffle_i32x4(r[8 + q], r[12 + q], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(r[q], r[4 + q], 0xdd), d = _mm512_shuffle_i32x4(r[8 + q], r[12 + q], 0xdd);
    _mm512_storeu_si512(out + (q + 0) * kPanel, _mm512_shuffle_i32x4(a, b, 0x88));
    _mm512_storeu_si512(out + (q + 4) * kPanel, _mm512_shuffle_i32x4(c, d, 0x88));
    _mm512_storeu_si512(out + (q + 8) * kPanel, _mm512_shuffle_i32x4(a, b, 0xdd));
    _mm512_storeu_si512(out + (q + 12) * kPanel, _mm512_shuffle_i32x4(c, d, 0xdd));
  }
}
#endif

void transpose(const uint32_t (*in)[kPanel], uint32_t* out) {
#if FFKERN_LEVEL == 2
  transpose_rows([=](int i) { return _mm512_loadu_si512(in[i]); }, out);
#else
  for (int64_t j = 0; j < kPanel; ++j) {
    for (int64_t i = 0; i < kPanel; ++i) out[j * kPanel + i] = in[i][j];
  }
#endif
}

void pack_rows(const float* x, int64_t ldx, int64_t rows, int64_t k, uint32_t* out) {
  alignas(64) uint32_t block[kPanel][kPanel] = {};
  alignas(64) uint32_t turned[kPanel * kPanel];
  int64_t j = 0;
#ifdef __AVX512BF16__
  for (; rows == kPanel && j + 2 * kPanel <= k; j += 2 * kPanel, out += kPanel * kPanel) {
    transpose_rows(
        [=](int i) {
          const float* row = x + i * ldx + j;
          return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + kPanel), _mm512_loadu_ps(row)));
        },
        out);
  }
#endif
  for (; j < k; j += 2 * kPanel, out += kPanel * kPanel) {
    const int64_t there = k - j < 2 * kPanel ? k - j : 2 * kPanel;
    for (int64_t i = 0; i < rows; ++i) {
      if (there < 2 * kPanel) __builtin_memset(block[i], 0, sizeof block[i]);
      narrow(x + i * ldx + j, reinterpret_cast<uint16_t*>(block[i]), there);
    }
    transpose(block, turned);
    __builtin_memcpy(out, turned, sizeof(uint32_t) * kPanel * pairs_of(there));
  }
}

#if FFKERN_TILES == 0

constexpr int64_t kDepthStep = 1;

void begin() {}
void end() {}

void pack_left(const float* const* rows, int64_t n, int64_t p, int64_t pairs, uint32_t* out) {
  fill_steps(rows, n, p, pairs, out);
}

PairRows left(const uint32_t* packed, int64_t pairs, int64_t first) {
  return {packed + first * pairs, kPairBytes * kPanel * pairs, true};
}

// ---------------------------------------------------------------- product in vector registers

constexpr int64_t kBlockPairs =
    kExactPairs;  // steps that add up in registers: their panels come from the second-level cache

#if FFKERN_LEVEL == 2 && defined(__AVX512BF16__)
constexpr int kTileRows = 8, kTilePanels = 3;

/// Pairs in one vector, and the step acc += x y.
struct Pair {
  __m512i v;
};
inline Pair load_pairs(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
inline Pair splat_pair(const char* p) { return {_mm512_set1_epi32(*reinterpret_cast<const Bits*>(p))}; }
inline Vec step(Pair x, Pair y, Vec acc) {
  return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(x.v), reinterpret_cast<__m512bh>(y.v))};
}

#else
#if FFKERN_LEVEL == 2
constexpr int kTileRows = 8, kTilePanels = 2;
#elif FFKERN_LEVEL == 1
constexpr int kTileRows = 4, kTilePanels = 1;
#else
constexpr int kTileRows = 2, kTilePanels = 1;
#endif

struct Pair {
  Vec low, high;
};
inline Pair load_pairs(const uint32_t* p) {
  typedef uint32_t Words __attribute__((vector_size(4 * Vec::kLanes), aligned(4), may_alias));
  const Words bits = *reinterpret_cast<const Words*>(p);
  return {{reinterpret_cast<decltype(Vec::v)>(bits << 16)}, {reinterpret_cast<decltype(Vec::v)>(bits & 0xffff0000u)}};
}
inline Pair splat_pair(const char* p) {
  const uint32_t bits = *reinterpret_cast<const Bits*>(p), low = bits << 16, high = bits & 0xffff0000u;
  float a, b;
  __builtin_memcpy(&a, &low, sizeof a);
  __builtin_memcpy(&b, &high, sizeof b);
  return {splat(a), splat(b)};
}
inline Vec step(Pair x, Pair y, Vec acc) { return fma(x.high, y.high, fma(x.low, y.low, acc)); }
#endif

constexpr int kVectors = kPanel / Vec::kLanes;  // of a panel

/// C[kRows, kPanels * 16] of which `columns` are stored.
template <int kRows, int kPanels>
inline __attribute__((always_inline)) void tile(int64_t columns, int64_t pairs, const char* a, int64_t row_bytes,
                                                int64_t step_bytes, const uint32_t* b, int64_t pitch, bool add,
                                                float* c, int64_t ldc) {
  constexpr int kWide = kPanels * kVectors;
  Vec acc[kRows][kWide];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int u = 0; u < kWide; ++u) acc[i][u] = zero();
  }
  const int64_t panel = pitch * kPanel;
  for (int64_t p = 0; p < pairs; ++p, a += step_bytes, b += kPanel) {
    Pair column[kWide];
#pragma GCC unroll 16
    for (int u = 0; u < kWide; ++u) column[u] = load_pairs(b + u / kVectors * panel + u % kVectors * Vec::kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Pair x = splat_pair(a + i * row_bytes);
#pragma GCC unroll 16
      for (int u = 0; u < kWide; ++u) acc[i][u] = step(x, column[u], acc[i][u]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    if (columns >= kPanels * kPanel) {
#pragma GCC unroll 16
      for (int u = 0; u < kWide; ++u) {
        float* out = c + i * ldc + u * Vec::kLanes;
        store(out, add ? load(out) + acc[i][u] : acc[i][u]);
      }
    } else {
#pragma GCC unroll 16
      for (int u = 0; u < kWide; ++u) {
        const int64_t left = columns - u * Vec::kLanes, lanes = left < Vec::kLanes ? left : Vec::kLanes;
        float* out = c + i * ldc + u * Vec::kLanes;
        if (lanes > 0) store(out, add ? load(out, lanes) + acc[i][u] : acc[i][u], lanes);
      }
    }
  }
}

/// All rows against kPanels panels.
template <int kPanels>
void panel_product(int64_t rows, int64_t columns, int64_t pairs, PairRows a, int64_t p, const uint32_t* b,
                   int64_t pitch, bool add, float* c, int64_t ldc) {
  const int64_t row_bytes = a.panels ? kPairBytes : a.row_bytes, step_bytes = kPairBytes * (a.panels ? kPanel : 1);
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows) {
    tile<kTileRows, kPanels>(columns, pairs, at(a, i, p), row_bytes, step_bytes, b, pitch, add, c + i * ldc, ldc);
  }
  if constexpr (kTileRows > 4) {
    for (; i + 4 <= rows; i += 4) {
      tile<4, kPanels>(columns, pairs, at(a, i, p), row_bytes, step_bytes, b, pitch, add, c + i * ldc, ldc);
    }
  }
  for (; i < rows; ++i) {
    tile<1, kPanels>(columns, pairs, at(a, i, p), row_bytes, step_bytes, b, pitch, add, c + i * ldc, ldc);
  }
}

void multiply(int64_t rows, int64_t columns, int64_t pairs, PairRows a, PairPanels b, bool add, float* c, int64_t ldc) {
  for (int64_t p = 0; p == 0 || p < pairs; p += kBlockPairs) {  // at least once: no pairs have to write zeros
    const int64_t left = pairs - p, steps = left < kBlockPairs ? left : kBlockPairs;
    const bool more = add || p > 0;
    int64_t j = 0;
    for (; columns - j > (kTilePanels - 1) * kPanel; j += kTilePanels * kPanel) {
      panel_product<kTilePanels>(rows, columns - j, steps, a, p, b.data + (j * b.pitch + p * kPanel), b.pitch, more,
                                 c + j, ldc);
    }
    for (; j < columns; j += kPanel) {
      panel_product<1>(rows, columns - j, steps, a, p, b.data + (j * b.pitch + p * kPanel), b.pitch, more, c + j, ldc);
    }
  }
}

#else  // ---------------------------------------------------------------- product in tiles

constexpr int64_t kTile = 16;  // rows, columns and pairs of a tile

#if FFKERN_TILES == 1

/// What LDTILECFG reads: eight tiles of 16 rows of 64 bytes.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
void begin() {
  alignas(64) const TileConfig config;
  // The intrinsic's operand covers the first bytes only; without this the rest of the structure may never be written.
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}
void end() { _tile_release(); }

#define FFKERN_TILE_ZERO(t) _tile_zero(t)
#define FFKERN_TILE_LOAD(t, from, bytes) _tile_loadd(t, from, bytes)
#define FFKERN_TILE_STORE(t, to, bytes) _tile_stored(t, to, bytes)
#define FFKERN_TILE_STEP(c, a, b) _tile_dpbf16ps(c, a, b)

#else  // in software

thread_local uint32_t tiles[8][kTile][kTile];
thread_local bool configured = false;

void begin() { configured = true; }
void end() { configured = false; }

void tile_zero(int t) { __builtin_memset(tiles[t], 0, sizeof tiles[t]); }
void tile_load(int t, const void* from, int64_t bytes) {
  for (int64_t i = 0; i < kTile; ++i) __builtin_memcpy(tiles[t][i], static_cast<const char*>(from) + i * bytes, 64);
}
void tile_store(int t, void* to, int64_t bytes) {
  if (!configured) __builtin_trap();  // the processor would raise its exception for it, too
  for (int64_t i = 0; i < kTile; ++i) __builtin_memcpy(static_cast<char*>(to) + i * bytes, tiles[t][i], 64);
}
/// TDPBF16PS: even and odd elements add up apart, and are added to the tile last.
void tile_step(int c, int a, int b) {
  for (int64_t i = 0; i < kTile; ++i) {
    for (int64_t j = 0; j < kTile; ++j) {
      float sums[2] = {0, 0};
      for (int64_t p = 0; p < kTile; ++p) {
        for (int half = 0; half < 2; ++half) {
          const uint32_t x = tiles[a][i][p] >> (16 * half) << 16, y = tiles[b][p][j] >> (16 * half) << 16;
          float u, v;
          __builtin_memcpy(&u, &x, sizeof u);
          __builtin_memcpy(&v, &y, sizeof v);
          sums[half] = __builtin_fmaf(u, v, sums[half]);
        }
      }
      float total;
      __builtin_memcpy(&total, &tiles[c][i][j], sizeof total);
      total += sums[0] + sums[1];
      __builtin_memcpy(&tiles[c][i][j], &total, sizeof total);
    }
  }
}

#define FFKERN_TILE_ZERO(t) tile_zero(t)
#define FFKERN_TILE_LOAD(t, from, bytes) tile_load(t, from, bytes)
#define FFKERN_TILE_STORE(t, to, bytes) tile_store(t, to, bytes)
#define FFKERN_TILE_STEP(c, a, b) tile_step(c, a, b)

#endif

/// Two by two tiles over whole steps of 16 pairs. Rows of A are a_bytes apart; those of the two panels of B 64.
inline __attribute__((always_inline)) void steps(int64_t count, const char* a, int64_t a_bytes, const uint32_t* b0,
                                                 const uint32_t* b1) {
  for (int64_t s = 0; s < count; ++s, a += 64, b0 += kTile * kPanel, b1 += kTile * kPanel) {
    FFKERN_TILE_LOAD(4, a, a_bytes);
    FFKERN_TILE_LOAD(6, b0, 64);
    FFKERN_TILE_STEP(0, 4, 6);
    FFKERN_TILE_LOAD(7, b1, 64);
    FFKERN_TILE_STEP(1, 4, 7);
    FFKERN_TILE_LOAD(5, a + kTile * a_bytes, a_bytes);
    FFKERN_TILE_STEP(2, 5, 6);
    FFKERN_TILE_STEP(3, 5, 7);
  }
}

constexpr int64_t kDepthStep = kTile;

/// Rows of pairs: a tile's rows are the operand's.
void pack_left(const float* const* rows, int64_t n, int64_t p, int64_t pairs, uint32_t* out) {
  alignas(64) uint32_t block[kTile][kTile];
  alignas(64) uint32_t turned[kTile * kTile];
  for (int64_t j = 0; j < n; j += kTile) {
    const int64_t there = n - j < kTile ? n - j : kTile;
    for (int64_t q = 0; q < kTile; ++q) {
      const float *a = rows[2 * q], *b = rows[2 * q + 1];
      fill_pair(a != nullptr ? a + j : a, b != nullptr ? b + j : b, there, block[q], 1);
    }
    transpose(block, turned);
    for (int64_t r = 0; r < there; ++r) __builtin_memcpy(out + (j + r) * pairs + p, turned + r * kTile, 64);
  }
}

PairRows left(const uint32_t* packed, int64_t pairs, int64_t first) {
  return {packed + first * pairs, kPairBytes * pairs};
}

/// Rows from i on at pairs [p, p + count), 32 rows of `pitch` pairs filled up with 0.
void copy_rows(PairRows a, int64_t i, int64_t rows, int64_t p, int64_t count, uint32_t* out, int64_t pitch) {
  for (int64_t r = 0; r < 2 * kTile; ++r) {
    const int64_t there = r < rows ? count : 0;
    if (there > 0) __builtin_memcpy(out + r * pitch, at(a, i + r, p), kPairBytes * there);
    __builtin_memset(out + r * pitch + there, 0, kPairBytes * (pitch - there));
  }
}

constexpr int64_t kMostPairs = 1024;  // in one go: bounds the copy of the last rows, 128 KiB

/// Pairs [first, first + pairs). Columns outside, so that two panels of B stay in the second-level cache for all rows.
void multiply_depth(int64_t rows, int64_t columns, int64_t first, int64_t pairs, PairRows a, PairPanels b, bool add,
                    float* c, int64_t ldc) {
  alignas(64) uint32_t last[2 * kTile * (kMostPairs + kTile)];
  alignas(64) uint32_t rest_a[2 * kTile * kTile], rest_b[2][kTile * kPanel];
  alignas(64) float sums[2 * kTile][2 * kPanel];
  const int64_t whole = pairs / kTile, left = pairs % kTile, pitch = (whole + 1) * kTile;
  const int64_t even_rows = rows / (2 * kTile) * (2 * kTile);
  if (even_rows < rows) copy_rows(a, even_rows, rows - even_rows, first, pairs, last, pitch);
  for (int64_t j = 0; j < columns; j += 2 * kPanel) {
    const int64_t width = columns - j < 2 * kPanel ? columns - j : 2 * kPanel;
    const uint32_t* b0 = b.data + j * b.pitch + first * kPanel;
    const uint32_t* b1 = width > kPanel ? b0 + b.pitch * kPanel : b0;  // a second panel that is not there: any
    if (left > 0) {
      __builtin_memset(rest_b, 0, sizeof rest_b);
      __builtin_memcpy(rest_b[0], b0 + whole * kTile * kPanel, 64 * left);
      __builtin_memcpy(rest_b[1], b1 + whole * kTile * kPanel, 64 * left);
    }
    for (int64_t i = 0; i < rows; i += 2 * kTile) {
      const bool direct = i < even_rows;
      const char* from = direct ? at(a, i, first) : reinterpret_cast<const char*>(last);
      const int64_t row_bytes = direct ? a.row_bytes : kPairBytes * pitch;
      FFKERN_TILE_ZERO(0);
      FFKERN_TILE_ZERO(1);
      FFKERN_TILE_ZERO(2);
      FFKERN_TILE_ZERO(3);
      steps(whole, from, row_bytes, b0, b1);
      if (left > 0) {
        copy_rows({from, row_bytes}, 0, 2 * kTile, whole * kTile, left, rest_a, kTile);
        steps(1, reinterpret_cast<const char*>(rest_a), kPairBytes * kTile, rest_b[0], rest_b[1]);
      }
      FFKERN_TILE_STORE(0, &sums[0][0], 128);
      FFKERN_TILE_STORE(1, &sums[0][kPanel], 128);
      FFKERN_TILE_STORE(2, &sums[kTile][0], 128);
      FFKERN_TILE_STORE(3, &sums[kTile][kPanel], 128);
      const int64_t height = rows - i < 2 * kTile ? rows - i : 2 * kTile;
      for (int64_t r = 0; r < height; ++r) {
        float* out = c + (i + r) * ldc + j;
        for (int64_t q = 0; q < width; ++q) out[q] = add ? out[q] + sums[r][q] : sums[r][q];
      }
    }
  }
}

void multiply(int64_t rows, int64_t columns, int64_t pairs, PairRows a, PairPanels b, bool add, float* c, int64_t ldc) {
  for (int64_t p = 0; p == 0 || p < pairs; p += kMostPairs) {  // at least once: no pairs have to write zeros
    const int64_t left = pairs - p;
    multiply_depth(rows, columns, p, left < kMostPairs ? left : kMostPairs, a, b, add || p > 0, c, ldc);
  }
}

#endif

}  // namespace

extern const PairKernels kPairKernels;
const PairKernels kPairKernels = {FFKERN_UNIT, kDepthStep, multiply,  begin,  end,  pack_left,
                                  left,        pack_right, pack_rows, narrow, widen};

}  // namespace ffkern::cpu::FFKERN_ISA
