// The thread pool: every task once, from several callers, nested, with exceptions, after fork(), and a training step
// with the bits of a serial loop. Also built with ThreadSanitizer.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace {

using ffkern::cpu::own_provider;
using ffkern::cpu::parallel_tasks;
using ffkern::cpu::Provider;

std::atomic<int> failures{0};

void expect(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

/// A run of `tasks` tasks, each of which must run once. Plain ints: a task that two threads ran is a race.
bool all_once(const Provider& provider, int64_t tasks) {
  std::vector<int> runs(static_cast<size_t>(tasks));
  parallel_tasks(provider, tasks, [&](int64_t t) { ++runs[static_cast<size_t>(t)]; });
  for (int n : runs) {
    if (n != 1) return false;
  }
  return true;
}

void check_tasks() {
  for (int threads : {1, 2, 3, 8}) {
    const Provider provider = own_provider(threads);
    expect(provider.threads == threads, "a provider has the threads that were asked for");
    for (int64_t tasks : {0, 1, 2, 3, 8, 100}) {
      expect(all_once(provider, tasks), std::to_string(tasks) + " tasks on " + std::to_string(threads) + " threads");
    }
  }
  bool refused = false;
  try {
    own_provider(0);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  expect(refused, "a provider without threads must be refused");
}

/// Two tasks that wait for each other end only if two threads run them.
void check_helpers() {
  std::atomic<int> arrived{0};
  std::atomic<bool> together{true};
  parallel_tasks(own_provider(2), 2, [&](int64_t) {
    ++arrived;
    const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (arrived < 2) {
      if (std::chrono::steady_clock::now() > patience) {
        together = false;
        return;
      }
      std::this_thread::yield();
    }
  });
  expect(together, "two tasks do not run at the same time");
}

void check_nested() {
  const Provider provider = own_provider(3);
  std::atomic<int> wrong{0};
  parallel_tasks(provider, 3, [&](int64_t) {
    const auto self = std::this_thread::get_id();
    bool here = true;
    parallel_tasks(provider, 5, [&](int64_t) { here = here && std::this_thread::get_id() == self; });
    if (!here) ++wrong;
  });
  expect(wrong == 0, "tasks of a nested call run on the thread that made it");
}

void check_callers() {
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([c] {
      const Provider provider = own_provider(2 + c);
      bool right = true;
      for (int round = 0; round < 300; ++round) right = right && all_once(provider, 1 + (round + c) % 9);
      expect(right, "tasks of several callers at once");
    });
  }
  for (std::thread& caller : callers) caller.join();
}

void check_exceptions() {
  for (int threads : {1, 3}) {
    const Provider provider = own_provider(threads);
    for (int round = 0; round < 20; ++round) {
      std::vector<int> runs(9);
      std::string caught;
      try {
        parallel_tasks(provider, 9, [&](int64_t t) {
          ++runs[static_cast<size_t>(t)];
          if (t % 3 == 2) throw std::runtime_error("task " + std::to_string(t));
        });
      } catch (const std::runtime_error& e) {
        caught = e.what();
      }
      expect(caught == "task 2", "the exception of the lowest task reaches the caller, not '" + caught + "'");
      expect(runs == std::vector<int>(9, 1), "the other tasks run all the same");
      expect(all_once(provider, 9), "the pool works after an exception");
    }
  }
}

/// Two threads keep an exception at the same time: ThreadSanitizer watches.
void check_exceptions_at_once() {
  std::atomic<int> arrived{0};
  std::string caught;
  try {
    parallel_tasks(own_provider(2), 2, [&](int64_t t) {
      ++arrived;
      while (arrived < 2) std::this_thread::yield();  // check_helpers() has shown that both run
      throw std::runtime_error("task " + std::to_string(t));
    });
  } catch (const std::runtime_error& e) {
    caught = e.what();
  }
  expect(caught == "task 0", "the exception of the lower of two tasks reaches the caller, not '" + caught + "'");
}

/// Forks again and again while another thread has the pool, so that some children inherit locks that are held.
void check_fork() {
#ifdef __SANITIZE_THREAD__
  return;  // it takes the threads of a child for those of its parent
#endif
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) all_once(own_provider(2), 2);
  });
  int good = 0;
  constexpr int kChildren = 20;
  for (int n = 0; n < kChildren && good == n; ++n) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);  // ends a child that hangs
      bool right = true;
      for (int round = 0; round < 50; ++round) right = right && all_once(own_provider(3), 7);
      const int before = failures;
      check_helpers();
      _exit(right && failures == before ? 0 : 1);
    }
    int status = 0;
    good += waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  stop = true;
  busy.join();
  expect(good == kChildren, std::to_string(good) + " of " + std::to_string(kChildren) + " children of fork() work");
  expect(all_once(own_provider(3), 7), "the pool works after fork()");
}

