// Threads for hosts that bring none: a pool that lives as long as the process, and the Provider made of it and
// own_gemm(). NumPy and C++ programs use this one; torch has its own threads.
#pragma once
#include "../core/api.h"
#include "provider.h"

namespace ffkern::cpu {

constexpr int kMostThreads = 1 << 16;

/// own_gemm() and the process's pool. Results depend on `threads` alone: not on the number of CPUs, on how busy they
/// are, or on whether the pool could give that many. Starts no thread yet: the pool grows with the calls that need it,
/// never beyond the largest `threads` asked for. Throws std::invalid_argument unless
/// 1 <= threads <= kMostThreads.
///
/// The Provider may be copied and used from any number of threads at once. The calling thread works too. One call at a
/// time has the pool; a call that finds it taken, from another thread or from inside a task, does all its tasks itself,
/// one after the other. If tasks throw, the others run nevertheless, and the exception of the lowest task comes out.
/// After fork() the child starts threads of its own; only a fork() from inside a task is not provided for.
FFKERN_API Provider own_provider(int threads);

/// A good number of threads: $OMP_NUM_THREADS if it is a positive number, else the CPUs that this process may run on.
FFKERN_API int default_threads();

}  // namespace ffkern::cpu
