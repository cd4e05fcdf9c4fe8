#include "frontend.h"

#include <pybind11/numpy.h>

#include <atomic>
#include <cstring>
#include <sstream>

#include "binding/checks.h"
#include "cpu/threads.h"
#ifdef FFKERN_HAVE_CUDA
#include "cuda/driver.h"
#endif

namespace ffkern::frontend {

std::string package_of(py::handle object) {
  const std::string module = py::str(py::type::handle_of(object).attr("__module__"));
  return module.substr(0, module.find('.'));
}

namespace {

using binding::dtype_text;
using binding::shape_text;
using View = Tensor::View;

struct DType {
  ScalarType type;
  char kind;  // as in NumPy's type strings: f i u b
  int64_t bytes;
};
constexpr DType kTypes[] = {{ScalarType::Float, 'f', 4},   {ScalarType::Double, 'f', 8}, {ScalarType::Half, 'f', 2},
                            {ScalarType::Long, 'i', 8},    {ScalarType::Int, 'i', 4},    {ScalarType::Short, 'i', 2},
                            {ScalarType::Char, 'i', 1},    {ScalarType::Byte, 'u', 1},   {ScalarType::Bool, 'b', 1},
                            {ScalarType::BFloat16, 'B', 2}};

ScalarType type_of(char kind, int64_t bytes) {
  for (const DType& t : kTypes) {
    if (t.kind == kind && t.bytes == bytes) return t.type;
  }
  return ScalarType::Other;
}

std::string type_name(py::handle object) { return py::str(py::type::handle_of(object).attr("__name__")); }

std::vector<int64_t> dense_strides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t step = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = step;
    step *= shape[d] > 1 ? shape[d] : 1;
  }
  return strides;
}

/// Before anything is divided by it.
void check_element_size(int64_t bytes) {
  if (bytes < 1)
    refuse("ffkern.arrays: an array has elements of " + std::to_string(bytes) + " bytes; expected numbers");
}

/// Strides in elements; the kernels cannot address a part of one. No step is ever taken along a dimension of size 1.
std::vector<int64_t> element_strides(const std::vector<int64_t>& bytes, const View& view) {
  check_element_size(view.element_size);
  if (bytes.size() != view.shape.size()) {
    refuse("ffkern.arrays: an array has " + std::to_string(view.shape.size()) + " dimensions and " +
           std::to_string(bytes.size()) + " strides");
  }
  std::vector<int64_t> strides;
  for (size_t d = 0; d < bytes.size(); ++d) {
    if (view.shape[d] > 1 && bytes[d] % view.element_size != 0) {
      refuse("ffkern.arrays: an array has a stride of " + std::to_string(bytes[d]) +
             " bytes; expected a multiple of its " + std::to_string(view.element_size) +
             "-byte elements (a field of a structured array? copy it first)");
    }
    strides.push_back(bytes[d] / view.element_size);
  }
  return strides;
}

void check_alignment(const View& view) {
  check_element_size(view.element_size);
  if (reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(view.element_size) != 0) {
    refuse("ffkern.arrays: an array is not aligned to its elements; copy it first");
  }
}

// ---------------------------------------------------------------- buffer protocol

std::shared_ptr<View> from_buffer(py::handle object) {
  auto view = std::make_shared<View>();
  const auto info = std::make_shared<py::buffer_info>(py::reinterpret_borrow<py::buffer>(object).request());
  view->object = py::reinterpret_borrow<py::object>(object);
  view->lease = info;
  view->data = info->ptr;
  view->element_size = info->itemsize;
  view->read_only = info->readonly;
  view->shape.assign(info->shape.begin(), info->shape.end());
  view->strides = element_strides({info->strides.begin(), info->strides.end()}, *view);
  const std::string format = info->format.substr(info->format.find_first_not_of("@=<") == 1 ? 1 : 0);
  if (format.size() == 1) {  // more: a structure, or another byte order
    const char c = format[0];
    const char kind = std::strchr("fde", c)     ? 'f'
                      : std::strchr("bhilq", c) ? 'i'
                      : c == 'B'                ? 'u'
                      : c == '?'                ? 'b'
                                                : ' ';
    view->type = type_of(kind, info->itemsize);
  }
  return view;
}

