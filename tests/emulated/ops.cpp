// The CUDA operations for CPU tensors: the shipped launch path (csrc/torch/cuda_ops.cpp, csrc/cuda)
// with another LaunchScope, which makes the memory of CPU tensors addressable by the software
// driver while an operation runs. Registered as ffkern_emulated::*, so that nothing of ffkern
// itself changes.
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "cuda/driver.h"
#include "torch/cuda_ops.h"
#include "torch/launch_scope.h"

namespace ffkern {

using torch::stable::Tensor;

namespace {

/// A function that only the software driver exports.
template <class Function>
Function* software_driver(const char* name) {
  void* function = dlsym(cuda::driver().handle, name);
  STD_TORCH_CHECK(function, "the loaded CUDA driver is not the software driver: it has no ", name);
  return reinterpret_cast<Function*>(function);
}

/// Bytes from the first element of a tensor to the end of its last.
size_t span(const Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  int64_t last = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
  return static_cast<size_t>(last + 1) * tensor.element_size();
}

/// Adds to a failed driver call what the emulator saw: kernel, PTX line, block and thread.
template <class Body>
auto with_details(Body&& body) {
  try {
    return body();
  } catch (const cuda::Error& error) {
    throw cuda::Error(error.code,
                      std::string(error.what()) + "\n" + software_driver<const char*()>("ptxsim_last_error")());
  }
}

}  // namespace

struct LaunchScope::State {
  std::vector<void*> registered;
};

LaunchScope::LaunchScope(const char*, const char*, const Tensor&) : state_(std::make_unique<State>()) {}

LaunchScope::~LaunchScope() {
  for (void* memory : state_->registered) software_driver<int(void*)>("ptxsim_unregister")(memory);
}

void LaunchScope::use(const char* name, const Tensor& operand, Access access) {
  const size_t bytes = span(operand);
  if (bytes == 0) return;
  constexpr unsigned kReadOnly = 1, kNeverWritten = 2;
  void* memory = const_cast<void*>(operand.const_data_ptr());
  cuda::check(software_driver<int(void*, size_t, unsigned, const char*)>("ptxsim_register_named")(
                  memory, bytes, access == Access::kRead ? kReadOnly : kNeverWritten, name),
              "ptxsim_register");
  state_->registered.push_back(memory);
}

cuda::Device LaunchScope::device() const { return 0; }
cuda::Stream LaunchScope::stream() const { return nullptr; }

namespace {

auto layer_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   const std::optional<Tensor>& x_norm, const std::string& norm, double eps,
                   const std::string& goodness) {
  return with_details([&] { return cuda_ops::layer_forward(x, weight, bias, x_norm, norm, eps, goodness); });
}

void layer_forward_(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                    const std::optional<Tensor>& x_norm, const Tensor& h, const Tensor& goodness, const Tensor& scale,
                    const Tensor& h_norm, const std::string& norm, double eps, const std::string& kind) {
  with_details([&] { cuda_ops::layer_forward_(x, weight, bias, x_norm, h, goodness, scale, h_norm, norm, eps, kind); });
}

}  // namespace
}  // namespace ffkern

STABLE_TORCH_LIBRARY(ffkern_emulated, m) {
  m.def(
      "layer_forward(Tensor x, Tensor weight, Tensor? bias, Tensor? x_norm, str norm, float eps, "
      "str goodness) -> "
      "(Tensor h, Tensor goodness, Tensor scale, Tensor h_norm)");
  m.def(
      "layer_forward_(Tensor x, Tensor weight, Tensor? bias, Tensor? x_norm, Tensor(a!) h, "
      "Tensor(b!) goodness, "
      "Tensor(c!) scale, Tensor(d!) h_norm, str norm, float eps, str goodness_kind) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ffkern_emulated, CPU, m) {
  m.impl("layer_forward", TORCH_BOX(&ffkern::layer_forward));
  m.impl("layer_forward_", TORCH_BOX(&ffkern::layer_forward_));
}
