#include "module.h"

#include <map>
#include <mutex>
#include <string_view>
#include <utility>

extern "C" const char ffkern_image_layer_forward[];

namespace ffkern::cuda {

const Image kLayerForwardImage = {"layer_forward", ffkern_image_layer_forward};

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
                            "): ffkern needs compute capability 8.0 or newer, and a driver as new "
                            "as its compiler.");
  }
  check(result, "cuModuleLoadData", image.name);
  return module;
}

}  // namespace

DeviceFacts device_facts(const ContextGuard& context) {
  const std::lock_guard lock(mutex);
  return loaded(context).facts;
}

Function kernel(const ContextGuard& context, const Image& image, const char* name, int shared_bytes) {
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

}  // namespace ffkern::cuda
