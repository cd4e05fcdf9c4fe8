// Run-time choice of the instruction set, and of what multiplies bfloat16.
#ifdef FFKERN_HAVE_AVX512
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cstdlib>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "gemm_kernels.h"
#include "pair_kernels.h"
#include "row_kernels.h"

namespace ffkern::cpu {
namespace portable {
extern const RowKernels kKernels;
extern const GemmKernels kGemmKernels;
extern const PairKernels kPairKernels;
}  // namespace portable
#ifdef FFKERN_HAVE_AVX2
namespace avx2 {
extern const RowKernels kKernels;
extern const GemmKernels kGemmKernels;
extern const PairKernels kPairKernels;
}  // namespace avx2
#endif
#ifdef FFKERN_HAVE_AVX512
namespace avx512 {
extern const RowKernels kKernels;
extern const GemmKernels kGemmKernels;
extern const PairKernels kPairKernels;
}  // namespace avx512
#endif

#ifdef FFKERN_HAVE_AVX512
namespace avx512_bf16 {
extern const PairKernels kPairKernels;
}
#ifdef FFKERN_HAVE_AMX
namespace amx {
extern const PairKernels kPairKernels;
}
#endif
#endif
namespace amx_emulated {
extern const PairKernels kPairKernels;
}

namespace {

struct Candidate {
  const RowKernels* rows;
  const GemmKernels* products;
  const PairKernels* pairs;  // by float32 multiply-adds
  bool supported;

  const char* name() const { return rows->name; }
};

/// Worst first.
std::span<const Candidate> candidates() {
  static const Candidate list[] = {
      {&portable::kKernels, &portable::kGemmKernels, &portable::kPairKernels, true},
#ifdef FFKERN_HAVE_AVX2
      {&avx2::kKernels, &avx2::kGemmKernels, &avx2::kPairKernels,
       __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
#ifdef FFKERN_HAVE_AVX512
      {&avx512::kKernels, &avx512::kGemmKernels, &avx512::kPairKernels,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl")},
#endif
  };
  return list;
}

template <class Candidates>
std::string supported_names(const Candidates& list) {
  std::string text;
  for (const auto& candidate : list) {
    if (candidate.supported) text += (text.empty() ? "" : ", ") + std::string(candidate.name());
  }
  return text;
}

/// The last candidate that is supported, or the one that the variable names.
template <class Candidates>
const auto& pick(const char* variable, const Candidates& list) {
  const char* wanted = std::getenv(variable);
  const bool any = wanted == nullptr || *wanted == '\0';
  for (size_t i = list.size(); i-- > 0;) {
    if (list[i].supported && (any || std::string(wanted) == list[i].name())) return list[i];
  }
  throw std::runtime_error(std::string(variable) + " is '" + wanted +
                           "', but this build on this processor has: " + supported_names(list));
}

std::atomic<const Candidate*> chosen{nullptr};

const Candidate& current() {
  const Candidate* candidate = chosen.load(std::memory_order_acquire);
  if (candidate == nullptr) {
    candidate = &pick("FFKERN_CPU_ISA", candidates());
    chosen.store(candidate, std::memory_order_release);
  }
  return *candidate;
}

// ---- what multiplies bfloat16

#ifdef FFKERN_HAVE_AVX512

struct CpuId {
  unsigned a = 0, b = 0, c = 0, d = 0;
  CpuId(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

bool has_dot_products() { return CpuId(7, 1).a >> 5 & 1; }

#ifdef FFKERN_HAVE_AMX
/// Linux gives the tiles' memory to a process that asks for it.
bool has_tiles() {
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if ((CpuId(7, 0).d & (kBf16 | kTile)) != (kBf16 | kTile)) return false;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#endif
#endif

struct PairCandidate {
  const PairKernels* pairs;
  bool supported;

  const char* name() const { return pairs->name; }
};

/// Worst first; tiles in software only by name. Those with AVX-512 go with that instruction set.
std::vector<PairCandidate> pair_candidates(const Candidate& isa) {
  std::vector<PairCandidate> list{{&amx_emulated::kPairKernels, true}, {isa.pairs, true}};
#ifdef FFKERN_HAVE_AVX512
  const bool wide = isa.rows == &avx512::kKernels;
  static const bool dots = has_dot_products();
  list.push_back({&avx512_bf16::kPairKernels, wide && dots});
#ifdef FFKERN_HAVE_AMX
  static const bool tiles = has_tiles();
  list.push_back({&amx::kPairKernels, wide && dots && tiles});
#endif
#endif
  return list;
}

std::atomic<const PairKernels*> chosen_pairs{nullptr};

}  // namespace

const RowKernels& row_kernels() { return *current().rows; }
const GemmKernels& gemm_kernels() { return *current().products; }

const PairKernels& pair_kernels() {
  const PairKernels* pairs = chosen_pairs.load(std::memory_order_acquire);
  if (pairs == nullptr) {
    pairs = pick("FFKERN_BF16", pair_candidates(current())).pairs;
    chosen_pairs.store(pairs, std::memory_order_release);
  }
  return *pairs;
}

void reset_isa() {
  chosen.store(nullptr, std::memory_order_release);
  chosen_pairs.store(nullptr, std::memory_order_release);
}

const char* supported_isas() {
  static const std::string names = supported_names(candidates());
  return names.c_str();
}

const char* supported_bf16() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> of_each;
    for (const Candidate& isa : candidates()) of_each.push_back(supported_names(pair_candidates(isa)));
    return of_each;
  }();
  return names[&current() - candidates().data()].c_str();
}

}  // namespace ffkern::cpu
