// The core without torch: own_gemm() on every instruction set of this machine against a triple loop in float64.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

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

/// Tasks in descending order: nothing may depend on the order.
void backwards(int64_t tasks, void (*fn)(int64_t, void*), void* context) {
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
void check_gemm(const Provider& provider, Shape s, bool trans_a, bool trans_b, float beta,
                const std::string& isa) {
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
  what << isa << ": m=" << s.m << " n=" << s.n << " k=" << s.k << " trans_a=" << trans_a
       << " trans_b=" << trans_b << " beta=" << beta << " threads=" << provider.threads;
  expect(close, what.str() + ": differs from the triple loop");
  expect(kept, what.str() + ": wrote outside C");
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
  const Shape shapes[] = {{1, 1, 1},   {1, 1, 0},    {3, 5, 7},     {4, 16, 2},
                          {33, 17, 9}, {61, 49, 70}, {121, 33, 257}, {13, 530, 3}};
  std::istringstream names(ffkern::cpu::supported_isas());
  int isas = 0;
  for (std::string isa; std::getline(names, isa, ','); ++isas) {
    isa.erase(0, isa.find_first_not_of(' '));
    setenv("FFKERN_CPU_ISA", isa.c_str(), 1);
    ffkern::cpu::reset_isa();
    expect(ffkern::cpu::row_kernels().name == isa, "FFKERN_CPU_ISA=" + isa + " is not obeyed");
    for (int threads : {1, 3}) {
      const Provider provider{ffkern::cpu::own_gemm, backwards, threads};
      for (const Shape& s : shapes) {
        for (int t = 0; t < 8; ++t) {
          check_gemm(provider, s, t & 1, t & 2, t & 4 ? 1.0f : 0.0f, isa);
        }
      }
    }
  }
  expect(isas > 0, "no instruction set at all");
  check_isa_names();
  std::printf("%d instruction sets, %d failures\n", isas, failures);
  return failures == 0 ? 0 : 1;
}
