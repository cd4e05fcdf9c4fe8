// Row kernels for one instruction set (FFKERN_ISA); the build compiles this file once for each.
//
// Cost: each kernel reads and writes its rows once, from the first-level cache when called right behind the product
// of its block. A step touches a row of M activities three times (epilogue, loss, gradient) and never as a whole
// matrix from memory.
//
// Numerics: sums run in 4 x kLanes float32 partial sums and a fixed tree for up to kRun columns, and in float64 over
// such runs, so the error is at most about (kRun / (4 kLanes) + 8) ulp, and the same row always gives the same bits.
#include "row_kernels.h"

#include "vec.h"

namespace ffkern::cpu::FFKERN_ISA {
namespace {

/// Four running vectors: breaks the dependency chain of a sum, and shortens it for accuracy.
struct Sum4 {
  Vec part[4] = {zero(), zero(), zero(), zero()};
  float total() const { return sum((part[0] + part[2]) + (part[1] + part[3])); }
};

constexpr int64_t kRun = 4096;  // columns of a row that add up in float32; runs add up in float64

float sum_sq_run(const float* x, int64_t n) {
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

float sum_sq(const float* x, int64_t n) {
  double total = 0;
  for (int64_t j = 0; j < n; j += kRun) total += sum_sq_run(x + j, n - j < kRun ? n - j : kRun);
  return static_cast<float>(total);
}

/// Shared loop of the two epilogues: z_at(offset, lanes) yields the product of the row.
template <bool kBias, class Z>
inline __attribute__((always_inline)) RowSums epilogue_run(Z z_at, const float* bias, float scale, float* h,
                                                           int64_t n) {
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

template <bool kBias, class Z>
inline __attribute__((always_inline)) RowSums epilogue_loop(Z z_at, const float* bias, float scale, float* h,
                                                            int64_t n) {
  double squares = 0, plain = 0;
  for (int64_t j = 0; j < n; j += kRun) {
    auto here = [=](int64_t o, auto lanes) { return z_at(j + o, lanes); };
    const RowSums part = epilogue_run<kBias>(here, kBias ? bias + j : nullptr, scale, h == nullptr ? nullptr : h + j,
                                             n - j < kRun ? n - j : kRun);
    squares += part.squares;
    plain += part.plain;
  }
  return {static_cast<float>(squares), static_cast<float>(plain)};
}

RowSums epilogue(const float* z, const float* bias, float scale, float* h, int64_t n) {
  auto z_at = [=](int64_t j, auto lanes) { return load(z + j, lanes); };
  return bias != nullptr ? epilogue_loop<true>(z_at, bias, scale, h, n) : epilogue_loop<false>(z_at, bias, scale, h, n);
}

RowSums epilogue_label(const float* base, LabelColumn label, const float* bias, float scale, float* h, int64_t n) {
  const Vec value = splat(label.value);
  auto z_at = [=](int64_t j, auto lanes) { return fma(value, load(label.weights + j, lanes), load(base + j, lanes)); };
  return bias != nullptr ? epilogue_loop<true>(z_at, bias, scale, h, n) : epilogue_loop<false>(z_at, bias, scale, h, n);
}

/// dz of one vector of activities, without the peer term.
inline __attribute__((always_inline)) Vec dz_of(const RowGradient& g, Vec slope, Vec h) {
  return g.on_mask ? where_positive(h, slope) : slope * h;
}

inline __attribute__((always_inline)) Vec with_peer(const RowGradient& g, Vec dz, int64_t j, auto lanes) {
  return g.peer != nullptr ? dz + load(g.peer + j, lanes) : dz;
}

void gradient(const float* h, RowGradient g, float* out, float* db, int64_t n) {
  const Vec slope = splat(g.slope), r = splat(g.scale);
  for_each_vec(n, [&](int64_t j, auto lanes) {
    const Vec dz = dz_of(g, slope, load(h + j, lanes));
    store(out + j, with_peer(g, dz, j, lanes) * r, lanes);
    store(db + j, load(db + j, lanes) + dz, lanes);
  });
}

void gradient_label(const float* h, RowGradient g, bool add, float value, float* out, float* db, float* dlabel,
                    int64_t n) {
  const Vec slope = splat(g.slope), r = splat(g.scale), worth = splat(value);
  for_each_vec(n, [&](int64_t j, auto lanes) {
    const Vec dz = dz_of(g, slope, load(h + j, lanes));
    const Vec scaled = with_peer(g, dz, j, lanes) * r;
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
  for_each_vec(
      n, [&](int64_t j, auto lanes) { store(y + j, fma(factor, load(x + j, lanes), load(y + j, lanes)), lanes); });
}

// ---- optimisers: one pass over gradient, weight and state; at the memory bandwidth, so exact sqrt and division
// cost nothing.

void update(const UpdateRule& rule, const float* gradient, float* weight, float* m, float* v, int64_t n) {
  const Vec lr = splat(rule.lr), decay = splat(rule.weight_decay), beta1 = splat(rule.beta1), rest1 = splat(rule.rest1);
  switch (rule.kind) {
    case Optimiser::kSgd:
      for_each_vec(n, [&](int64_t j, auto lanes) {
        const Vec w = load(weight + j, lanes);
        const Vec g = fma(decay, w, load(gradient + j, lanes));
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
        store(weight + j, fnma(lr, fma(decay, w, a), w), lanes);
      });
      return;
    case Optimiser::kAdam:
    case Optimiser::kAdamW: {
      const Vec beta2 = splat(rule.beta2), rest2 = splat(rule.rest2), root = splat(rule.root), eps = splat(rule.eps);
      const Vec shrink = splat(rule.shrink);
      for_each_vec(n, [&](int64_t j, auto lanes) {
        const Vec w = load(weight + j, lanes);
        const Vec g = fma(decay, w, load(gradient + j, lanes));
        const Vec first = fma(beta1, load(m + j, lanes), rest1 * g);
        const Vec second = fma(rest2 * g, g, beta2 * load(v + j, lanes));
        const Vec denominator = fma(sqrt(second), root, eps);
        store(m + j, first, lanes);
        store(v + j, second, lanes);
        store(weight + j, fnma(lr, first / denominator, w * shrink), lanes);
      });
      return;
    }
  }
}

#define FFKERN_TEXT_(a) #a
#define FFKERN_TEXT(a) FFKERN_TEXT_(a)

}  // namespace

extern const RowKernels kKernels;
const RowKernels kKernels = {FFKERN_TEXT(FFKERN_ISA), sum_sq, epilogue, epilogue_label, gradient,
                             gradient_label,          add,    axpy,     update};

}  // namespace ffkern::cpu::FFKERN_ISA
