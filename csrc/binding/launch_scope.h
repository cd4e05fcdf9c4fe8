// Where an operation on tensors launches its kernels. Each frontend defines it (launch_scope.cpp beside its
// frontend.h): the device and its current stream. Nothing else in the launch path depends on where the tensors live.
#pragma once
#include <memory>

#include "cuda/module.h"
#include "frontend.h"

namespace ffkern {

enum class Access {
  kRead,
  kWrite,   // written before it is read, if it is read at all
  kUpdate,  // read and written
};

/// Opened by an operation before it allocates or launches anything; closed when it returns.
class LaunchScope {
 public:
  /// Makes the device of `anchor` current. `op` and `name`, literals, are for messages.
  LaunchScope(const char* op, const char* name, const frontend::Tensor& anchor);
  ~LaunchScope();
  LaunchScope(const LaunchScope&) = delete;
  LaunchScope& operator=(const LaunchScope&) = delete;

  /// Declares that kernels of this scope read or write `operand`; refuses one on another device
  /// than the anchor's. Every tensor whose memory a kernel touches is declared.
  void use(const char* name, const frontend::Tensor& operand, Access access);

  /// The device and the stream to launch on.
  cuda::Queue queue() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ffkern
