// Gives the operations to torch's dispatcher. Their schemas are in ffkern/ops.py.
#include "binding/operations.h"
#include "cpu/pair_kernels.h"
#include "cpu/row_kernels.h"

namespace ffkern {
namespace {

std::string cpu_path() {
  return std::string(cpu::row_kernels().name) + ";" + cpu::supported_isas() + ";" + frontend::product_name() + ";" +
         cpu::pair_kernels().name + ";" + cpu::supported_bf16();
}

/// Reads FFKERN_CPU_ISA and FFKERN_GEMM again.
std::string reset_cpu_path() {
  cpu::reset_isa();
  frontend::forget_product();
  return cpu_path();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ffkern, CPU, m) { binding::implement_cpu(m); }

STABLE_TORCH_LIBRARY_IMPL(ffkern, CompositeExplicitAutograd, m) {
  FFKERN_IMPLEMENT(m, cpu_path);
  FFKERN_IMPLEMENT(m, reset_cpu_path);
}

#ifdef FFKERN_HAVE_CUDA
STABLE_TORCH_LIBRARY_IMPL(ffkern, CUDA, m) { binding::implement_cuda(m); }
#endif

}  // namespace ffkern
