// Scratch memory from one caller-owned block. The same layout code runs twice: with a null base to learn the size,
// and with the block to hand out pointers, so the two cannot disagree.
#pragma once
#include <cstdint>

namespace ffkern::cpu {

class Arena {
 public:
  explicit Arena(float* base) : base_(base) {}

  /// n floats on a cache-line boundary (when the base is on one).
  float* take(int64_t n) {
    float* p = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (n + 15) / 16 * 16;
    return p;
  }
  double* take_doubles(int64_t n) { return reinterpret_cast<double*>(take(2 * n)); }

  int64_t used() const { return used_; }

 private:
  float* base_;
  int64_t used_ = 0;
};

}  // namespace ffkern::cpu
