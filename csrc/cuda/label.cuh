// The label of a row whose first inputs hold it.
#pragma once
#include <cstdint>

namespace ffkern::cuda {

struct RowLabel {
  int index;     // column of `columns`; the neutral label is the one past the classes
  float value;   // what it puts into its inputs
  float inputs;  // how many

  /// @param given a class, or -1 for the neutral label. Anything else cannot be refused without waiting for the device:
  ///              its value is NaN, so that the row shows it.
  __device__ __forceinline__ RowLabel(int64_t given, int classes, const float* overlay) {
    const bool neutral = given == -1, valid = neutral || (given >= 0 && given < classes);
    index = neutral ? classes : valid ? static_cast<int>(given) : 0;
    value = valid ? overlay[neutral ? 1 : 0] : __int_as_float(0x7fffffff);
    inputs = neutral ? static_cast<float>(classes) : 1.0f;
  }

  /// ||x|| from the norm without the label inputs.
  __device__ __forceinline__ float norm_with(float rest) const { return sqrtf(rest * rest + inputs * value * value); }
};

}  // namespace ffkern::cuda
