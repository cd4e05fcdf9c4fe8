// The extension module behind ffkern/arrays.py, which documents what is here.
#include <tuple>

#include "binding/checks.h"
#include "binding/operations.h"
#include "core/build.h"
#include "cpu/row_kernels.h"
#include "cpu/threads.h"
#include "frontend.h"

namespace ffkern::frontend {
namespace {

/// Bytes that an array reaches over, [first, last).
std::pair<const char*, const char*> reach(const Tensor& t) {
  const char* first = static_cast<const char*>(t.const_data_ptr());
  const char* last = first;
  if (t.numel() == 0) return {first, first};
  for (int64_t d = 0; d < t.dim(); ++d) {
    const int64_t span = (t.size(d) - 1) * t.stride(d) * static_cast<int64_t>(t.element_size());
    (span < 0 ? first : last) += span;
  }
  return {first, last + t.element_size()};
}

bool overlap(const Tensor& a, const Tensor& b) {
  const auto [first_a, last_a] = reach(a);
  const auto [first_b, last_b] = reach(b);
  return a.is_cpu() == b.is_cpu() && first_a < last_b && first_b < last_a;
}

/// Index of the first of `written` that may share memory with one of `read` or with one of `written` before it; -1 if
/// none does.
int overlapping(const std::vector<Tensor>& written, const std::vector<Tensor>& read) {
  for (size_t w = 0; w < written.size(); ++w) {
    for (const Tensor& r : read) {
      if (overlap(written[w], r)) return static_cast<int>(w);
    }
    for (size_t before = 0; before < w; ++before) {
      if (overlap(written[w], written[before])) return static_cast<int>(w);
    }
  }
  return -1;
}

/// Dtype, shape, C order, writable.
std::tuple<std::string, std::vector<int64_t>, bool, bool> layout(const Tensor& t) {
  return {binding::dtype_text(t.scalar_type()), t.view().shape, t.is_contiguous(), writable(t)};
}

}  // namespace
}  // namespace ffkern::frontend

PYBIND11_MODULE(FFKERN_MODULE, module) {
  namespace frontend = ffkern::frontend;
  namespace py = pybind11;
  py::module_ cpu = module.def_submodule("cpu");
  ffkern::binding::implement_cpu(cpu);
#ifdef FFKERN_HAVE_CUDA
  py::module_ cuda = module.def_submodule("cuda");
  ffkern::binding::implement_cuda(cuda);
#endif
  module.def("is_cuda", [](const frontend::Tensor& array) { return array.is_cuda(); });
  module.def("overlapping", &frontend::overlapping);
  module.def("layout", &frontend::layout);
  module.def("put_out", &frontend::put_out);
  module.attr("MOST_THREADS") = ffkern::cpu::kMostThreads;
  module.def("threads", &frontend::threads);
  module.def("set_threads", &frontend::set_threads);
  module.def("cpu_path", [] { return py::make_tuple(ffkern::cpu::row_kernels().name, ffkern::cpu::supported_isas()); });
  module.def("reset_isa", &ffkern::cpu::reset_isa);
  module.def("build_info", &ffkern_build_info);
}
