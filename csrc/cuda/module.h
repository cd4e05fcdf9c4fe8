// Kernels by name, loaded into the context that they run in.
#pragma once
#include "driver.h"

namespace ffkern::cuda {

/// A fat binary that images.S has embedded: machine code for several architectures and PTX for
/// those to come. The driver takes the best that runs on the device.
struct Image {
  const char* name;
  const void* data;
};

extern const Image kLayerForwardImage;

struct DeviceFacts {
  int capability = 0;  // 80 for 8.0
  int multiprocessors = 0;
  int shared_bytes = 0;  // that a block may ask for
};

/// Facts about the device of the current context; asked for once.
DeviceFacts device_facts(const ContextGuard& context);

/// The kernel `name` (a string literal) of `image`, ready for `shared_bytes` of dynamic shared
/// memory. The first call in a context loads the image, which must not happen while a stream is
/// being captured: call once before capturing a graph.
Function kernel(const ContextGuard& context, const Image& image, const char* name, int shared_bytes = 0);

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};

/// Launches `function` with one argument: a parameter structure passed by value.
template <class Params>
void launch(const char* name, Function function, Dim grid, unsigned threads, int shared_bytes, Stream stream,
            Params params) {
  void* arguments[] = {&params};
  check(driver().launch_kernel(function, grid.x, grid.y, grid.z, threads, 1, 1, static_cast<unsigned>(shared_bytes),
                               stream, arguments, nullptr),
        "cuLaunchKernel", name);
}

}  // namespace ffkern::cuda
