// Global memory: placing, finding and naming buffers.
#include "memory.h"

#include <cstdlib>

namespace ptx {

u64 Memory::add(void* host, u64 size, bool owned, const std::string& name, bool ro, bool track) {
  std::lock_guard<std::mutex> l(mu);
  constexpr size_t N = MAX_ALLOCATIONS;
  if (a.capacity() < N) a.reserve(N);
  size_t i = next % N, tries = 0;
  while (i < a.size() && a[i].live) {
    i = (i + 1) % N;
    if (++tries > N) throw Error("too many allocations");
  }
  next = i + 1;
  if (i >= a.size()) a.resize(i + 1);
  if (size >= (1ull << WSHIFT) - 8192) throw Error("buffer larger than 16 GiB");
  Alloc& x = a[i];
  x = Alloc();
  x.va = ((i + GLOBAL_WIN0) << WSHIFT) + 4096;
  x.size = size;
  x.host = (u8*)host;
  x.owned = owned;
  x.name = name;
  x.readonly = ro;
  x.track = track;
  x.live = true;
  if (track) x.written.assign(size, 0);
  return x.va;
}
void Memory::free(u64 va) {
  std::lock_guard<std::mutex> l(mu);
  Alloc* x = find(va);
  if (!x) return;
  if (x->owned) ::free(x->host);
  x->live = false;
  x->written.clear();
}

Alloc* Memory::findHost(u64 va) {
  auto it = host.upper_bound(va);
  if (it != host.begin()) {
    --it;
    if (va - it->first < it->second.size) return &it->second;
  }
  for (auto& p : mapped)
    if (va >= p.first && va < p.second) return &any;
  return nullptr;
}
std::string Memory::describe(u64 va) {
  Alloc* x = nullptr;
  bool dead = false;
  u64 i = (va >> WSHIFT) - GLOBAL_WIN0;
  if (i < a.size()) {
    x = &a[i];
    dead = !x->live;
  } else if (!host.empty()) {
    auto it = host.upper_bound(va);
    u64 best = ~0ull;
    if (it != host.end()) x = &it->second, best = it->first - va;
    if (it != host.begin()) {
      --it;
      if (va - it->first < it->second.size || va - it->first - it->second.size < best) x = &it->second;
    }
    if (x && va - x->va + (1 << 20) > x->size + (2 << 20)) x = nullptr;
  }
  if (!x || !x->va) return va < 4096 ? " (null pointer)" : "";
  return strf(" (%lld bytes past the start of %s'%s', whose size is %llu)", (long long)(va - x->va),
              dead ? "freed " : "", x->name.c_str(), (unsigned long long)x->size);
}
}  // namespace ptx
