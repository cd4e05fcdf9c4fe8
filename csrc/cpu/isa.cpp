// Run-time choice of the instruction set.
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "row_kernels.h"

namespace ffkern::cpu {
namespace portable {
extern const RowKernels kKernels;
}
#ifdef FFKERN_HAVE_AVX2
namespace avx2 {
extern const RowKernels kKernels;
}
#endif
#ifdef FFKERN_HAVE_AVX512
namespace avx512 {
extern const RowKernels kKernels;
}
#endif

namespace {

struct Candidate {
  const RowKernels* kernels;
  bool supported;
};

/// Worst first.
const Candidate* candidates(int& count) {
  static const Candidate list[] = {
      {&portable::kKernels, true},
#ifdef FFKERN_HAVE_AVX2
      {&avx2::kKernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
#ifdef FFKERN_HAVE_AVX512
      {&avx512::kKernels, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")},
#endif
  };
  count = static_cast<int>(sizeof(list) / sizeof(list[0]));
  return list;
}

const RowKernels* choose() {
  int count = 0;
  const Candidate* list = candidates(count);
  const char* wanted = std::getenv("FFKERN_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    const RowKernels* best = nullptr;
    for (int i = 0; i < count; ++i) {
      if (list[i].supported) best = list[i].kernels;
    }
    return best;
  }
  for (int i = 0; i < count; ++i) {
    if (list[i].supported && std::string(wanted) == list[i].kernels->name) return list[i].kernels;
  }
  throw std::runtime_error("FFKERN_CPU_ISA is '" + std::string(wanted) + "', but this build on this processor has: " +
                           supported_isas());
}

std::atomic<const RowKernels*> chosen{nullptr};

}  // namespace

const RowKernels& row_kernels() {
  const RowKernels* kernels = chosen.load(std::memory_order_acquire);
  if (kernels == nullptr) {
    kernels = choose();
    chosen.store(kernels, std::memory_order_release);
  }
  return *kernels;
}

void reset_isa() { chosen.store(nullptr, std::memory_order_release); }

const char* supported_isas() {
  static const std::string names = [] {
    std::string text;
    int count = 0;
    const Candidate* list = candidates(count);
    for (int i = 0; i < count; ++i) {
      if (list[i].supported) text += (text.empty() ? "" : ", ") + std::string(list[i].kernels->name);
    }
    return text;
  }();
  return names.c_str();
}

}  // namespace ffkern::cpu
