#include "frontend.h"

#include <array>
#include <atomic>
#include <climits>
#include <cstdlib>

// The Fortran BLAS that torch is linked with (MKL on x86). Weak: without it the own product takes over.
extern "C" __attribute__((weak)) void sgemm_(const char* trans_a, const char* trans_b, const int* m, const int* n,
                                             const int* k, const float* alpha, const float* a, const int* lda,
                                             const float* b, const int* ldb, const float* beta, float* c,
                                             const int* ldc);

namespace ffkern::frontend {
namespace {

/// Row-major C = A B is column-major C^T = B^T A^T.
void blas_gemm(const cpu::Provider& provider, const cpu::Gemm& g) {
  if (g.m == 0 || g.n == 0) return;
  if (g.k == 0) return cpu::own_gemm(provider, g);
  for (int64_t size : {g.m, g.n, g.k, g.lda, g.ldb, g.ldc}) {
    if (size > INT_MAX) {
      refuse("ffkern::gemm: a matrix dimension is " + std::to_string(size) + "; this BLAS takes at most " +
             std::to_string(INT_MAX));
    }
  }
  const int m = static_cast<int>(g.n), n = static_cast<int>(g.m), k = static_cast<int>(g.k);
  const int lda = static_cast<int>(g.ldb), ldb = static_cast<int>(g.lda), ldc = static_cast<int>(g.ldc);
  const float one = 1.0f;
  sgemm_(g.trans_b ? "T" : "N", g.trans_a ? "T" : "N", &m, &n, &k, &one, g.b, &lda, g.a, &ldb, &g.beta, g.c, &ldc);
}

enum class Product { kUnset, kBlas, kOwn };

/// MKL does not use AMD's AVX-512, and is a little slower than the own product with AVX2 (docs/design.md).
Product fastest() {
#if defined(__x86_64__)
  if (__builtin_cpu_is("amd")) return Product::kOwn;
#endif
  return sgemm_ != nullptr ? Product::kBlas : Product::kOwn;
}

std::atomic<Product> chosen{Product::kUnset};

Product product() {
  const Product known = chosen.load(std::memory_order_acquire);
  if (known != Product::kUnset) return known;
  const char* env = std::getenv("FFKERN_GEMM");
  const std::string wanted = env != nullptr ? env : "";
  Product choice = fastest();
  if (wanted == "own") {
    choice = Product::kOwn;
  } else if (wanted == "blas") {
    if (sgemm_ == nullptr) {
      refuse("ffkern::gemm: FFKERN_GEMM is 'blas', but this torch exports no sgemm_; unset it or use 'own'");
    }
    choice = Product::kBlas;
  } else if (!wanted.empty()) {
    refuse("ffkern::gemm: FFKERN_GEMM is '" + wanted + "'; expected 'blas' or 'own'");
  }
  chosen.store(choice, std::memory_order_release);
  return choice;
}

}  // namespace

const char* product_name() { return product() == Product::kBlas ? "blas" : "own"; }

void forget_product() { chosen.store(Product::kUnset, std::memory_order_release); }

/// Asking torch for its thread count also sets up its pool on a Python thread that has not used it yet, so that the
/// BLAS called next obeys torch.set_num_threads there too.
cpu::Provider provider() {
  return {product() == Product::kBlas ? blas_gemm : cpu::own_gemm,
          [](int64_t tasks, void (*fn)(int64_t, void*), void* context) {
            torch::stable::parallel_for(0, tasks, 1, [=](int64_t begin, int64_t end) {
              for (int64_t t = begin; t < end; ++t) fn(t, context);
            });
          },
          static_cast<int>(torch::stable::get_num_threads())};
}

/// Through the operation that ffkern/ops.py defines for it.
bool tf32_allowed() {
  std::array<StableIValue, 1> stack{};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("ffkern::float32_precision", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<std::string>(stack[0]) == "tf32";
}

}  // namespace ffkern::frontend
