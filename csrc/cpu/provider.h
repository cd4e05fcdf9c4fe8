// What the CPU kernels ask of their host: a matrix product and a way to run tasks in parallel.
// torch's binding supplies its BLAS and its threads; own_provider() (threads.h) is own_gemm() and a thread pool.
//
// A host of its own fills in the three members: a program without threads, for example, own_gemm, a loop over the
// tasks, and 1. A Provider is a value without state: copy it, and use it from any thread.
#pragma once
#include <cstdint>

#include "../core/api.h"

namespace ffkern::cpu {

struct Provider;

/// Row-major C[m,n] = op(A) op(B) + beta C, op = transpose where asked; ld* are row pitches in elements. No pointer
/// needs more than the alignment of a float; C overlaps neither A nor B. Any size may be 0.
struct Gemm {
  bool trans_a = false, trans_b = false;
  int64_t m = 0, n = 0, k = 0;
  const float* a = nullptr;  // [m, k], or [k, m] with trans_a
  int64_t lda = 0;
  const float* b = nullptr;  // [k, n], or [n, k] with trans_b
  int64_t ldb = 0;
  float beta = 0.0f;  // 0: C is not read, so it may hold NaN; or 1
  float* c = nullptr;
  int64_t ldc = 0;
  /// [k] or null: 1 where a step adds nothing, because its row of A is zero and its row of B finite. A product may
  /// leave such steps out if that changes no bit, or not look here. With trans_a and without trans_b only.
  const uint8_t* idle = nullptr;
};

struct Provider {
  /// The product. It is also called from inside tasks, and by several threads at once.
  void (*gemm)(const Provider&, const Gemm&);
  /// Calls fn(task, context) once for each task in [0, tasks), in any order, on any threads, and waits for all. An
  /// exception of fn must reach the caller, once no task runs any more. Tasks call this again, and then on as many
  /// threads as the host likes: in a loop, for example.
  void (*run_tasks)(int64_t tasks, void (*fn)(int64_t task, void* context), void* context);
  /// How many tasks a call has at most, at least 1. Results may depend on it, and on nothing else of the host's
  /// threads.
  int threads;
};

/// Blocked product on the best instruction set at hand (row_kernels.h). Needs no BLAS. It allocates up to 5 MiB a task
/// and throws std::bad_alloc if it cannot. The bits of an element are fixed by its row of op(A), its column of op(B)
/// and the instruction set: neither by threads nor by m and n.
FFKERN_API void own_gemm(const Provider& provider, const Gemm& gemm);

/// Runs fn(task) for every task in [0, tasks).
template <class F>
void parallel_tasks(const Provider& provider, int64_t tasks, const F& fn) {
  if (tasks <= 1) {
    if (tasks == 1) fn(int64_t{0});
    return;
  }
  provider.run_tasks(
      tasks, [](int64_t task, void* context) { (*static_cast<const F*>(context))(task); },
      const_cast<void*>(static_cast<const void*>(&fn)));
}

/// Number of equal slices to cut `items` into, `cost` elements each: at most one a thread, and none too small to
/// pay for waking it. A function of sizes and thread count alone, so partial sums always fall the same way.
inline int64_t slice_count(const Provider& provider, int64_t items, int64_t cost) {
  constexpr int64_t kWorthATask = 1 << 14;
  const int64_t worth = items * cost / kWorthATask;
  const int64_t slices = worth < provider.threads ? worth : provider.threads;
  return slices < 1 ? 1 : (slices > items ? (items > 0 ? items : 1) : slices);
}

/// First item of slice s out of `slices`.
inline int64_t slice_begin(int64_t items, int64_t slices, int64_t s) { return items * s / slices; }

}  // namespace ffkern::cpu
