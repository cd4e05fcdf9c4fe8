// Arguments of the CUDA operations: checked, readable in place where they can be, declared to the launch scope.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <optional>

#include "checks.h"
#include "cuda/rows.h"
#include "launch_scope.h"

namespace ffkern::binding {

inline Storage storage_of(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Storage::kFloat32;
    case ScalarType::BFloat16:
      return Storage::kBfloat16;
    case ScalarType::Half:
      return Storage::kFloat16;
    default:
      refuse(op, name, " is ", dtype_text(t.scalar_type()),
             "; expected float32, bfloat16 or float16 (ffkern.reference computes in float64)");
  }
}

inline bool rows_are_contiguous(const Tensor& t) {
  const int64_t inner = t.dim() - 1;
  return inner < 0 || t.size(inner) <= 1 || t.stride(inner) == 1;
}

/// A readable matrix of any storage: the tensor itself when its rows are contiguous, else a copy held here.
struct Matrix {
  Tensor hold;
  const void* data;
  Storage storage;
  int64_t rows, cols, pitch;  // pitch in elements

  Matrix(LaunchScope& scope, const char* op, const char* name, const Tensor& t) : hold(t) {
    storage = storage_of(op, name, t);
    if (t.dim() != 2) refuse(op, name, " has shape ", shape_text(t), "; expected a matrix [rows, columns]");
    if (!rows_are_contiguous(t)) hold = frontend::contiguous(t);
    rows = t.size(0);
    cols = t.size(1);
    pitch = rows > 1 ? hold.stride(0) : cols;
    data = hold.const_data_ptr();
    scope.use(name, hold, Access::kRead);
  }
};

/// A readable float32 vector of known length, or null.
struct Vector {
  std::optional<Tensor> hold;
  const float* data = nullptr;

  Vector() = default;
  Vector(LaunchScope& scope, const char* op, const char* name, const Tensor& t, int64_t length) {
    storage_of(op, name, t);
    check_shape(op, name, t, {length});
    hold = frontend::contiguous(t.scalar_type() == ScalarType::Float ? t : frontend::to(t, ScalarType::Float));
    data = hold->const_data_ptr<float>();
    scope.use(name, *hold, Access::kRead);
  }
  Vector(LaunchScope& scope, const char* op, const char* name, const MaybeTensor& t, int64_t length) {
    if (t.has_value()) *this = Vector(scope, op, name, *t, length);
  }
};

/// int64 labels of any shape, contiguous. Their values stay on the device and are not checked here: a kernel takes a
/// label outside of the classes for one that makes its row NaN.
struct Labels {
  Tensor hold;
  const int64_t* data;

  Labels(LaunchScope& scope, const char* op, const char* name, const Tensor& t) : hold(t) {
    check_dtype(op, name, t, ScalarType::Long);
    hold = frontend::contiguous(t);
    data = hold.const_data_ptr<int64_t>();
    scope.use(name, hold, Access::kRead);
  }
};

/// A tensor that is read and written in place: no copy may stand in for it.
inline void* updated(LaunchScope& scope, const char* op, const char* name, const Tensor& t, ScalarType type,
                     std::initializer_list<int64_t> shape, Access access = Access::kUpdate) {
  check_dtype(op, name, t, type);
  check_shape(op, name, t, shape);
  check_in_place(op, name, t);
  scope.use(name, t, access);
  return t.mutable_data_ptr();
}

inline float* updated(LaunchScope& scope, const char* op, const char* name, const Tensor& t,
                      std::initializer_list<int64_t> shape, Access access = Access::kUpdate) {
  return static_cast<float*>(updated(scope, op, name, t, ScalarType::Float, shape, access));
}

inline float* updated(LaunchScope& scope, const char* op, const char* name, const MaybeTensor& t,
                      std::initializer_list<int64_t> shape, Access access = Access::kUpdate) {
  return t.has_value() ? updated(scope, op, name, *t, shape, access) : nullptr;
}

/// What an operation returns under this name, declared as written before it is read.
inline Tensor output(LaunchScope& scope, const char* name, const Tensor& like, std::initializer_list<int64_t> shape,
                     ScalarType type) {
  const Tensor t = frontend::result(name, like, shape, type);
  scope.use(name, t, Access::kWrite);
  return t;
}

/// The same, or the tensor that is given for it.
inline Tensor output(LaunchScope& scope, const char* name, const MaybeTensor& given, const Tensor& like,
                     std::initializer_list<int64_t> shape, ScalarType type) {
  if (!given.has_value()) return output(scope, name, like, shape, type);
  scope.use(name, *given, Access::kWrite);
  return *given;
}

/// Floats of a workspace of so many bytes, wherever its first aligned byte may be.
inline int64_t floats_for(int64_t bytes) { return bytes / 4 + 64; }

/// Scratch from the frontend's allocator: freed when this goes, and handed out again only to later work on the same
/// stream.
inline Tensor scratch(LaunchScope& scope, const Tensor& like, int64_t bytes) {
  const Tensor t = frontend::scratch(like, {floats_for(bytes)}, ScalarType::Float);
  scope.use("workspace", t, Access::kWrite);
  return t;
}

/// The first byte that the kernels' vector accesses like.
inline void* aligned(const Tensor& workspace) {
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(workspace.mutable_data_ptr()) + 255) / 256 * 256);
}

/// A 0-dim tensor of one dtype, as a pointer to its element on the device.
template <class T>
T* scalar(LaunchScope& scope, const char* op, const char* name, const Tensor& t, ScalarType type, Access access) {
  check_dtype(op, name, t, type);
  if (t.numel() != 1) refuse(op, name, " has shape ", shape_text(t), "; expected a 0-dim tensor");
  scope.use(name, t, access);
  return static_cast<T*>(access == Access::kRead ? const_cast<void*>(t.const_data_ptr()) : t.mutable_data_ptr());
}

/// Optimiser settings and the tensors that it writes.
struct Update {
  cuda::OptimiserArgs args;
  float *weight, *bias, *weight_state, *bias_state = nullptr;

  Update(LaunchScope& scope, const char* op, int64_t units, int64_t inputs, const Tensor& weight_,
         const MaybeTensor& bias_, const Tensor& weight_state_, const Tensor& bias_state_, const Tensor& step,
         const Tensor& lr, const std::string& optimiser, const std::vector<double>& hyper) {
    const OptimiserParams params = parse_hyper(op, optimiser, hyper);
    args = {params.kind,         params.beta1,         params.beta2, params.eps,
            params.weight_decay, params.row_tolerance, nullptr,      nullptr};
    args.lr = scalar<double>(scope, op, "lr", lr, ScalarType::Double, Access::kRead);
    args.step = scalar<int64_t>(scope, op, "step", step, ScalarType::Long, Access::kUpdate);
    const int64_t slots = state_slots(params.kind);
    weight = updated(scope, op, "weight", weight_, {units, inputs});
    bias = updated(scope, op, "bias", bias_, {units});
    weight_state = updated(scope, op, "weight_state", weight_state_, {slots, units, inputs});
    if (bias_.has_value()) bias_state = updated(scope, op, "bias_state", bias_state_, {slots, units});
  }
};

}  // namespace ffkern::binding
