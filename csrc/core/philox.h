// Counter-based random numbers, the same on host and device: Philox4x32-10 of J. Salmon, M. Moraes, R. Dror, D. Shaw,
// Parallel Random Numbers: As Easy as 1, 2, 3 (SC'11).
//
// Block number `counter` under `key` is a pure function of the two: no state moves along, so every pixel of every image
// can be drawn by whoever needs it, in any order, on any backend, with the same result.
#pragma once
#include <cstdint>

#include "math.h"

namespace ffkern {

struct PhiloxBlock {
  uint32_t word[4];
};

/// The four words of one block. `counter` is c0..c3, `key0` and `key1` the key, as in the Random123 distribution.
FFKERN_HD constexpr PhiloxBlock philox4x32_10(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c0, p1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(p0);
    key0 += 0x9E3779B9;  // (golden ratio - 1) and (sqrt(3) - 1) times 2^32, as in the article
    key1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace ffkern
