// The CUDA operations for CPU tensors: the shipped launch path (csrc/binding/cuda_*.cpp, csrc/cuda) with another
// LaunchScope, which makes the memory of CPU tensors addressable by the software driver while an operation runs.
// Registered as ffkern_emulated::*, whose schemas tests/emulated/__init__.py copies from ffkern, so that nothing of
// ffkern itself changes.
#include <dlfcn.h>

#include <mutex>
#include <vector>

#include "binding/launch_scope.h"
#include "binding/operations.h"

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

/// Device and stream that operations launch on, and whether memory stays registered after them, for graphs to come:
/// set by the tests, from one thread.
cuda::Queue current = {1, nullptr};  // sm_80
bool hold = false;
std::vector<std::pair<void*, Tensor>> held;

void unregister(void* memory) { software_driver<int(void*)>("ptxsim_unregister")(memory); }

}  // namespace

struct LaunchScope::State {
  std::vector<std::pair<void*, Tensor>> registered;
};

LaunchScope::LaunchScope(const char*, const char*, const Tensor&) : state_(std::make_unique<State>()) {}

LaunchScope::~LaunchScope() {
  for (auto& [memory, tensor] : state_->registered) {
    if (hold) {
      held.emplace_back(memory, tensor);
    } else {
      unregister(memory);
    }
  }
}

void LaunchScope::use(const char* name, const Tensor& operand, Access access) {
  const size_t bytes = span(operand);
  if (bytes == 0) return;
  constexpr unsigned kReadOnly = 1, kNeverWritten = 2;
  // A replay finds what the graph before it has written, so while memory is held nothing counts as unwritten.
  const unsigned flags = hold || access == Access::kUpdate ? 0 : access == Access::kRead ? kReadOnly : kNeverWritten;
  void* memory = const_cast<void*>(operand.const_data_ptr());
  cuda::check(
      software_driver<int(void*, size_t, unsigned, const char*)>("ptxsim_register_named")(memory, bytes, flags, name),
      "ptxsim_register");
  state_->registered.emplace_back(memory, operand);
}

cuda::Queue LaunchScope::queue() const { return current; }

}  // namespace ffkern

/// For the tests: where the launches to come go, and whether they hold on to their memory.
extern "C" __attribute__((visibility("default"))) void ffkern_emulated_select(int device, void* stream, int hold) {
  ffkern::current = {device, static_cast<ffkern::cuda::Stream>(stream)};
  ffkern::hold = hold != 0;
  if (hold) return;
  for (auto& [memory, tensor] : ffkern::held) ffkern::unregister(memory);
  ffkern::held.clear();
}

STABLE_TORCH_LIBRARY_IMPL(ffkern_emulated, CPU, m) { ffkern::binding::implement_cuda(m); }