/// Weights after three steps.
std::vector<float> train(const Provider& provider) {
  const int64_t rows = 300, inputs = 90, units = 130;
  uint32_t seed = 1;
  auto numbers = [&](int64_t n) {
    std::vector<float> out(static_cast<size_t>(n));
    for (float& v : out) {
      seed = seed * 1664525u + 1013904223u;
      v = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
    }
    return out;
  };
  const auto x = numbers(rows * inputs);
  auto weight = numbers(units * inputs), bias = numbers(units);
  std::vector<float> weight_state(2 * weight.size()), bias_state(2 * bias.size()), sign(static_cast<size_t>(rows));
  for (size_t i = 0; i < sign.size(); ++i) sign[i] = i % 2 == 0 ? 1.0f : -1.0f;
  double stats[ffkern::kStatCount] = {};
  ffkern::cpu::Step step;
  step.layer.x = x.data();
  step.layer.ldx = inputs;
  step.layer.weight = weight.data();
  step.layer.bias = bias.data();
  step.layer.images = rows;
  step.layer.inputs = inputs;
  step.layer.units = units;
  step.lesson.sign = sign.data();
  step.optimiser.lr = 0.01;
  step.trained = {weight.data(), bias.data(), weight_state.data(), bias_state.data()};
  step.stats = stats;
  std::vector<float> scratch(
      static_cast<size_t>(ffkern::cpu::step_floats(provider, step.layer, false, step.optimiser.kind)));
  for (step.optimiser.step = 1; step.optimiser.step <= 3; ++step.optimiser.step) {
    ffkern::cpu::step(provider, step, scratch.data());
  }
  return weight;
}

void check_training() {
  for (int threads : {1, 2, 5}) {
    const Provider serial{ffkern::cpu::own_gemm,
                          [](int64_t tasks, void (*fn)(int64_t, void*), void* context) {
                            for (int64_t t = 0; t < tasks; ++t) fn(t, context);
                          },
                          threads};
    const auto want = train(serial), got = train(own_provider(threads));
    expect(std::memcmp(want.data(), got.data(), sizeof(float) * want.size()) == 0,
           "training on " + std::to_string(threads) + " threads has the bits of a loop over the same tasks");
  }
}

void check_default_threads() {
  const char* texts[] = {"3", "3,2", "0", "-1", "many", "3 threads", ""};
  unsetenv("OMP_NUM_THREADS");
  const int cpus = ffkern::cpu::default_threads();
  expect(cpus >= 1, "this process may run on at least one CPU");
  for (const char* text : texts) {
    setenv("OMP_NUM_THREADS", text, 1);
    const int want = text == texts[0] || text == texts[1] ? 3 : cpus;
    expect(ffkern::cpu::default_threads() == want, std::string("OMP_NUM_THREADS='") + text + "'");
  }
}

}  // namespace

int main() {
  check_tasks();
  check_helpers();
  check_nested();
  check_callers();
  check_exceptions();
  check_exceptions_at_once();
  check_fork();
  check_training();
  check_default_threads();
  std::printf("thread pool: %d failures\n", failures.load());
  return failures == 0 ? 0 : 1;
}
