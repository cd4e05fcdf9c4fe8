// Kernels by name, loaded into the context that they run in.
#pragma once
#include <cstdint>

#include "../core/api.h"
#include "driver.h"

namespace ffkern::cuda {

/// A fat binary that images.S has embedded: machine code for several architectures and PTX for
/// those to come. The driver takes the best that runs on the device.
struct Image {
  const char* name;
  const void* data;
};

extern const Image kImageBf16, kImageF16, kImageTf32, kImageF32;  // products of a layer, by their arithmetic
extern const Image kImageRows, kImageLabels, kImageHead;
extern const Image kImageHopper;  // products on devices of compute capability 9.0; no data: not built

/// Where work goes: a device and one of its streams.
struct Queue {
  Device device;
  Stream stream;
};

struct DeviceFacts {
  int capability = 0;  // 80 for 8.0
  int multiprocessors = 0;
  int shared_bytes = 0;  // that a block may ask for
};

/// Facts about the device; asked for once a context.
FFKERN_API DeviceFacts device_facts(Device device);

struct Dim {
  int64_t x = 1, y = 1, z = 1;
};

/// Launches `kernel` (a string literal) of `image` with one argument, a parameter structure that `params` points to.
/// The first launch in a context loads the image, which must not happen while a stream is being captured: launch once
/// before capturing a graph. Throws std::invalid_argument if the grid is larger than devices allow.
void launch(const Queue& queue, const Image& image, const char* kernel, Dim grid, int threads, int shared_bytes,
            const void* params);

template <class Params>
void launch(const Queue& queue, const Image& image, const char* kernel, Dim grid, int threads, int shared_bytes,
            const Params& params) {
  launch(queue, image, kernel, grid, threads, shared_bytes, static_cast<const void*>(&params));
}

/// ceil(size / part).
constexpr int64_t parts(int64_t size, int64_t part) { return (size + part - 1) / part; }

}  // namespace ffkern::cuda
