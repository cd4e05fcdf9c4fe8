// The CUDA driver API, loaded at run time. No CUDA runtime, no link dependency on libcuda, no CUDA
// headers: a library built with this imports on machines without a driver, and only a launch there
// fails, saying what is missing.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../core/api.h"

struct CUtensorMap_st;  // of cuda.h

namespace ffkern::cuda {

using Result = int;  // CUresult
using Device = int;
using Context = struct CUctx_st*;
using Module = struct CUmod_st*;
using Function = struct CUfunc_st*;
using Stream = struct CUstream_st*;
using Event = struct CUevent_st*;

constexpr Result kSuccess = 0;
constexpr Result kNoBinaryForGpu = 209;  // no image of the module runs on the device
constexpr Result kInvalidPtx = 218;
constexpr Result kUnsupportedPtxVersion = 222;  // driver older than the image's compiler
constexpr int kAttributeMultiprocessors = 16;
constexpr int kAttributeCapabilityMajor = 75;
constexpr int kAttributeCapabilityMinor = 76;
constexpr int kAttributeSharedBytesOptin = 97;
constexpr int kFunctionMaxDynamicSharedBytes = 8;
constexpr int kPointerDevice = 9;
constexpr unsigned kEventDisableTiming = 2;
// Of tensor maps.
constexpr int kTensorUint16 = 1;  // elements of two bytes, whatever they are
constexpr int kTensorFloat32 = 7;
constexpr int kTensorTf32 = 11;  // float32 that the copies round
constexpr int kTensorNotInterleaved = 0;
constexpr int kTensorNoSwizzle = 0;
constexpr int kTensorSwizzle128 = 3;
constexpr int kTensorPromote128 = 2;  // to L2, 128 bytes at a time
constexpr int kTensorFillZero = 0;

// X(member, exported name, required, parameters). The exported names carry their ABI version, so
// the parameters cannot change under them; a test compares the declarations with cuda.h.
#define FFKERN_CUDA_DRIVER_FUNCTIONS(X)                                                                              \
  X(init, cuInit, true, (unsigned))                                                                                  \
  X(get_error_name, cuGetErrorName, true, (Result, const char**))                                                    \
  X(get_error_string, cuGetErrorString, true, (Result, const char**))                                                \
  X(device_get_attribute, cuDeviceGetAttribute, true, (int*, int, Device))                                           \
  X(primary_ctx_retain, cuDevicePrimaryCtxRetain, true, (Context*, Device))                                          \
  X(ctx_get_current, cuCtxGetCurrent, true, (Context*))                                                              \
  X(ctx_push_current, cuCtxPushCurrent_v2, true, (Context))                                                          \
  X(ctx_pop_current, cuCtxPopCurrent_v2, true, (Context*))                                                           \
  X(ctx_get_device, cuCtxGetDevice, true, (Device*))                                                                 \
  X(ctx_get_id, cuCtxGetId, false, (Context, unsigned long long*))                                                   \
  X(module_load_data, cuModuleLoadData, true, (Module*, const void*))                                                \
  X(module_get_function, cuModuleGetFunction, true, (Function*, Module, const char*))                                \
  X(func_set_attribute, cuFuncSetAttribute, true, (Function, int, int))                                              \
  X(pointer_get_attribute, cuPointerGetAttribute, true, (void*, int, unsigned long long))                            \
  X(event_create, cuEventCreate, true, (Event*, unsigned))                                                           \
  X(event_record, cuEventRecord, true, (Event, Stream))                                                              \
  X(event_destroy, cuEventDestroy_v2, true, (Event))                                                                 \
  X(stream_wait_event, cuStreamWaitEvent, true, (Stream, Event, unsigned))                                           \
  X(launch_kernel, cuLaunchKernel, true,                                                                             \
    (Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, void**, void**))        \
  X(tensor_map_encode, cuTensorMapEncodeTiled, false,                                                                \
    (CUtensorMap_st*, int, uint32_t, void*, const uint64_t*, const uint64_t*, const uint32_t*, const uint32_t*, int, \
     int, int, int))

/// The functions of a loaded driver.
struct Driver {
#define FFKERN_DECLARE(member, name, required, parameters) Result(*member) parameters = nullptr;
  FFKERN_CUDA_DRIVER_FUNCTIONS(FFKERN_DECLARE)
#undef FFKERN_DECLARE
  void* handle = nullptr;  // of dlopen
  std::string path;
};

/// A driver call that failed.
struct FFKERN_API Error : std::runtime_error {
  Error(Result code, const std::string& what) : std::runtime_error(what), code(code) {}
  Result code;
};

/// The driver, loaded and initialised on first use: $FFKERN_CUDA_DRIVER, else libcuda.so.1.
/// Thread-safe. Throws std::runtime_error when there is none, naming what was tried; a later call
/// tries again.
FFKERN_API const Driver& driver();

/// Throws Error "ffkern: cuXxx of NAME failed with CUDA_ERROR_... (code): text" unless `result` is
/// kSuccess.
FFKERN_API void check(Result result, const char* call, const char* name = nullptr);

/// Makes a context of `device` current for a scope. The thread's current context is kept if it
/// belongs to the device, as it does under torch, whose runtime has made the primary context
/// current. Otherwise, for example on a thread that autograd has just started, the primary context
/// is retained once a process and pushed.
class FFKERN_API ContextGuard {
 public:
  explicit ContextGuard(Device device);
  ~ContextGuard();
  ContextGuard(const ContextGuard&) = delete;
  ContextGuard& operator=(const ContextGuard&) = delete;

  Device device() const { return device_; }
  Context context() const { return context_; }
  /// Never the same for two contexts of a process, even if the second is created at the address of
  /// the first.
  unsigned long long id() const;

 private:
  Device device_;
  Context context_ = nullptr;
  bool pushed_ = false;
};

}  // namespace ffkern::cuda
