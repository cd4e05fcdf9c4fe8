// Global memory as kernels see it: buffers with exact bounds, shared by the parser (module variables), the executor and
// the software driver.
#pragma once
#include <map>
#include <mutex>
#include <vector>

#include "types.h"

namespace ptx {

struct Alloc {
  u64 va;
  u64 size;
  u8* host;
  bool owned, live = true, readonly = false, track = false;
  std::vector<u8> written;  // with `track`: one flag a byte
  std::string name;
};

struct Memory {
  std::vector<Alloc> a;
  std::map<u64, Alloc> host;                // registered host ranges by start address, disjoint
  std::vector<std::pair<u64, u64>> mapped;  // last resort: host pages addressable without registration (start, end)
  Alloc any;
  size_t next = 0;  // slots are reused as late as possible, so that freed addresses stay invalid
  std::mutex mu;

  u64 add(void* host, u64 size, bool owned, const std::string& name, bool readonly = false, bool track = false);
  void free(u64 va);
  Alloc* find(u64 va) {
    u64 i = (va >> WSHIFT) - GLOBAL_WIN0;
    if (i < a.size()) return a[i].live ? &a[i] : nullptr;
    return host.empty() && mapped.empty() ? nullptr : findHost(va);
  }
  Alloc* findHost(u64 va);
  bool isGlobal(u64 va) { return va >> WSHIFT >= GLOBAL_WIN0 || (va >> WSHIFT == 0 && find(va)); }
  std::string describe(u64 va);  // the nearest buffer, for messages
};
}  // namespace ptx
