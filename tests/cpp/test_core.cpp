// The core without torch, on every instruction set of this machine: own_gemm() against a triple
// loop in float64 and for every number of threads, one training step against plain loops, and every
// entry point with exactly the scratch it asks for (AddressSanitizer); products of bfloat16 on every
// unit that multiplies it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/pair_kernels.h"
#include "cpu/provider.h"
#include "cpu/row_kernels.h"

namespace {

using ffkern::cpu::Gemm;
using ffkern::cpu::Provider;

int failures = 0;

void expect(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

int64_t most_tasks = 0;  // of a call since it was last set to 0

/// Tasks in descending order: nothing may depend on the order.
void backwards(int64_t tasks, void (*fn)(int64_t, void*), void* context) {
  most_tasks = std::max(most_tasks, tasks);
  for (int64_t t = tasks; t-- > 0;) fn(t, context);
}

/// Numbers in [-1, 1) from a fixed linear congruence.
std::vector<float> numbers(size_t n, uint32_t seed) {
  std::vector<float> out(n);
  for (float& v : out) {
    seed = seed * 1664525u + 1013904223u;
    v = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
  }
  return out;
}

struct Shape {
  int64_t m, n, k;
};

/// Compares C[m, n] with float64, and checks that the columns behind n keep what they held.
void check_gemm(const Provider& provider, Shape s, bool trans_a, bool trans_b, float beta, const std::string& isa) {
  const int64_t pad = 3;
  Gemm g;
  g.trans_a = trans_a;
  g.trans_b = trans_b;
  g.m = s.m;
  g.n = s.n;
  g.k = s.k;
  g.beta = beta;
  g.lda = (trans_a ? s.m : s.k) + pad;
  g.ldb = (trans_b ? s.k : s.n) + pad;
  g.ldc = s.n + pad;
  const auto a = numbers(static_cast<size_t>((trans_a ? s.k : s.m) * g.lda), 1);
  const auto b = numbers(static_cast<size_t>((trans_b ? s.n : s.k) * g.ldb), 2);
  auto c = numbers(static_cast<size_t>(s.m * g.ldc), 3);
  const auto before = c;
  if (beta == 0.0f) {  // beta = 0 must not read C
    for (int64_t i = 0; i < s.m; ++i) {
      for (int64_t j = 0; j < s.n; ++j) c[i * g.ldc + j] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  g.a = a.data();
  g.b = b.data();
  g.c = c.data();
  ffkern::cpu::own_gemm(provider, g);

  bool close = true, kept = true;
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < g.ldc; ++j) {
      const int64_t at = i * g.ldc + j;
      if (j >= s.n) {
        kept = kept && c[at] == before[at];
        continue;
      }
      double sum = beta == 0.0f ? 0.0 : before[at], size = 1.0;
      for (int64_t p = 0; p < s.k; ++p) {
        const double x = static_cast<double>(a[trans_a ? p * g.lda + i : i * g.lda + p]) *
                         b[trans_b ? j * g.ldb + p : p * g.ldb + j];
        sum += x;
        size += std::fabs(x);
      }
      // |error| <= k u sum|a b| bounds every order of summation; u = 2^-24
      const double bound = static_cast<double>(s.k + 2) * size * 0x1p-24;
      close = close && std::fabs(c[at] - sum) <= bound;  // false for NaN
    }
  }
  std::ostringstream what;
  what << isa << ": m=" << s.m << " n=" << s.n << " k=" << s.k << " trans_a=" << trans_a << " trans_b=" << trans_b
       << " beta=" << beta << " threads=" << provider.threads;
  expect(close, what.str() + ": differs from the triple loop");
  expect(kept, what.str() + ": wrote outside C");
}

/// However many threads C is cut for, its bits are those of one thread, and the columns behind n are not touched.
void check_gemm_cuts(Shape s, bool trans_a, bool trans_b, float beta, const std::string& isa) {
  const int64_t pad = 5, m = s.m, n = s.n, k = s.k;
  const auto a = numbers(static_cast<size_t>(m * k), 12), b = numbers(static_cast<size_t>(n * k), 13);
  const auto before = numbers(static_cast<size_t>(m * (n + pad)), 14);
  std::vector<float> first;
  for (int threads : {1, 2, 3, 7}) {
    auto c = before;
    const Gemm g{trans_a,  trans_b,         m,    n,        k,      a.data(), trans_a ? m : k,
                 b.data(), trans_b ? k : n, beta, c.data(), n + pad};
    most_tasks = 0;
    ffkern::cpu::own_gemm({ffkern::cpu::own_gemm, backwards, threads}, g);
    std::ostringstream what;
    what << isa << ": m=" << m << " n=" << n << " k=" << k << " trans_a=" << trans_a << " trans_b=" << trans_b
         << " beta=" << beta << " threads=" << threads;
    expect(threads == 1 ? most_tasks == 0 : most_tasks > 1 && most_tasks <= threads,
           what.str() + ": made " + std::to_string(most_tasks) + " tasks");
    if (threads == 1) first = c;
    expect(std::memcmp(c.data(), first.data(), sizeof(float) * c.size()) == 0,
           what.str() + ": other bits than with one thread");
  }
}

/// Idle steps are not looked at, and those that are add up as if the idle ones were zero.
void check_gemm_idle(Shape s, float beta, const std::string& isa) {
  const int64_t m = s.m, n = s.n, k = s.k;
  auto a = numbers(static_cast<size_t>(m * k), 15), b = numbers(static_cast<size_t>(n * k), 16);
  const auto before = numbers(static_cast<size_t>(m * n), 17);
  std::vector<uint8_t> idle(static_cast<size_t>(k));
  for (int64_t p = 0; p < k; ++p) {
    idle[p] = p % 7 != 3 || (p >= 190 && p < 400);  // whole blocks among them
    for (int64_t i = 0; idle[p] && i < m; ++i) a[p * m + i] = 0.0f;
  }
  const Provider provider{ffkern::cpu::own_gemm, backwards, 3};
  auto want = before, got = before;
  Gemm g{true, false, m, n, k, a.data(), m, b.data(), n, beta, want.data(), n};
  ffkern::cpu::own_gemm(provider, g);
  for (int64_t p = 0; p < k; ++p) {
    for (int64_t i = 0; idle[p] && i < m; ++i) a[p * m + i] = std::numeric_limits<float>::quiet_NaN();
    for (int64_t j = 0; idle[p] && j < n; ++j) b[p * n + j] = std::numeric_limits<float>::quiet_NaN();
  }
  g.c = got.data();
  g.idle = idle.data();
  ffkern::cpu::own_gemm(provider, g);
  expect(std::memcmp(want.data(), got.data(), sizeof(float) * want.size()) == 0,
         isa + ": idle steps change a bit of " + std::to_string(m) + " x " + std::to_string(n) + " x " +
             std::to_string(k));
}

bool near(double got, double want) { return std::fabs(got - want) <= 1e-5 * (1.0 + std::fabs(want)); }

/// One step of "sgd" on "mean_sq" with "l2" lengths, in float64 loops.
void check_step(const Provider& provider, int64_t rows, int64_t units, int64_t inputs, const std::string& isa) {
  const auto x = numbers(static_cast<size_t>(rows * inputs), 4);
  const auto weight = numbers(static_cast<size_t>(units * inputs), 5);
  const auto bias = numbers(static_cast<size_t>(units), 6);
  std::vector<float> sign(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows; ++i) sign[i] = i % 3 == 2 ? 0.0f : (i % 3 == 0 ? 1.0f : -1.0f);
  const double eps = 1e-4, lr = 0.5, threshold = 0.25;

  auto new_weight = weight, new_bias = bias;
  std::vector<float> weight_state(weight.size()), bias_state(bias.size());
  std::vector<float> h(static_cast<size_t>(rows * units)), h_norm(static_cast<size_t>(rows));
  double stats[ffkern::kStatCount] = {};
  ffkern::cpu::Step step;
  step.layer.x = x.data();
  step.layer.ldx = inputs;
  step.layer.weight = weight.data();
  step.layer.bias = bias.data();
  step.layer.images = rows;
  step.layer.inputs = inputs;
  step.layer.units = units;
  step.lesson.sign = sign.data();
  step.lesson.loss.threshold = static_cast<float>(threshold);
  step.optimiser.kind = ffkern::Optimiser::kSgd;
  step.optimiser.lr = lr;
  step.optimiser.beta1 = 0.0;
  step.layer.weight = new_weight.data();
  step.layer.bias = new_bias.data();
  step.trained = {new_weight.data(), new_bias.data(), weight_state.data(), bias_state.data()};
  step.keep_h = h.data();
  step.keep_h_norm = h_norm.data();
  step.stats = stats;
  std::vector<float> scratch(
      static_cast<size_t>(ffkern::cpu::step_floats(provider, step.layer, false, step.optimiser.kind)));
  ffkern::cpu::step(provider, step, scratch.data());

  std::vector<double> dweight(weight.size()), dbias(bias.size());
  double loss = 0.0;
  bool same_h = true;
  for (int64_t i = 0; i < rows; ++i) {
    double norm = 0.0, goodness = 0.0;
    for (int64_t k = 0; k < inputs; ++k) norm += static_cast<double>(x[i * inputs + k]) * x[i * inputs + k];
    const double r = 1.0 / (std::sqrt(norm) + eps);
    std::vector<double> a(static_cast<size_t>(units));
    for (int64_t j = 0; j < units; ++j) {
      double z = 0.0;
      for (int64_t k = 0; k < inputs; ++k) z += static_cast<double>(x[i * inputs + k]) * weight[j * inputs + k];
      a[j] = std::max(0.0, r * z + bias[j]);
      goodness += a[j] * a[j] / static_cast<double>(units);
      same_h = same_h && near(h[i * units + j], a[j]);
    }
    if (sign[i] == 0.0f) continue;
    const double logit = sign[i] * (goodness - threshold);
    loss += std::log1p(std::exp(-logit)) / static_cast<double>(rows);
    const double coef = -sign[i] / (1.0 + std::exp(logit)) / static_cast<double>(rows);
    for (int64_t j = 0; j < units; ++j) {
      const double dz = coef * 2.0 * a[j] / static_cast<double>(units);
      dbias[j] += dz;
      for (int64_t k = 0; k < inputs; ++k) dweight[j * inputs + k] += r * dz * x[i * inputs + k];
    }
  }
  bool same = true;
  for (size_t e = 0; e < weight.size(); ++e) same = same && near(new_weight[e], weight[e] - lr * dweight[e]);
  for (size_t e = 0; e < bias.size(); ++e) same = same && near(new_bias[e], bias[e] - lr * dbias[e]);
  const std::string where = isa + ": step of " + std::to_string(rows) + " rows, " + std::to_string(units) + " units, " +
                            std::to_string(inputs) + " inputs";
  expect(same_h, where + ": activities differ from the loops");
  expect(same, where + ": weights differ from the loops");
  expect(near(stats[ffkern::kStatLoss], loss), where + ": loss differs from the loops");
}

/// Label variants, peer term, prediction and head: finite, and inside the scratch that they ask
/// for.
void check_scratch(const Provider& provider, int64_t images, int64_t units, const std::string& isa) {
  const int64_t inputs = 11, classes = 3, variants = 2, rows = images * variants;
  const auto x = numbers(static_cast<size_t>(images * inputs), 7);
  auto weight = numbers(static_cast<size_t>(units * inputs), 8);
  auto bias = numbers(static_cast<size_t>(units), 9);
  std::vector<int64_t> labels(static_cast<size_t>(rows));
  std::vector<float> sign(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows; ++i) {
    labels[i] = i % (classes + 1) - 1;
    sign[i] = i < images ? 1.0f : -1.0f;
  }
  std::vector<float> weight_state(2 * weight.size()), bias_state(2 * bias.size());
  std::vector<float> peer_mean(static_cast<size_t>(units));
  std::vector<float> h(static_cast<size_t>(rows * units)), h_norm(static_cast<size_t>(rows));
  double stats[ffkern::kStatCount] = {};
  ffkern::cpu::Step step;
  step.layer.x = x.data();
  step.layer.ldx = inputs;
  step.layer.weight = weight.data();
  step.layer.bias = bias.data();
  step.layer.images = images;
  step.layer.inputs = inputs;
  step.layer.units = units;
  step.layer.classes = classes;
  step.layer.variants = variants;
  step.layer.labels = labels.data();
  step.layer.on_value = 1.0f;
  step.layer.neutral_value = 1.0f / 3.0f;
  step.lesson.sign = sign.data();
  step.peer = {0.1f, 0.9f};
  step.peer_mean = peer_mean.data();
  step.optimiser.lr = 0.01;
  step.trained = {weight.data(), bias.data(), weight_state.data(), bias_state.data()};
  step.keep_h = h.data();
  step.keep_h_norm = h_norm.data();
  step.stats = stats;
  std::vector<float> scratch(
      static_cast<size_t>(ffkern::cpu::step_floats(provider, step.layer, true, step.optimiser.kind)));
  ffkern::cpu::step(provider, step, scratch.data());

  const float* weights[] = {weight.data()};
  const float* biases[] = {bias.data()};
  std::vector<float> goodness(static_cast<size_t>(images * classes));
  ffkern::cpu::Layer first = step.layer;
  first.labels = nullptr;
  first.variants = classes;
  const ffkern::cpu::Stack stack{1, weights, biases, &units};
  scratch.assign(static_cast<size_t>(ffkern::cpu::predict_floats(provider, first, stack)), 0.0f);
  ffkern::cpu::predict_goodness(provider, first, stack, goodness.data(), scratch.data());

  const ffkern::cpu::HeadInput input{h.data(), h_norm.data(), units, units};
  auto head_weight = numbers(static_cast<size_t>(classes * units), 10);
  auto head_bias = numbers(static_cast<size_t>(classes), 11);
  std::vector<float> head_state(2 * head_weight.size()), head_bias_state(2 * head_bias.size());
  std::vector<float> logits(static_cast<size_t>(images * classes));
  std::vector<int64_t> truth(static_cast<size_t>(images), classes - 1);
  double head_stats[3] = {};
  ffkern::cpu::Head head;
  head.inputs = &input;
  head.count = 1;
  head.images = images;
  head.classes = classes;
  head.width = units;
  head.weight = head_weight.data();
  head.bias = head_bias.data();
  scratch.assign(static_cast<size_t>(ffkern::cpu::head_floats(head)), 0.0f);
  ffkern::cpu::head_step(provider, head, truth.data(), step.optimiser,
                         {head_weight.data(), head_bias.data(), head_state.data(), head_bias_state.data()},
                         logits.data(), head_stats, scratch.data());

  bool finite = std::isfinite(stats[ffkern::kStatLoss]) && std::isfinite(head_stats[0]);
  for (const auto* values : {&weight, &bias, &goodness, &logits, &head_weight, &head_bias}) {
    for (float v : *values) finite = finite && std::isfinite(v);
  }
  expect(finite, isa + ": a value is not finite with " + std::to_string(images) + " images, " + std::to_string(units) +
                     " units");
  expect(stats[ffkern::kStatRowsPos] == static_cast<double>(images), isa + ": count of positive rows");
}

/// Integers from -1 to 1, which bfloat16 holds: the high half of a float32. Sums of their products are exact.
std::vector<uint16_t> low_integers(const std::vector<float>& numbers) {
  std::vector<uint16_t> out;
  for (float v : numbers) {
    const float integer = std::round(1.4f * v);
    uint32_t bits;
    std::memcpy(&bits, &integer, sizeof bits);
    out.push_back(static_cast<uint16_t>(bits >> 16));
  }
  return out;
}

float wide(uint16_t low) {
  const uint32_t bits = static_cast<uint32_t>(low) << 16;
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

/// Rows of bfloat16 with `classes` label columns: their product, variants, a step that packs the weights again, and a
/// prediction, with no memory beyond what each asks for.
void check_low(const Provider& provider, int64_t images, int64_t units, int64_t inputs, int64_t classes,
               const std::string& where) {
  const auto x = low_integers(numbers(static_cast<size_t>(images * inputs), 15));
  std::vector<float> weight;
  for (uint16_t low : low_integers(numbers(static_cast<size_t>(units * inputs), 16))) weight.push_back(wide(low));
  const size_t pairs = static_cast<size_t>(ffkern::cpu::packed_weight(units, inputs));
  std::vector<uint32_t> packed(pairs), again(pairs);
  ffkern::cpu::pack_weight(provider, units, inputs, weight.data(), packed.data());

  ffkern::cpu::Layer layer;
  layer.x_low = x.data();
  layer.ldx = inputs;
  layer.weight = weight.data();
  layer.weight_low = packed.data();
  layer.images = images;
  layer.inputs = inputs;
  layer.units = units;
  layer.classes = classes;
  std::vector<float> base(static_cast<size_t>(images * units)), rest_norm(static_cast<size_t>(images));
  ffkern::cpu::base_product(provider, layer, base.data(), rest_norm.data());
  bool same = true;
  for (int64_t i = 0; i < images; ++i) {
    for (int64_t j = 0; j < units; ++j) {
      float z = 0;
      for (int64_t k = classes; k < inputs; ++k) z += wide(x[i * inputs + k]) * weight[j * inputs + k];
      same = same && base[i * units + j] == z;
    }
  }
  expect(same, where + ": product of bfloat16 differs from the loops");

  const std::vector<int64_t> labels(static_cast<size_t>(images), 0);
  const std::vector<float> sign(static_cast<size_t>(images), -1.0f);
  std::vector<uint16_t> h(static_cast<size_t>(images * units));
  std::vector<float> state(2 * weight.size()), row(static_cast<size_t>(3 * images));
  double stats[ffkern::kStatCount] = {};
  layer.labels = labels.data();
  layer.x_norm = rest_norm.data();
  std::vector<float> scratch(static_cast<size_t>(ffkern::cpu::variants_floats(provider, layer)));
  ffkern::cpu::Activities out{nullptr, row.data(), row.data() + images, row.data() + 2 * images, h.data()};
  if (classes > 0) {
    ffkern::cpu::variants(provider, layer, base.data(), out, scratch.data());
  } else {
    scratch.assign(static_cast<size_t>(ffkern::cpu::forward_floats(layer)), 0.0f);
    ffkern::cpu::forward(provider, layer, out, scratch.data());
  }
  const auto kept = h;
  layer.x_norm = nullptr;
  ffkern::cpu::Step step;
  step.layer = layer;
  step.lesson.sign = sign.data();
  step.optimiser.lr = 0.01;
  step.trained.weight = weight.data();
  step.trained.weight_low = packed.data();
  step.trained.weight_state = state.data();
  step.keep_h_low = h.data();
  step.stats = stats;
  scratch.assign(static_cast<size_t>(ffkern::cpu::step_floats(provider, layer, false, step.optimiser.kind)), 0.0f);
  ffkern::cpu::step(provider, step, scratch.data());
  expect(h == kept, where + ": activities of a step in bfloat16 differ from those of a forward pass");
  ffkern::cpu::pack_weight(provider, units, inputs, weight.data(), again.data());
  expect(packed == again, where + ": a step leaves other packed weights than its own");

  scratch.assign(static_cast<size_t>(ffkern::cpu::update_floats(provider, layer, step.optimiser.kind)), 0.0f);
  ffkern::cpu::update(provider, layer, out, sign.data(), sign.data(), nullptr, step.optimiser, step.trained, nullptr,
                      scratch.data());
  if (classes == 0) return;
  const float* weights[] = {weight.data()};
  const uint32_t* weights_low[] = {packed.data()};
  const float* biases[] = {nullptr};
  std::vector<float> goodness(static_cast<size_t>(images * classes));
  layer.labels = nullptr;
  layer.variants = classes;
  const ffkern::cpu::Stack stack{1, weights, biases, &units, weights_low};
  scratch.assign(static_cast<size_t>(ffkern::cpu::predict_floats(provider, layer, stack)), 0.0f);
  ffkern::cpu::predict_goodness(provider, layer, stack, goodness.data(), scratch.data());
  bool finite = true;
  for (float v : goodness) finite = finite && std::isfinite(v);
  expect(finite, where + ": goodness from rows of bfloat16 is not finite");
}

void check_isa_names() {
  setenv("FFKERN_CPU_ISA", "pentium", 1);
  ffkern::cpu::reset_isa();
  bool thrown = false;
  try {
    ffkern::cpu::row_kernels();
  } catch (const std::exception& e) {
    thrown = std::string(e.what()).find("portable") != std::string::npos;
  }
  expect(thrown, "an unknown FFKERN_CPU_ISA must raise an error that lists the known names");
}

}  // namespace

int main() {
  const Shape shapes[] = {{1, 1, 1},    {1, 1, 0},      {3, 5, 7},    {4, 16, 2},    {33, 17, 9},
                          {61, 49, 70}, {121, 33, 257}, {13, 530, 3}, {17, 37, 2500}};
  // Squarish; one strip of rows; one panel of columns; deeper than what is packed at once.
  const Shape cut_shapes[] = {{301, 277, 193}, {5, 2000, 800}, {2000, 7, 600}, {100, 150, 2400}};
  std::istringstream names(ffkern::cpu::supported_isas());
  int isas = 0;
  for (std::string isa; std::getline(names, isa, ','); ++isas) {
    isa.erase(0, isa.find_first_not_of(' '));
    setenv("FFKERN_CPU_ISA", isa.c_str(), 1);
    ffkern::cpu::reset_isa();
    expect(ffkern::cpu::row_kernels().name == isa, "FFKERN_CPU_ISA=" + isa + " is not obeyed");
    for (const Shape& s : cut_shapes) {
      for (int t = 0; t < 8; ++t) check_gemm_cuts(s, t & 1, t & 2, t & 4 ? 1.0f : 0.0f, isa);
    }
    for (const Shape& s : {Shape{1, 1, 1}, Shape{17, 37, 260}, Shape{61, 70, 800}, Shape{13, 530, 2500}}) {
      for (float beta : {0.0f, 1.0f}) check_gemm_idle(s, beta, isa);
    }
    for (int threads : {1, 3}) {
      const Provider provider{ffkern::cpu::own_gemm, backwards, threads};
      for (const Shape& s : shapes) {
        for (int t = 0; t < 8; ++t) {
          check_gemm(provider, s, t & 1, t & 2, t & 4 ? 1.0f : 0.0f, isa);
        }
      }
      check_step(provider, 1, 1, 1, isa);
      check_step(provider, 7, 19, 5, isa);
      check_step(provider, 300, 70, 33, isa);
      check_scratch(provider, 1, 1, isa);
      check_scratch(provider, 5, 17, isa);
      check_scratch(provider, 260, 65, isa);
    }
    std::istringstream units(ffkern::cpu::supported_bf16());
    for (std::string unit; std::getline(units, unit, ',');) {
      unit.erase(0, unit.find_first_not_of(' '));
      setenv("FFKERN_BF16", unit.c_str(), 1);
      ffkern::cpu::reset_isa();
      expect(ffkern::cpu::pair_kernels().name == unit, "FFKERN_BF16=" + unit + " is not obeyed");
      for (int threads : {1, 3}) {
        const Provider provider{ffkern::cpu::own_gemm, backwards, threads};
        check_low(provider, 1, 1, 1, 0, isa + ", " + unit);
        check_low(provider, 1, 1, 2, 1, isa + ", " + unit);
        check_low(provider, 7, 19, 5, 3, isa + ", " + unit);
        check_low(provider, 70, 130, 401, 10, isa + ", " + unit);
        check_low(provider, 33, 64, 64, 0, isa + ", " + unit);
        check_low(provider, 3, 17, 2101, 0, isa + ", " + unit);
      }
    }
    unsetenv("FFKERN_BF16");
  }
  expect(isas > 0, "no instruction set at all");
  check_isa_names();
  std::printf("%d instruction sets, %d failures\n", isas, failures);
  return failures == 0 ? 0 : 1;
}