// ---------------------------------------------------------------- CUDA array interface

#ifdef FFKERN_HAVE_CUDA

/// The device that an array's memory is on; one without memory says it itself, if it can.
int device_of(py::handle object, const void* data) {
  if (data == nullptr) {
    if (!py::hasattr(object, "__dlpack_device__")) return 0;
    return object.attr("__dlpack_device__")().cast<py::tuple>()[1].cast<int>();
  }
  const cuda::Driver& driver = cuda::driver();
  int device = 0;
  cuda::check(driver.pointer_get_attribute(&device, cuda::kPointerDevice, reinterpret_cast<uintptr_t>(data)),
              "cuPointerGetAttribute");
  return device;
}

/// https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html, version 3.
std::shared_ptr<View> from_cuda_array(py::handle object, const py::dict& facts) {
  auto view = std::make_shared<View>();
  view->object = py::reinterpret_borrow<py::object>(object);
  view->cuda = true;
  view->shape = facts["shape"].cast<std::vector<int64_t>>();
  const auto type = facts["typestr"].cast<std::string>();
  if (type.size() < 3) refuse("ffkern.arrays: __cuda_array_interface__ has the typestr '" + type + "'");
  view->element_size = std::stoll(type.substr(2));
  if (type[0] != '>') view->type = type_of(type[1], view->element_size);
  const auto data = facts["data"].cast<std::pair<uintptr_t, bool>>();
  view->data = reinterpret_cast<void*>(data.first);
  view->read_only = data.second;
  if (facts.contains("mask") && !facts["mask"].is_none()) refuse("ffkern.arrays: masked arrays are not supported");
  view->strides = facts.contains("strides") && !facts["strides"].is_none()
                      ? element_strides(facts["strides"].cast<std::vector<int64_t>>(), *view)
                      : dense_strides(view->shape);
  if (facts.contains("stream") && !facts["stream"].is_none()) {
    view->stream = plain_stream(facts["stream"].cast<uintptr_t>());
  }
  view->device = device_of(object, view->data);
  return view;
}

#else

[[noreturn]] void refuse_cuda() {
  refuse("ffkern.arrays: an array is on a GPU, but this build has no CUDA kernels (FFKERN_CUDA=1 builds them)");
}

#endif

// ---------------------------------------------------------------- DLPack

// The structures of dlpack.h, version 0, which every producer offers.
struct DlTensor {
  void* data;
  int32_t device_type, device;
  int32_t dim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct DlManaged {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManaged*);
};
constexpr int kDlCpu = 1, kDlCuda = 2, kDlCudaHost = 3, kDlCudaManaged = 13;
constexpr uint8_t kDlCodes[] = {'i', 'u', 'f', ' ', 'B', ' ', 'b'};  // kind by DLDataTypeCode

std::shared_ptr<View> from_dlpack(py::handle object) {
  const int kind = object.attr("__dlpack_device__")().cast<py::tuple>()[0].cast<int>();
  const bool cuda = kind == kDlCuda || kind == kDlCudaManaged;
  if (!cuda && kind != kDlCpu && kind != kDlCudaHost) {
    refuse("ffkern.arrays: a " + type_name(object) + " is on DLPack's device type " + std::to_string(kind) +
           "; expected the CPU or CUDA");
  }
#ifndef FFKERN_HAVE_CUDA
  if (cuda) refuse_cuda();
#endif
  // Asked to make the data ready on the legacy default stream, whatever stream it is on.
  const py::object capsule = cuda ? object.attr("__dlpack__")(py::arg("stream") = 1) : object.attr("__dlpack__")();
  auto* managed = static_cast<DlManaged*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (managed == nullptr) throw py::error_already_set();
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  auto view = std::make_shared<View>();
  view->lease = std::shared_ptr<DlManaged>(managed, [](DlManaged* m) {
    if (m->deleter != nullptr) m->deleter(m);
  });
  const DlTensor& t = managed->tensor;
  view->object = py::reinterpret_borrow<py::object>(object);
  view->data = static_cast<char*>(t.data) + t.byte_offset;
  view->element_size = t.bits / 8;
  if (t.lanes == 1 && t.code < sizeof(kDlCodes)) view->type = type_of(static_cast<char>(kDlCodes[t.code]), t.bits / 8);
  view->shape.assign(t.shape, t.shape + t.dim);
  view->strides =
      t.strides != nullptr ? std::vector<int64_t>(t.strides, t.strides + t.dim) : dense_strides(view->shape);
  view->cuda = cuda;
  view->device = cuda ? t.device : 0;
  if (cuda) view->stream = 0;
  return view;
}

