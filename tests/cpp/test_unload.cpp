// A program that loads libffkern.so, uses its threads, unloads it and goes on: `test_unload path/to/libffkern.so`.
#include <dlfcn.h>

#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "cpu/provider.h"

int main(int argc, char** argv) {
  using ffkern::cpu::Provider;
  if (argc != 2) return 2;
  for (int round = 0; round < 3; ++round) {
    void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    void* symbol = library != nullptr ? dlsym(library, "_ZN6ffkern3cpu12own_providerEi") : nullptr;
    if (symbol == nullptr) {
      std::fprintf(stderr, "FAILED: %s\n", dlerror());
      return 1;
    }
    const Provider provider = reinterpret_cast<Provider (*)(int)>(symbol)(4);
    for (int call = 0; call < 100; ++call) {
      std::vector<int> runs(4);
      ffkern::cpu::parallel_tasks(provider, 4, [&](int64_t t) { ++runs[static_cast<size_t>(t)]; });
      if (runs != std::vector<int>(4, 1)) return 1;
    }
    if (dlclose(library) != 0) return 1;
    // Threads whose code was gone would crash now, as they fall asleep.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  std::printf("unloading: 0 failures\n");
  return 0;
}
