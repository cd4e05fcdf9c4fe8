#include "driver.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

namespace ffkern::cuda {
namespace {

std::mutex mutex;  // guards loading and the retained contexts
std::atomic<const Driver*> loaded{nullptr};

void check(const Driver& driver, Result result, const char* call, const char* name) {
  if (result == kSuccess) return;
  const char *error = nullptr, *text = nullptr;
  driver.get_error_name(result, &error);
  driver.get_error_string(result, &text);
  std::string what = std::string("ffkern: ") + call;
  if (name) what += std::string(" of ") + name;
  what += std::string(" failed with ") + (error ? error : "an unknown error");
  what += " (" + std::to_string(result) + ")";
  if (text) what += std::string(": ") + text;
  throw Error(result, what);
}

std::unique_ptr<const Driver> load() {
  const char* chosen = std::getenv("FFKERN_CUDA_DRIVER");
  auto driver = std::make_unique<Driver>();
  driver->path = chosen && *chosen ? chosen : "libcuda.so.1";
  driver->handle = dlopen(driver->path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!driver->handle) {
    const char* reason = dlerror();
    throw std::runtime_error("ffkern: cannot load the CUDA driver '" + driver->path + "' (" +
                             (reason ? reason : "unknown reason") +
                             "): install the NVIDIA driver, or set FFKERN_CUDA_DRIVER to its library.");
  }
  std::string missing;
#define FFKERN_RESOLVE(member, name, required, parameters)                               \
  driver->member = reinterpret_cast<Result(*) parameters>(dlsym(driver->handle, #name)); \
  if (required && !driver->member) missing += (missing.empty() ? "" : ", ") + std::string(#name);
  FFKERN_CUDA_DRIVER_FUNCTIONS(FFKERN_RESOLVE)
#undef FFKERN_RESOLVE
  if (!missing.empty()) {
    throw std::runtime_error("ffkern: the CUDA driver '" + driver->path + "' is too old, it lacks " + missing +
                             ": install a newer NVIDIA driver.");
  }
  check(*driver, driver->init(0), "cuInit", nullptr);
  return driver;
}

}  // namespace

const Driver& driver() {
  if (const Driver* ready = loaded.load(std::memory_order_acquire)) return *ready;
  const std::lock_guard lock(mutex);
  if (const Driver* ready = loaded.load(std::memory_order_relaxed)) return *ready;
  const Driver* ready = load().release();  // lives as long as the process
  loaded.store(ready, std::memory_order_release);
  return *ready;
}

void check(Result result, const char* call, const char* name) {
  if (result != kSuccess) check(driver(), result, call, name);
}

ContextGuard::ContextGuard(Device device) : device_(device) {
  const Driver& cu = driver();
  check(cu.ctx_get_current(&context_), "cuCtxGetCurrent");
  if (context_) {
    Device current = -1;
    check(cu.ctx_get_device(&current), "cuCtxGetDevice");
    if (current == device) return;
  }
  static std::map<Device, Context> primary;  // retained until the process ends
  {
    const std::lock_guard lock(mutex);
    Context& retained = primary[device];
    if (!retained) check(cu.primary_ctx_retain(&retained, device), "cuDevicePrimaryCtxRetain");
    context_ = retained;
  }
  check(cu.ctx_push_current(context_), "cuCtxPushCurrent");
  pushed_ = true;
}

ContextGuard::~ContextGuard() {
  Context popped = nullptr;
  if (pushed_) driver().ctx_pop_current(&popped);
}

unsigned long long ContextGuard::id() const {
  unsigned long long id = 0;
  const Driver& cu = driver();
  if (cu.ctx_get_id && cu.ctx_get_id(context_, &id) == kSuccess) return id;
  return reinterpret_cast<uintptr_t>(context_);
}

}  // namespace ffkern::cuda