// ---------------------------------------------------------------- new arrays

/// A NumPy array over the memory of a CPU array of any kind.
py::array numpy_view(const Tensor& t) {
  if (!t.view().part && package_of(t.view().object) == "numpy")
    return py::reinterpret_borrow<py::array>(t.view().object);
  if (t.scalar_type() == ScalarType::BFloat16 || t.scalar_type() == ScalarType::Other) {
    refuse(std::string("ffkern.arrays: NumPy cannot copy an array of ") + dtype_text(t.scalar_type()) +
           "; pass float32 or float16");
  }
  std::vector<py::ssize_t> strides;
  for (const int64_t s : t.view().strides) strides.push_back(static_cast<py::ssize_t>(s * t.view().element_size));
  const std::vector<py::ssize_t> shape(t.view().shape.begin(), t.view().shape.end());
  auto* keep = new Tensor(t);
  const py::capsule base(keep, [](void* p) { delete static_cast<Tensor*>(p); });
  return py::array(py::dtype(dtype_text(t.scalar_type())), shape, strides, t.const_data_ptr(), base);
}

/// The library that makes arrays like this one.
py::object namespace_of(const Tensor& t) {
  if (t.is_cpu()) return py::module_::import("numpy");
  const py::object& object = t.view().object;
  if (package_of(object) == "cupy") return py::module_::import("cupy");
  if (py::hasattr(object, "__array_namespace__")) return object.attr("__array_namespace__")();
  refuse("ffkern.arrays: a " + type_name(object) +
         " has no __array_namespace__ that could make arrays on its device; use CuPy's arrays (cupy.asarray)");
}

py::object dtype_in(const py::object& library, ScalarType type) {
  const char* name = type == ScalarType::Bool && !py::hasattr(library, "bool") ? "bool_" : dtype_text(type);
  if (!py::hasattr(library, name)) {
    refuse(std::string("ffkern.arrays: the result is ") + name + ", which " +
           std::string(py::str(library.attr("__name__"))) + " has no dtype for; pass float32 or float16");
  }
  return library.attr(name);
}

Tensor new_array(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  const py::object library = namespace_of(like);
  py::tuple sizes(shape.size());
  size_t d = 0;
  for (const int64_t size : shape) sizes[d++] = size;
  return Tensor::of(library.attr("empty")(sizes, py::arg("dtype") = dtype_in(library, type)));
}

thread_local PyObject* outputs = nullptr;  // borrowed; see put_out()

}  // namespace

// ---------------------------------------------------------------- Tensor

Tensor Tensor::of(py::handle object) {
  std::shared_ptr<View> view;
  if (py::hasattr(object, "__cuda_array_interface__")) {
#ifdef FFKERN_HAVE_CUDA
    view = from_cuda_array(object, object.attr("__cuda_array_interface__").cast<py::dict>());
#else
    refuse_cuda();
#endif
  } else if (PyObject_CheckBuffer(object.ptr())) {
    view = from_buffer(object);
  } else if (py::hasattr(object, "__dlpack__")) {
    view = from_dlpack(object);
  } else {
    throw py::type_error(
        "ffkern.arrays: expected an array (buffer protocol, __cuda_array_interface__ or DLPack), not " +
        type_name(object));
  }
  for (const int64_t size : view->shape) {
    if (size < 0) refuse("ffkern.arrays: an array has a dimension of " + std::to_string(size));
  }
  check_alignment(*view);
  return Tensor(std::move(view));
}

