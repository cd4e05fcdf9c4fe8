// Scratch memory of one operation, cut from a buffer of the caller's, or only measured.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ffkern::cuda {

/// Pieces aligned to 256 bytes. Over a null buffer it hands out nothing and counts.
class Workspace {
 public:
  explicit Workspace(void* buffer) : buffer_(static_cast<char*>(buffer)) {}

  template <class T>
  T* take(int64_t count) {
    char* piece = buffer_ ? buffer_ + used_ : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(piece);
  }
  int64_t used() const { return used_; }

 private:
  char* buffer_;
  int64_t used_ = 0;
};

}  // namespace ffkern::cuda
