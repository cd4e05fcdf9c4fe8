#include "module.h"

#include <limits>
#include <map>
#include <mutex>
#include <string_view>
#include <utility>

// Defined by images.S.
extern "C" const char ffkern_image_bf16[], ffkern_image_f16[], ffkern_image_tf32[], ffkern_image_f32[];
extern "C" const char ffkern_image_rows[], ffkern_image_labels[], ffkern_image_head[];
#ifdef FFKERN_HAVE_HOPPER
extern "C" const char ffkern_image_hopper[];
#endif

namespace ffkern::cuda {

const Image kImageBf16 = {"bf16", ffkern_image_bf16}, kImageF16 = {"f16", ffkern_image_f16};
const Image kImageTf32 = {"tf32", ffkern_image_tf32}, kImageF32 = {"f32", ffkern_image_f32};
const Image kImageRows = {"rows", ffkern_image_rows}, kImageLabels = {"labels", ffkern_image_labels};
const Image kImageHead = {"head", ffkern_image_head};
#ifdef FFKERN_HAVE_HOPPER
const Image kImageHopper = {"hopper", ffkern_image_hopper};
#else
const Image kImageHopper = {"hopper", nullptr};
#endif

namespace {

struct Loaded {
  DeviceFacts facts;
  std::map<const void*, Module> modules;  // by image
  std::map<std::pair<Module, std::string_view>, Function> functions;
};

std::mutex mutex;

Loaded& loaded(const ContextGuard& context) {  // the mutex is held
  static std::map<std::pair<unsigned long long, Context>, Loaded> contexts;
  Loaded& in = contexts[{context.id(), context.context()}];
  DeviceFacts& facts = in.facts;
  if (facts.capability == 0) {
    const auto ask = [&](int attribute) {
      int value = 0;
      check(driver().device_get_attribute(&value, attribute, context.device()), "cuDeviceGetAttribute");
      return value;
    };
    facts.multiprocessors = ask(kAttributeMultiprocessors);
    facts.shared_bytes = ask(kAttributeSharedBytesOptin);
    facts.capability = 10 * ask(kAttributeCapabilityMajor) + ask(kAttributeCapabilityMinor);
  }
  return in;
}

Module load(const Loaded& in, const Image& image) {
  Module module = nullptr;
  const Result result = driver().module_load_data(&module, image.data);
  if (result == kNoBinaryForGpu || result == kInvalidPtx || result == kUnsupportedPtxVersion) {
    throw Error(result, std::string("ffkern: the image '") + image.name + "' has no kernel for this device (sm_" +
                            std::to_string(in.facts.capability) +
                            "): ffkern's CUDA kernels need compute capability 7.5 or newer (bfloat16 and tf32: 8.0), a "
                            "build with that architecture, and a driver as new as its compiler.");
  }
  check(result, "cuModuleLoadData", image.name);
  return module;
}

/// The kernel `name` of `image`, ready for `shared_bytes` of dynamic shared memory.
Function find(const ContextGuard& context, const Image& image, const char* name, int shared_bytes) {
  const std::lock_guard lock(mutex);
  Loaded& in = loaded(context);
  Module& module = in.modules[image.data];
  if (!module) module = load(in, image);
  Function& function = in.functions[{module, name}];
  if (!function) {
    Function found = nullptr;
    check(driver().module_get_function(&found, module, name), "cuModuleGetFunction", name);
    if (shared_bytes > 48 * 1024) {  // more than every device grants without being asked
      check(driver().func_set_attribute(found, kFunctionMaxDynamicSharedBytes, shared_bytes), "cuFuncSetAttribute",
            name);
    }
    function = found;
  }
  return function;
}

}  // namespace

DeviceFacts device_facts(Device device) {
  const ContextGuard context(device);
  const std::lock_guard lock(mutex);
  return loaded(context).facts;
}

void launch(const Queue& queue, const Image& image, const char* kernel, Dim grid, int threads, int shared_bytes,
            const void* params) {
  constexpr int64_t kMostX = std::numeric_limits<int>::max(), kMostYz = 65535;
  if (grid.x > kMostX || grid.y > kMostYz || grid.z > kMostYz) {
    throw std::invalid_argument(std::string("ffkern: ") + kernel + " would need a grid of " + std::to_string(grid.x) +
                                " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z) +
                                " blocks, more than a device takes: split the batch.");
  }
  const ContextGuard context(queue.device);
  const Function function = find(context, image, kernel, shared_bytes);
  void* arguments[] = {const_cast<void*>(params)};
  check(driver().launch_kernel(function, static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                               static_cast<unsigned>(grid.z), static_cast<unsigned>(threads), 1, 1,
                               static_cast<unsigned>(shared_bytes), queue.stream, arguments, nullptr),
        "cuLaunchKernel", kernel);
}

}  // namespace ffkern::cuda