int64_t Tensor::numel() const {
  int64_t n = 1;
  for (const int64_t size : view_->shape) n *= size;
  return n;
}

bool Tensor::is_contiguous() const {
  int64_t step = 1;
  for (size_t d = view_->shape.size(); d-- > 0;) {
    if (view_->shape[d] == 0) return true;
    if (view_->shape[d] > 1 && view_->strides[d] != step) return false;
    step *= view_->shape[d];
  }
  return true;
}

// ---------------------------------------------------------------- parts

Tensor part(const Tensor& whole, int64_t begin, std::initializer_list<int64_t> shape) {
  auto view = std::make_shared<View>(whole.view());
  view->data = static_cast<char*>(view->data) + begin * view->element_size;
  view->shape = shape;
  view->strides = dense_strides(view->shape);
  view->part = true;
  return Tensor(std::move(view));
}

// ---------------------------------------------------------------- copies

Tensor to(const Tensor& t, ScalarType type) {
  if (t.is_cpu()) return Tensor::of(numpy_view(t).attr("astype")(dtype_text(type)));
  if (t.view().part)
    refuse("ffkern.arrays: a part of a GPU array cannot be converted; expected float16 with float16 x");
  const py::object& object = t.view().object;
  const py::object library = namespace_of(t), dtype = dtype_in(library, type);
  return Tensor::of(py::hasattr(object, "astype") ? object.attr("astype")(dtype)
                                                  : library.attr("astype")(object, dtype));
}

Tensor contiguous(const Tensor& t) {
  if (t.is_contiguous()) return t;
  if (t.is_cpu()) return Tensor::of(py::module_::import("numpy").attr("ascontiguousarray")(numpy_view(t)));
  const py::object library = namespace_of(t);
  return Tensor::of(py::hasattr(library, "ascontiguousarray")
                        ? library.attr("ascontiguousarray")(t.view().object)
                        : library.attr("asarray")(t.view().object, py::arg("copy") = true));
}

void copy(const Tensor& into, const Tensor& from) {
  py::module_::import("numpy").attr("copyto")(numpy_view(into), numpy_view(from), py::arg("casting") = "same_kind");
}

// ---------------------------------------------------------------- results

void put_out(py::object arrays) { outputs = arrays.is_none() ? nullptr : arrays.ptr(); }

Tensor result(const char* name, const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  PyObject* given = outputs != nullptr ? PyDict_GetItemString(outputs, name) : nullptr;
  if (given == nullptr || given == Py_None) return new_array(like, shape, type);
  const Tensor out = Tensor::of(given);
  const std::string what = std::string("ffkern.arrays: out '") + name + "' ";
  const std::vector<int64_t> wanted(shape);
  if (out.view().shape != wanted) refuse(what + "has shape " + shape_text(out) + "; expected " + shape_text(wanted));
  if (out.scalar_type() != type)
    refuse(what + "is " + dtype_text(out.scalar_type()) + "; expected " + dtype_text(type));
  if (!out.is_contiguous()) refuse(what + "is not contiguous (C order); expected an array that is");
  if (!writable(out)) refuse(what + "is read-only");
  if (out.is_cpu() != like.is_cpu()) refuse(what + "is on another device than the inputs");
  return out;
}

Tensor scratch(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return new_array(like, shape, type);
}

// ---------------------------------------------------------------- threads

namespace {

std::atomic<int> thread_count{0};  // 0: not asked for yet

}  // namespace

int threads() {
  const int count = thread_count.load();
  return count > 0 ? count : cpu::default_threads();
}

void set_threads(int count) { thread_count.store(count); }

cpu::Provider provider() { return cpu::own_provider(threads()); }

}  // namespace ffkern::frontend
