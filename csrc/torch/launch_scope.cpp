#include "binding/launch_scope.h"

#include <torch/csrc/stable/accelerator.h>

#include <string>

#include "binding/checks.h"

namespace ffkern {

using torch::stable::Tensor;

namespace {

std::string place(const Tensor& tensor) {
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "another kind of device";
}

}  // namespace

struct LaunchScope::State {
  State(const char* op, int32_t device)
      : op(op), device(device), guard(device), stream(torch::stable::accelerator::getCurrentStream(device)) {}

  const char* op;
  int32_t device;
  torch::stable::accelerator::DeviceGuard guard;
  torch::stable::accelerator::Stream stream;
};

LaunchScope::LaunchScope(const char* op, const char* name, const Tensor& anchor) {
  if (!anchor.is_cuda()) {
    binding::refuse(op, name, " is on ", place(anchor), "; expected CUDA, as other arguments are");
  }
  state_ = std::make_unique<State>(op, anchor.get_device_index());
}

LaunchScope::~LaunchScope() = default;

void LaunchScope::use(const char* name, const Tensor& operand, Access) {
  if (operand.is_cuda() && operand.get_device_index() == state_->device) return;
  binding::refuse(state_->op, name, " is on ", place(operand), "; expected cuda:", state_->device,
                  ", as the first argument is");
}

cuda::Queue LaunchScope::queue() const {
  return {state_->device, static_cast<cuda::Stream>(state_->stream.nativeHandle())};
}

}  // namespace ffkern
