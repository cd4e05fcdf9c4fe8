// Row kernels for one instruction set (FFKERN_ISA); the build compiles this file once for each.
//
// Cost: each kernel reads and writes its rows once, from the first-level cache when called right behind the product
// of its block. A step touches a row of M activities three times (epilogue, loss, gradient) and never as a whole
// matrix from memory.
//
// Numerics: float32 sums run in 4 x kLanes partial sums and a fixed tree, so the error of a sum of n squares is at
// most about (n / (4 kLanes) + 8) ulp, and the same row always gives the same bits.
#include "row_kernels.h"

#include "vec.h"

namespace ffkern::cpu::FFKERN_ISA {
namespace {

/// Four running vectors: breaks the dependency chain of a sum, and shortens it for accuracy.
struct Sum4 {
  Vec part[4] = {zero(), zero(), zero(), zero()};
  float total() const { return sum((part[0] + part[2]) + (part[1] + part[3])); }
};

float sum_sq(const float* x, int64_t n) {
  constexpr int64_t kStep = 4 * Vec::kLanes;
  Sum4 s;
  int64_t j = 0;
  for (; j + kStep <= n; j += kStep) {
    for (int u = 0; u < 4; ++u) {
      const Vec a = load(x + j + u * Vec::kLanes);
      s.part[u] = fma(a, a, s.part[u]);
    }
  }
  for_each_vec(n - j, [&](int64_t o, auto lanes) {
    const Vec a = load(x + j + o, lanes);
    s.part[0] = fma(a, a, s.part[0]);
  });
  return s.total();
}

/// Shared loop of the two epilogues: z_at(offset, lanes) yields the product of the row.
template <bool kBias, class Z>
inline __attribute__((always_inline)) RowSums epilogue_loop(Z z_at, const float* bias, float scale, float* h, int64_t n) {
  constexpr int64_t kStep = 4 * Vec::kLanes;
  const Vec r = splat(scale);
  Sum4 squares, plain;
  auto one = [&](int64_t j, auto lanes, int u) {
    Vec z = z_at(j, lanes);
    if constexpr (kBias) {
      z = fma(z, r, load(bias + j, lanes));
    } else {
      z = z * r;
    }
    const Vec a = relu(z);
    if (h != nullptr) store(h + j, a, lanes);
    squares.part[u] = fma(a, a, squares.part[u]);
    plain.part[u] = plain.part[u] + a;
  };
  int64_t j = 0;
  for (; j + kStep <= n; j += kStep) {
    for (int u = 0; u < 4; ++u) one(j + u * Vec::kLanes, Whole{}, u);
  }
  for (; j + Vec::kLanes <= n; j += Vec::kLanes) one(j, Whole{}, 0);
  if (j < n) one(j, n - j, 1);  // lanes past the end load as 0 and add nothing: relu(0 * r + 0) = 0
  return {squares.total(), plain.total()};
}

RowSums epilogue(const float* z, const float* bias, float scale, float* h, int64_t n) {
  auto z_at = [=](int64_t j, auto lanes) { return load(z + j, lanes); };
  return bias != nullptr ? epilogue_loop<true>(z_at, bias, scale, h, n) : epilogue_loop<false>(z_at, bias, scale, h, n);
}

RowSums epilogue_label(const float* base, LabelColumn label, const float* bias, float scale, float* h, int64_t n) {
  const Vec value = splat(label.value);
  auto z_at = [=](int64_t j, auto lanes) {
    return fma(value, load(label.weights + j, lanes), load(base + j, lanes));
  };
  return bias != nullptr ? epilogue_loop<true>(z_at, bias, scale, h, n) : epilogue_loop<false>(z_at, bias, scale, h, n);
}

/// dz of one vector of activities.
inline __attribute__((always_inline)) Vec dz_of(const RowGradient& g, Vec slope, Vec h, int64_t j, auto lanes) {
  Vec dz = g.on_mask ? where_positive(h, slope) : slope * h;
  if (g.peer != nullptr) dz = dz + load(g.peer + j, lanes);
  return dz;
}

void gradient(const float* h, RowGradient g, float* out, float* db, int64_t n) {
  const Vec slope = splat(g.slope), r = splat(g.scale);
  for_each_vec(n, [&](int64_t j, auto lanes) {
    const Vec dz = dz_of(g, slope, load(h + j, lanes), j, lanes);
    store(out + j, dz * r, lanes);
    store(db + j, load(db + j, lanes) + dz, lanes);
  });
}

void gradient_label(const float* h, RowGradient g, bool add, float value, float* out, float* db, float* dlabel,
                    int64_t n) {
  const Vec slope = splat(g.slope), r = splat(g.scale), worth = splat(value);
  for_each_vec(n, [&](int64_t j, auto lanes) {
    const Vec dz = dz_of(g, slope, load(h + j, lanes), j, lanes);
    const Vec scaled = dz * r;
    store(out + j, add ? load(out + j, lanes) + scaled : scaled, lanes);
    store(db + j, load(db + j, lanes) + dz, lanes);
    store(dlabel + j, fma(worth, scaled, load(dlabel + j, lanes)), lanes);
  });
}

void add(const float* x, float* y, int64_t n) {
  for_each_vec(n, [&](int64_t j, auto lanes) { store(y + j, load(y + j, lanes) + load(x + j, lanes), lanes); });
}

void axpy(float a, const float* x, float* y, int64_t n) {
  const Vec factor = splat(a);
  for_each_vec(n,
               [&](int64_t j, auto lanes) { store(y + j, fma(factor, load(x + j, lanes), load(y + j, lanes)), lanes); });
}

// ---- optimisers: one pass over gradient, weight and state; at the memory bandwidth, so exact sqrt and division
// cost nothing.

void update(const OptimiserParams& p, bool decay, const float* gradient, float* weight, float* m, float* v, int64_t n) {
  const double wd = decay ? p.weight_decay : 0.0;
  const Vec lr = splat(static_cast<float>(p.lr)), decay_in_gradient = splat(static_cast<float>(wd));
  const Vec beta1 = splat(static_cast<float>(p.beta1)), rest1 = splat(static_cast<float>(1.0 - p.beta1));
  switch (p.kind) {
    case Optimiser::kSgd:
      for_each_vec(n, [&](int64_t j, auto lanes) {
        const Vec w = load(weight + j, lanes);
        const Vec g = fma(decay_in_gradient, w, load(gradient + j, lanes));
        const Vec a = fma(beta1, load(m + j, lanes), g);
        store(m + j, a, lanes);
        store(weight + j, fnma(lr, a, w), lanes);
      });
      return;
    case Optimiser::kEma:
      for_each_vec(n, [&](int64_t j, auto lanes) {
        const Vec w = load(weight + j, lanes);
        const Vec a = fma(beta1, load(m + j, lanes), rest1 * load(gradient + j, lanes));
        store(m + j, a, lanes);
        store(weight + j, fnma(lr, fma(decay_in_gradient, w, a), w), lanes);
      });
      return;
    case Optimiser::kAdam:
    case Optimiser::kAdamW: {
      double power1 = 1.0, power2 = 1.0;  // beta^step by squaring: no libm call, so the bits are the compiler's alone
      double b1 = p.beta1, b2 = p.beta2;
      for (int64_t e = p.step; e > 0; e >>= 1, b1 *= b1, b2 *= b2) {
        if (e & 1) {
          power1 *= b1;
          power2 *= b2;
        }
      }
      const bool decoupled = p.kind == Optimiser::kAdamW;
      const Vec beta2 = splat(static_cast<float>(p.beta2)), rest2 = splat(static_cast<float>(1.0 - p.beta2));
      const Vec step = splat(static_cast<float>(p.lr / (1.0 - power1)));
      const Vec root = splat(static_cast<float>(1.0 / __builtin_sqrt(1.0 - power2)));
      const Vec eps = splat(static_cast<float>(p.eps));
      const Vec in_gradient = decoupled ? zero() : decay_in_gradient;
      const Vec shrink = splat(static_cast<float>(decoupled ? 1.0 - p.lr * wd : 1.0));
      for_each_vec(n, [&](int64_t j, auto lanes) {
        const Vec w = load(weight + j, lanes);
        const Vec g = fma(in_gradient, w, load(gradient + j, lanes));
        const Vec first = fma(beta1, load(m + j, lanes), rest1 * g);
        const Vec second = fma(rest2 * g, g, beta2 * load(v + j, lanes));
        const Vec denominator = fma(sqrt(second), root, eps);
        store(m + j, first, lanes);
        store(v + j, second, lanes);
        store(weight + j, fnma(step, first / denominator, w * shrink), lanes);
      });
      return;
    }
  }
}

// ---- the inner tile of own_gemm: kTileRows x 2 vectors of C stay in registers while k runs.

#if FFKERN_LEVEL == 2
constexpr int kTileRows = 12;  // 24 accumulators + 2 of B + 1 of A of the 32 registers
#elif FFKERN_LEVEL == 1
constexpr int kTileRows = 6;  // 12 + 2 + 1 of 16
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileCols = 2 * Vec::kLanes;

void gemm_tile(int64_t k, const float* a_panel, const float* b_panel, bool add, float* c, int64_t ldc, int64_t rows,
               int64_t cols) {
  Vec acc[kTileRows][2];
  for (auto& row : acc) row[0] = row[1] = zero();
  for (int64_t p = 0; p < k; ++p) {
    const Vec b0 = load(b_panel + p * kTileCols), b1 = load(b_panel + p * kTileCols + Vec::kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const Vec a = splat(a_panel[p * kTileRows + i]);
      acc[i][0] = fma(a, b0, acc[i][0]);
      acc[i][1] = fma(a, b1, acc[i][1]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    if (i >= rows) break;
    for (int half = 0; half < 2; ++half) {
      const int64_t left = cols - half * Vec::kLanes;
      if (left <= 0) break;
      float* p = c + i * ldc + half * Vec::kLanes;
      const int64_t lanes = left < Vec::kLanes ? left : Vec::kLanes;
      if (lanes == Vec::kLanes) {
        store(p, add ? load(p) + acc[i][half] : acc[i][half]);
      } else {
        store(p, add ? load(p, lanes) + acc[i][half] : acc[i][half], lanes);
      }
    }
  }
}

#define FFKERN_TEXT_(a) #a
#define FFKERN_TEXT(a) FFKERN_TEXT_(a)

}  // namespace

extern const RowKernels kKernels;
const RowKernels kKernels = {FFKERN_TEXT(FFKERN_ISA), sum_sq, epilogue, epilogue_label, gradient, gradient_label,
                             add, axpy, update, gemm_tile, kTileRows, kTileCols};

}  // namespace ffkern::cpu::FFKERN_ISA
