#include "launch_scope.h"

#include <torch/csrc/stable/accelerator.h>

#include <string>

#include "checks.h"

namespace ffkern {

using torch::stable::Tensor;

struct LaunchScope::State {
  explicit State(int32_t device)
      : device(device),
        guard(device),
        stream(torch::stable::accelerator::getCurrentStream(device)) {}

  int32_t device;
  torch::stable::accelerator::DeviceGuard guard;
  torch::stable::accelerator::Stream stream;
};

LaunchScope::LaunchScope(const Tensor& anchor)
    : state_(std::make_unique<State>(anchor.get_device_index())) {}

LaunchScope::~LaunchScope() = default;

void LaunchScope::use(const char* op, const char* name, const Tensor& operand, Access) {
  if (operand.is_cuda() && operand.get_device_index() == state_->device) return;
  const auto place = operand.is_cuda() ? "cuda:" + std::to_string(operand.get_device_index())
                                       : std::string("another kind of device");
  binding::refuse(op, name, " is on ", place, "; expected cuda:", state_->device,
                  ", as the first argument is");
}

cuda::Device LaunchScope::device() const { return state_->device; }

cuda::Stream LaunchScope::stream() const {
  return static_cast<cuda::Stream>(state_->stream.nativeHandle());
}

}  // namespace ffkern
