// Run-time choice of the instruction set.
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "gemm_kernels.h"
#include "row_kernels.h"

namespace ffkern::cpu {
namespace portable {
extern const RowKernels kKernels;
extern const GemmKernels kGemmKernels;
}  // namespace portable
#ifdef FFKERN_HAVE_AVX2
namespace avx2 {
extern const RowKernels kKernels;
extern const GemmKernels kGemmKernels;
}  // namespace avx2
#endif
#ifdef FFKERN_HAVE_AVX512
namespace avx512 {
extern const RowKernels kKernels;
extern const GemmKernels kGemmKernels;
}  // namespace avx512
#endif

namespace {

struct Candidate {
  const RowKernels* rows;
  const GemmKernels* products;
  bool supported;
};

/// Worst first.
const Candidate* candidates(int& count) {
  static const Candidate list[] = {
      {&portable::kKernels, &portable::kGemmKernels, true},
#ifdef FFKERN_HAVE_AVX2
      {&avx2::kKernels, &avx2::kGemmKernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
#ifdef FFKERN_HAVE_AVX512
      {&avx512::kKernels, &avx512::kGemmKernels,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl")},
#endif
  };
  count = static_cast<int>(sizeof(list) / sizeof(list[0]));
  return list;
}

const Candidate* choose() {
  int count = 0;
  const Candidate* list = candidates(count);
  const char* wanted = std::getenv("FFKERN_CPU_ISA");
  const bool any = wanted == nullptr || *wanted == '\0';
  for (int i = count - 1; i >= 0; --i) {
    if (list[i].supported && (any || std::string(wanted) == list[i].rows->name)) return &list[i];
  }
  throw std::runtime_error("FFKERN_CPU_ISA is '" + std::string(wanted) +
                           "', but this build on this processor has: " + supported_isas());
}

std::atomic<const Candidate*> chosen{nullptr};

const Candidate& current() {
  const Candidate* candidate = chosen.load(std::memory_order_acquire);
  if (candidate == nullptr) {
    candidate = choose();
    chosen.store(candidate, std::memory_order_release);
  }
  return *candidate;
}

}  // namespace

const RowKernels& row_kernels() { return *current().rows; }
const GemmKernels& gemm_kernels() { return *current().products; }

void reset_isa() { chosen.store(nullptr, std::memory_order_release); }

const char* supported_isas() {
  static const std::string names = [] {
    std::string text;
    int count = 0;
    const Candidate* list = candidates(count);
    for (int i = 0; i < count; ++i) {
      if (list[i].supported) text += (text.empty() ? "" : ", ") + std::string(list[i].rows->name);
    }
    return text;
  }();
  return names.c_str();
}

}  // namespace ffkern::cpu
