// torch as the frontend of the operations in csrc/binding: its tensors, allocator, BLAS and threads.
// csrc/python/frontend.h is the other one; both offer the same names.
//
// Only torch's stable C++ ABI is used, so one build loads in every torch from 2.13 on.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/provider.h"

namespace ffkern::frontend {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

/// An operation's name in messages.
inline std::string full_name(const char* op) { return std::string("ffkern::") + op; }

[[noreturn]] inline void refuse(const std::string& text) { throw std::runtime_error(text); }

/// A tensor of another dtype; contiguous() copies only what is not.
inline Tensor to(const Tensor& t, ScalarType type) { return torch::stable::to(t, type); }
inline Tensor contiguous(const Tensor& t) { return torch::stable::contiguous(t); }
inline void copy(const Tensor& into, const Tensor& from) { torch::stable::copy_(*const_cast<Tensor*>(&into), from); }
inline bool writable(const Tensor&) { return true; }

/// Elements of a contiguous tensor from `begin` on, in this shape: the same memory, which lives as long.
inline Tensor part(const Tensor& whole, int64_t begin, std::initializer_list<int64_t> shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t d = shape.size(); d-- > 1;) strides[d - 1] = strides[d] * shape.begin()[d];
  char* data = static_cast<char*>(whole.mutable_data_ptr()) + begin * static_cast<int64_t>(whole.element_size());
  return torch::stable::from_blob(data, shape, strides, whole.device(), whole.scalar_type(), [whole](void*) {});
}

/// A new tensor on the device of `like`: what an operation returns under this name, or memory for its own use.
inline Tensor result(const char*, const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}
inline Tensor scratch(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}

/// torch's BLAS or the own product, whichever is faster on this processor ($FFKERN_GEMM forces one), and torch's
/// threads.
cpu::Provider provider();
/// "blas" or "own"; forget_product() reads $FFKERN_GEMM again.
const char* product_name();
void forget_product();

/// Runs kernels on the CPU; nothing in `work` may touch the frontend's objects.
template <class Work>
void compute(const Work& work) {
  work();  // torch has let go of Python's lock already
}

/// Whether float32 products on CUDA may round their operands to tf32: torch.backends.cuda.matmul.fp32_precision.
bool tf32_allowed();

using Library = torch::stable::detail::StableLibrary;
#define FFKERN_IMPLEMENT(library, name) (library).impl(#name, TORCH_BOX(&name))

}  // namespace ffkern::frontend
