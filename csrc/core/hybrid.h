// Masks of hybrid images, the formulas that host and device share. The whole operation: csrc/cpu/hybrid.cpp.
#pragma once
#include "philox.h"

namespace ffkern {

constexpr int64_t kHybridBlock = 128;  // pixels that one Philox block serves

/// Random bits of pixels 128 b to 128 b + 127 of an image: pixel p has bit p % 32 of word (p % 128) / 32.
/// Key: the low and the high half of the seed. Counter: the two halves of the image's number since the seed was set,
/// the block b, 0.
FFKERN_HD constexpr PhiloxBlock hybrid_bits(uint64_t seed, uint64_t image, uint32_t block) {
  return philox4x32_10({{static_cast<uint32_t>(image), static_cast<uint32_t>(image >> 32), block, 0}},
                       static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

/// One tap of the blur, [1/4, 1/2, 1/4]. Both products are with powers of two and so exact: whether a compiler fuses
/// one of them into the sum cannot change a bit, and every backend gets the same mask. (Exact above the subnormal
/// numbers, that is; a value that small needs more than 60 equal random bits in a row.)
FFKERN_HD constexpr float hybrid_blur(float before, float centre, float after) {
  return 0.25f * (before + after) + 0.5f * centre;
}

}  // namespace ffkern
