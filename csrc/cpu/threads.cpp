// The thread pool. One job at a time; its owner is the thread that called.
//
//     caller   take the pool -> post the job, wake helpers -> do tasks -> close the job -> wait for those inside ->
//     leave helper                       sleep -> enter (a seat) -> do tasks -> leave -> sleep
//
// The job lies on the caller's stack. A helper enters and leaves under the mutex and only while there are seats, so one
// that wakes up late finds the job closed and never sees a dead one. Tasks are numbers drawn from a shared counter.
//
// The pool is never destroyed and its threads are never joined: at exit they sleep, or die in the middle of a task, and
// nothing waits for them. In a child of fork() the old pool is forgotten, whatever state its locks were in.
#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

namespace ffkern::cpu {
namespace {

using TaskFunction = void (*)(int64_t task, void* context);

/// One call's tasks.
class Job {
 public:
  Job(int64_t tasks, TaskFunction fn, void* context) : tasks_(tasks), fn_(fn), context_(context) {}

  /// Does tasks until none is left. Any number of threads at once.
  void work() {
    for (int64_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) {
      try {
        fn_(task, context_);
      } catch (...) {
        const std::lock_guard lock(error_mutex_);
        if (task < error_task_) {
          error_task_ = task;
          error_ = std::current_exception();
        }
      }
    }
  }

  /// Once everybody is done.
  void rethrow() {
    if (error_) std::rethrow_exception(std::move(error_));
  }

 private:
  const int64_t tasks_;
  const TaskFunction fn_;
  void* const context_;
  std::atomic<int64_t> next_{0};
  std::mutex error_mutex_;
  int64_t error_task_ = INT64_MAX;
  std::exception_ptr error_;
};

class Pool {
 public:
  /// Whether the caller has the pool now; then it has to run() and release().
  bool acquire() { return !taken_.test_and_set(std::memory_order_acquire); }
  void release() { taken_.clear(std::memory_order_release); }

  void run(Job& job, int64_t helpers) noexcept {
    grow(helpers);
    {
      const std::lock_guard lock(mutex_);
      job_ = &job;
      seats_ = helpers;
    }
    for (int64_t h = 0; h < helpers; ++h) work_.notify_one();
    job.work();
    std::unique_lock lock(mutex_);
    seats_ = 0;
    done_.wait(lock, [&] { return inside_ == 0; });
  }

 private:
  /// Threads are started by whoever has the pool. Without permission for another one there are fewer helpers.
  void grow(int64_t helpers) {
    if (started_ >= helpers) return;
    sigset_t all, before;  // signals are for the program's own threads
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    try {
      for (; started_ < helpers; ++started_) std::thread(&Pool::help, this).detach();
    } catch (const std::exception&) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void help() {
    std::unique_lock lock(mutex_);
    while (true) {
      work_.wait(lock, [&] { return seats_ > 0; });
      --seats_;
      ++inside_;
      Job& job = *job_;
      lock.unlock();
      job.work();
      lock.lock();
      if (--inside_ == 0) done_.notify_one();
    }
  }

  std::atomic_flag taken_;
  int64_t started_ = 0;  // of whoever has the pool
  std::mutex mutex_;     // of all below
  std::condition_variable work_, done_;
  Job* job_ = nullptr;
  int64_t seats_ = 0;   // helpers that may still enter
  int64_t inside_ = 0;  // helpers at work
};

std::atomic<Pool*> current{nullptr};
std::atomic<int64_t> most_threads{1};  // that a provider was asked for

/// Threads that never end need their code for ever: keeps a shared library that contains it from being unloaded by
/// dlclose(). In a program it does nothing.
void stay_loaded() {
  Dl_info here;
  if (dladdr(reinterpret_cast<void*>(&stay_loaded), &here) != 0 && here.dli_fname != nullptr) {
    dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
  }
}

Pool& pool() {
  Pool* found = current.load(std::memory_order_acquire);
  if (found != nullptr) return *found;
  static std::atomic<bool> prepared{false};
  if (!prepared.exchange(true)) {
    stay_loaded();
    pthread_atfork(nullptr, nullptr, [] { current.store(nullptr, std::memory_order_release); });
  }
  auto made = std::make_unique<Pool>();
  if (current.compare_exchange_strong(found, made.get(), std::memory_order_acq_rel)) return *made.release();
  return *found;
}

void run_tasks(int64_t tasks, TaskFunction fn, void* context) {
  Job job(tasks, fn, context);
  const int64_t most = most_threads.load(std::memory_order_relaxed), threads = tasks < most ? tasks : most;
  if (Pool* shared = threads > 1 ? &pool() : nullptr; shared != nullptr && shared->acquire()) {
    shared->run(job, threads - 1);
    shared->release();
  } else {
    job.work();
  }
  job.rethrow();
}

}  // namespace

Provider own_provider(int threads) {
  if (threads < 1 || threads > kMostThreads) {
    throw std::invalid_argument("ffkern: a provider has 1 to " + std::to_string(kMostThreads) + " threads, not " +
                                std::to_string(threads));
  }
  int64_t most = most_threads.load(std::memory_order_relaxed);
  while (most < threads && !most_threads.compare_exchange_weak(most, threads, std::memory_order_relaxed)) {
  }
  return {own_gemm, run_tasks, threads};
}

int default_threads() {
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    char* end = nullptr;
    const long asked = std::strtol(text, &end, 10);
    if (end != text && (*end == '\0' || *end == ',') && asked > 0 && asked <= kMostThreads)
      return static_cast<int>(asked);
  }
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return CPU_COUNT(&allowed);
  const unsigned all = std::thread::hardware_concurrency();  // more CPUs than a cpu_set_t holds
  return all > 0 ? static_cast<int>(all) : 1;
}

}  // namespace ffkern::cpu
