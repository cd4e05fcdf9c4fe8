// Hybrid images: negatives for learning without labels (Hinton, section 3.2). Locally each looks like an image, in the
// large like none.
//
//     bits [H,W] --blur in both directions, `blurs` times--> value --value > 1/2--> mask: x where 1, `other` where 0
//
// Each image is on its own from its random bits to its blend, and its two planes of float32 stay in cache.
// Bytes: x, other and the result once each, and the mask. FLOPs: 8 a pixel and blur.
#include "../core/hybrid.h"

#include <algorithm>

#include "kernels.h"

namespace ffkern::cpu {

namespace {

// Known answers of the Random123 distribution: a build that draws other numbers does not compile.
constexpr bool draws(PhiloxBlock counter, uint32_t key0, uint32_t key1, PhiloxBlock wanted) {
  const PhiloxBlock got = philox4x32_10(counter, key0, key1);
  for (int i = 0; i < 4; ++i) {
    if (got.word[i] != wanted.word[i]) return false;
  }
  return true;
}
static_assert(draws({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}));
static_assert(draws({{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, 0xffffffff, 0xffffffff,
                    {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}));
static_assert(draws({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
                    {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}));

void draw(uint64_t seed, uint64_t image, int64_t pixels, float* value) {
  for (int64_t begin = 0; begin < pixels; begin += kHybridBlock) {
    const PhiloxBlock block = hybrid_bits(seed, image, static_cast<uint32_t>(begin / kHybridBlock));
    const int64_t count = std::min(kHybridBlock, pixels - begin);
    for (int64_t p = 0; p < count; ++p) {
      value[begin + p] = static_cast<float>(block.word[p / 32] >> (p % 32) & 1);
    }
  }
}

/// One blur along the rows, then one along the columns. Beyond the border lies the border pixel once more: zeros
/// there would pull the mean below 1/2 and the mask to 0 along the edges.
void blur(int64_t height, int64_t width, float* value, float* between) {
  for (int64_t r = 0; r < height; ++r) {
    const float* in = value + r * width;
    float* out = between + r * width;
    const int64_t last = width - 1;
    out[0] = hybrid_blur(in[0], in[0], in[std::min<int64_t>(1, last)]);
    for (int64_t c = 1; c < last; ++c) out[c] = hybrid_blur(in[c - 1], in[c], in[c + 1]);
    if (last > 0) out[last] = hybrid_blur(in[last - 1], in[last], in[last]);
  }
  for (int64_t r = 0; r < height; ++r) {
    const float* in = between + r * width;
    const float* above = r > 0 ? in - width : in;
    const float* below = r + 1 < height ? in + width : in;
    float* out = value + r * width;
    for (int64_t c = 0; c < width; ++c) out[c] = hybrid_blur(above[c], in[c], below[c]);
  }
}

/// A choice, not a product with 0 and 1: the result has the bits of the image chosen, and a NaN or an infinity in the
/// other one leaves no trace. T is an unsigned integer of the element's size.
template <class T>
void blend(const Hybrid& hybrid, int64_t image, const bool* mask, void* out) {
  const int64_t pixels = hybrid.height * hybrid.width, inputs = hybrid.channels * pixels;
  const T* x = static_cast<const T*>(hybrid.x) + image * hybrid.ldx;
  const T* other = static_cast<const T*>(hybrid.other) + image * hybrid.ld_other;
  T* to = static_cast<T*>(out) + image * inputs;
  for (int64_t begin = 0; begin < inputs; begin += pixels) {
    for (int64_t p = 0; p < pixels; ++p) to[begin + p] = mask[p] ? x[begin + p] : other[begin + p];
  }
}

int64_t slices_of(const Provider& provider, const Hybrid& hybrid) {
  // Work of one pixel, about. Capped, so that an absurd number of blurs cannot overflow it.
  const int64_t cost = 8 + 2 * std::min<int64_t>(hybrid.blurs, 64) + hybrid.channels;
  return slice_count(provider, hybrid.images, cost * hybrid.height * hybrid.width);
}

}  // namespace

int64_t hybrid_floats(const Provider& provider, const Hybrid& hybrid) {
  return slices_of(provider, hybrid) * 2 * hybrid.height * hybrid.width;
}

void hybrid_images(const Provider& provider, const Hybrid& hybrid, void* out, bool* mask, float* scratch) {
  const int64_t pixels = hybrid.height * hybrid.width;
  const int64_t slices = slices_of(provider, hybrid);
  parallel_tasks(provider, slices, [&](int64_t s) {
    float* value = scratch + s * 2 * pixels;
    const int64_t end = slice_begin(hybrid.images, slices, s + 1);
    for (int64_t i = slice_begin(hybrid.images, slices, s); i < end; ++i) {
      draw(hybrid.seed, hybrid.drawn + static_cast<uint64_t>(i), pixels, value);
      for (int64_t k = 0; k < hybrid.blurs; ++k) blur(hybrid.height, hybrid.width, value, value + pixels);
      bool* chosen = mask + i * pixels;
      for (int64_t p = 0; p < pixels; ++p) chosen[p] = value[p] > 0.5f;
      if (hybrid.element_bytes == 4) {
        blend<uint32_t>(hybrid, i, chosen, out);
      } else {
        blend<uint16_t>(hybrid, i, chosen, out);
      }
    }
  });
}

}  // namespace ffkern::cpu
