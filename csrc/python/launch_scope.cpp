// Operations on GPU arrays run on CuPy's current stream, or, for arrays of other libraries, on the stream that the
// first argument names, else the legacy default stream. Arguments that belong to other streams are waited for, on the
// device, and work that those streams get afterwards waits for the operation: no argument is read before it is there,
// nor overwritten or freed while it is in use.
#include "binding/launch_scope.h"

#include <algorithm>
#include <string>
#include <vector>

#include "binding/checks.h"

namespace ffkern {
namespace {

namespace py = pybind11;
using frontend::Tensor;

uintptr_t launch_stream(const Tensor& anchor) {
  if (frontend::package_of(anchor.view().object) != "cupy") return anchor.view().stream.value_or(0);
  const auto stream = py::module_::import("cupy").attr("cuda").attr("get_current_stream")();
  return frontend::plain_stream(stream.attr("ptr").cast<uintptr_t>());
}

std::string place(const Tensor& t) { return t.is_cuda() ? "cuda:" + std::to_string(t.get_device_index()) : "the CPU"; }

/// What is queued on `after` from now on waits for what is on `before`.
void order(cuda::Stream before, cuda::Stream after) {
  const cuda::Driver& driver = cuda::driver();
  cuda::Event event = nullptr;
  cuda::check(driver.event_create(&event, cuda::kEventDisableTiming), "cuEventCreate");
  const cuda::Result recorded = driver.event_record(event, before);
  const cuda::Result waits = recorded == cuda::kSuccess ? driver.stream_wait_event(after, event, 0) : recorded;
  driver.event_destroy(event);  // the driver keeps it until the wait is over
  cuda::check(recorded, "cuEventRecord");
  cuda::check(waits, "cuStreamWaitEvent");
}

}  // namespace

struct LaunchScope::State {
  const char* op;
  cuda::Queue queue;
  cuda::ContextGuard context;
  std::vector<cuda::Stream> others;
};

LaunchScope::LaunchScope(const char* op, const char* name, const Tensor& anchor) {
  if (!anchor.is_cuda()) binding::refuse(op, name, " is on ", place(anchor), "; expected CUDA, as other arguments are");
  const int device = anchor.get_device_index();
  state_.reset(
      new State{op, {device, reinterpret_cast<cuda::Stream>(launch_stream(anchor))}, cuda::ContextGuard(device), {}});
}

LaunchScope::~LaunchScope() {
  for (const cuda::Stream other : state_->others) {
    try {
      order(state_->queue.stream, other);
    } catch (const std::exception&) {  // the context is broken; the next call says so
    }
  }
}

void LaunchScope::use(const char* name, const Tensor& operand, Access) {
  State& state = *state_;
  if (!operand.is_cuda() || (operand.get_device_index() != state.queue.device && operand.numel() > 0)) {
    binding::refuse(state.op, name, " is on ", place(operand), "; expected cuda:", state.queue.device,
                    ", as the first argument is");
  }
  if (!operand.view().stream.has_value()) return;  // ready, says its owner
  const auto stream = reinterpret_cast<cuda::Stream>(*operand.view().stream);
  if (stream == state.queue.stream) return;
  // For every argument again: a copy of this one may be on its stream only since the last.
  order(stream, state.queue.stream);
  if (std::find(state.others.begin(), state.others.end(), stream) == state.others.end()) state.others.push_back(stream);
}

cuda::Queue LaunchScope::queue() const { return state_->queue; }

}  // namespace ffkern
