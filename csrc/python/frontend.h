// NumPy, CuPy and arrays like theirs as the frontend of the operations in csrc/binding. csrc/torch/frontend.h is the
// other one; both offer the same names.
//
// An array is read and written where it lies. It comes in through `__cuda_array_interface__` (GPU), the buffer protocol
// (CPU) or DLPack (either), the first that it has. New arrays are made by NumPy on the CPU, and on a GPU by the library
// that the array at hand belongs to.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/provider.h"

namespace ffkern::frontend {

namespace py = pybind11;

enum class ScalarType { Float, Double, Half, BFloat16, Long, Int, Short, Char, Byte, Bool, Other };

/// A view of an array that keeps the array alive.
class Tensor {
 public:
  /// A device pointer is ready for use once the work that this stream holds so far is done.
  struct View {
    py::object object;
    std::shared_ptr<void> lease;  // what the array was borrowed by: a buffer, or a DLPack tensor
    void* data = nullptr;
    ScalarType type = ScalarType::Other;
    int64_t element_size = 1;
    std::vector<int64_t> shape, strides;  // in elements
    bool read_only = false;
    bool part = false;  // of the object's memory
    bool cuda = false;
    int device = 0;
    std::optional<uintptr_t> stream;
  };

  Tensor() = default;
  explicit Tensor(std::shared_ptr<const View> view) : view_(std::move(view)) {}
  /// Borrows an array. Throws py::type_error if it is none, std::invalid_argument if it cannot be used as it is.
  static Tensor of(py::handle object);

  int64_t dim() const { return static_cast<int64_t>(view_->shape.size()); }
  int64_t size(int64_t d) const { return view_->shape[static_cast<size_t>(d)]; }
  int64_t stride(int64_t d) const { return view_->strides[static_cast<size_t>(d)]; }
  int64_t numel() const;
  size_t element_size() const { return static_cast<size_t>(view_->element_size); }
  ScalarType scalar_type() const { return view_->type; }
  bool is_contiguous() const;
  bool is_cpu() const { return !view_->cuda; }
  bool is_cuda() const { return view_->cuda; }
  int get_device_index() const { return view_->device; }

  const void* const_data_ptr() const { return view_->data; }
  void* mutable_data_ptr() const { return view_->data; }
  template <class T>
  const T* const_data_ptr() const {
    return static_cast<const T*>(view_->data);
  }
  template <class T>
  T* mutable_data_ptr() const {
    return static_cast<T*>(view_->data);
  }

  const View& view() const { return *view_; }

 private:
  std::shared_ptr<const View> view_;
};

using MaybeTensor = std::optional<Tensor>;

/// The package that an object's type comes from: "numpy", "cupy".
std::string package_of(py::handle object);
/// 0 and 1 both name the legacy default stream.
inline uintptr_t plain_stream(uintptr_t stream) { return stream == 1 ? 0 : stream; }

/// An operation's name in messages: that of the function, which has no underscore behind it.
inline std::string full_name(std::string op) {
  if (op.back() == '_') op.pop_back();
  return "ffkern.arrays." + op;
}

/// ValueError in Python.
[[noreturn]] inline void refuse(const std::string& text) { throw std::invalid_argument(text); }

/// Elements of a contiguous array from `begin` on, in this shape: the same memory, which lives as long.
Tensor part(const Tensor& whole, int64_t begin, std::initializer_list<int64_t> shape);

Tensor to(const Tensor&, ScalarType);
Tensor contiguous(const Tensor&);
void copy(const Tensor& into, const Tensor& from);
inline bool writable(const Tensor& t) { return !t.view().read_only; }

/// What an operation returns under this name: the array that the caller has put out for it, or a new one.
Tensor result(const char* name, const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type);
Tensor scratch(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type);
/// Puts out arrays by name for the results of the operations to come on this thread; None takes them back. The
/// caller keeps the dictionary alive.
void put_out(py::object arrays);

/// The own product on the own threads. NumPy's BLAS measured slower (docs/arrays.md).
cpu::Provider provider();
int threads();
void set_threads(int count);  // 1 to cpu::kMostThreads

/// Runs kernels on the CPU while other Python threads run; nothing in `work` may touch a Python object.
template <class Work>
void compute(const Work& work) {
  const py::gil_scoped_release unlocked;
  work();
}

inline bool tf32_allowed() { return false; }  // CuPy has no such setting of its own arrays; FFKERN_CUDA_FLOAT32 decides

using Library = py::module_;
#define FFKERN_IMPLEMENT(library, name) (library).def(#name, &name)

}  // namespace ffkern::frontend

namespace pybind11::detail {

template <>
struct type_caster<ffkern::frontend::Tensor> {
  PYBIND11_TYPE_CASTER(ffkern::frontend::Tensor, const_name("array"));

  bool load(handle object, bool) {
    value = ffkern::frontend::Tensor::of(object);
    return true;
  }
  static handle cast(const ffkern::frontend::Tensor& t, return_value_policy, handle) {
    return t.view().object.inc_ref();
  }
};

}  // namespace pybind11::detail
