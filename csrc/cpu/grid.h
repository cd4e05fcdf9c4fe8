// How a matrix is cut into parts, one task each: whole strips of rows by whole panels of columns.
#pragma once
#include <algorithm>
#include <cstdint>

#include "provider.h"

namespace ffkern::cpu {

constexpr int64_t parts(int64_t size, int64_t part) { return (size + part - 1) / part; }

struct Range {
  int64_t begin, end;
};

/// Part s of `count` things in `slices` parts, as elements: `size` of them, `each` a thing.
inline Range cut(int64_t count, int64_t slices, int64_t s, int64_t each, int64_t size) {
  return {slice_begin(count, slices, s) * each, std::min(slice_begin(count, slices, s + 1) * each, size)};
}

/// How many parts a matrix falls into, by rows and by columns.
struct Grid {
  int64_t rows, columns;
};

/// Tasks for so many multiply-adds: at most one a thread, and none too small to pay for waking it.
inline int64_t product_tasks(const Provider& provider, int64_t work) {
  constexpr int64_t kWorthATask = 1 << 20;
  return std::clamp(work / kWorthATask, int64_t{1}, int64_t{provider.threads});
}

/// The grid of at most `tasks` parts whose largest part costs the least: cost(its strips, its panels).
template <class Cost>
Grid choose_grid(int64_t tasks, int64_t strips, int64_t panels, Cost cost) {
  Grid best{1, 1};
  int64_t least = INT64_MAX;
  for (int64_t rows = 1; rows <= std::min(tasks, strips); ++rows) {
    const int64_t columns = std::min(tasks / rows, panels), work = cost(parts(strips, rows), parts(panels, columns));
    if (work < least) {
      least = work;
      best = {rows, columns};
    }
  }
  return best;
}

}  // namespace ffkern::cpu
