// Errors: their names, the message of the last one, and what the failure of a kernel is called.
#include <cstdarg>

#include "driver.h"

namespace drv {
string lastError;
thread_local const char* currentCall = "";

CUresult err(CUresult r, const char* f, ...) {
  char b[2048];
  va_list ap;
  va_start(ap, f);
  vsnprintf(b, sizeof b, f, ap);
  va_end(ap);
  lastError = string(currentCall) + ": " + b;
  if (opt.verbose) fprintf(stderr, "ptxsim: %s (error %d)\n", lastError.c_str(), (int)r);
  return r;
}
CUresult classify(const string& e) {
  auto has = [&](const char* s) { return e.find(s) != string::npos; };
  if (has("misaligned")) return CUDA_ERROR_MISALIGNED_ADDRESS;
  if (has("out-of-bounds") || has("invalid generic address") || has("read-only buffer") || has("never-written byte"))
    return CUDA_ERROR_ILLEGAL_ADDRESS;
  if (has("assertion failed")) return CUDA_ERROR_ASSERT;
  if (has("instruction limit") || has("deadlock")) return CUDA_ERROR_LAUNCH_TIMEOUT;
  if (has("unsupported instructions")) return CUDA_ERROR_NOT_SUPPORTED;
  if (e.rfind("launch of", 0) == 0) return CUDA_ERROR_INVALID_VALUE;
  return CUDA_ERROR_LAUNCH_FAILED;
}
}  // namespace drv

static const std::map<int, std::pair<const char*, const char*>> errTab = {
#define E(n, t)  \
  {              \
    n, { #n, t } \
  }
    E(CUDA_SUCCESS, "no error"),
    E(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    E(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    E(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    E(CUDA_ERROR_DEINITIALIZED, "driver shutting down"),
    E(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    E(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    E(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    E(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    E(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"),
    E(CUDA_ERROR_INVALID_PTX, "a PTX JIT compilation failed"),
    E(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "the provided PTX was compiled with an unsupported toolchain."),
    E(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    E(CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state"),
    E(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    E(CUDA_ERROR_NOT_READY, "device not ready"),
    E(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    E(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"),
    E(CUDA_ERROR_LAUNCH_TIMEOUT, "the launch timed out and was terminated"),
    E(CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE, "cannot set while device is active in this process"),
    E(CUDA_ERROR_CONTEXT_IS_DESTROYED, "context is destroyed"),
    E(CUDA_ERROR_ASSERT, "device-side assert triggered"),
    E(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "part or all of the requested memory range is already mapped"),
    E(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "pointer does not correspond to a registered memory region"),
    E(CUDA_ERROR_ILLEGAL_INSTRUCTION, "an illegal instruction was encountered"),
    E(CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"),
    E(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    E(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, "too many blocks in cooperative launch"),
    E(CUDA_ERROR_NOT_PERMITTED, "operation not permitted"),
    E(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    E(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    E(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    E(CUDA_ERROR_STREAM_CAPTURE_MERGE, "operation would result in a merge of separate capture sequences"),
    E(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "capture was not ended in the same stream as it began"),
    E(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work"),
    E(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
      "operation would make the legacy stream depend on a capturing blocking stream"),
    E(CUDA_ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream"),
    E(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
      "attempt to terminate a thread-local capture sequence from another thread"),
    E(CUDA_ERROR_INVALID_CLUSTER_SIZE, "Invalid cluster configuration"),
    E(CUDA_ERROR_UNKNOWN, "unknown error"),
#undef E
};

API CUresult cuGetErrorName(CUresult e, const char** s) {
  auto it = errTab.find(e);
  if (!s) return CUDA_ERROR_INVALID_VALUE;
  *s = it == errTab.end() ? nullptr : it->second.first;
  return it == errTab.end() ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult e, const char** s) {
  auto it = errTab.find(e);
  if (!s) return CUDA_ERROR_INVALID_VALUE;
  *s = it == errTab.end() ? nullptr : it->second.second;
  return it == errTab.end() ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
