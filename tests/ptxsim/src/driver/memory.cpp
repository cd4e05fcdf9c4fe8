// Device memory, pinned and registered host memory, copies, pointer attributes.
#include <algorithm>
#include <cstdlib>

#include "driver.h"

namespace drv {
Memory memory;
std::map<u64, Allocation> allocations;
static u64 memoryUsed = 0;

// Host memory that kernels may touch at its own address: pinned, registered by the program, or by ptxsim_register.
struct Range {
  u64 start, size;
  unsigned flags;  // 1 read-only, 2 never written
  string name;
  char kind;  // h, r: as Allocation::kind; x: ptxsim_register
  int refs;
};
static vector<Range> ranges;

static void rebuildHost() {  // registered ranges -> disjoint lookup ranges; overlapping ones are merged
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.start < b.start; });
  std::map<u64, Alloc> nw;
  for (size_t i = 0; i < ranges.size();) {
    u64 s = ranges[i].start, e = s + ranges[i].size;
    unsigned ro = ranges[i].flags & 1, tr = ranges[i].flags & 2;
    string nm = ranges[i].name;
    size_t j = i + 1;
    for (; j < ranges.size() && ranges[j].start < e; j++) {
      e = std::max(e, ranges[j].start + ranges[j].size);
      ro &= ranges[j].flags;
      tr &= ranges[j].flags;
    }
    auto it = memory.host.find(s);
    if (it != memory.host.end() && it->second.size == e - s && it->second.track == !!tr)
      nw[s] = std::move(it->second);
    else {
      Alloc& a = nw[s];
      a.va = s;
      a.size = e - s;
      a.host = (u8*)s;
      a.owned = false;
      a.track = !!tr;
      if (tr) a.written.assign(e - s, 0);
    }
    nw[s].readonly = ro;
    nw[s].name = nm;
    i = j;
  }
  memory.host.swap(nw);
}
CUresult addRange(const void* p, u64 n, unsigned flags, const string& name, char kind) {
  u64 s = (u64)p;
  if (!p || !n) return err(CUDA_ERROR_INVALID_VALUE, "empty range");
  u64 w0 = s >> WSHIFT, w1 = (s + n - 1) >> WSHIFT;
  if ((w0 >= 1 && w0 < GLOBAL_WIN0 + MAX_ALLOCATIONS) || (w1 >= 1 && w1 < GLOBAL_WIN0 + MAX_ALLOCATIONS) || w0 > 0x1fff)
    return err(CUDA_ERROR_INVALID_VALUE, "host address %p lies in the emulator's own address windows", p);
  for (auto& r : ranges)
    if (r.start == s && r.size == n && r.kind == kind) {
      r.refs++;
      r.flags &= flags;
      if (kind == 'x' && !name.empty()) r.name = name;
      rebuildHost();
      return CUDA_SUCCESS;
    }
  ranges.push_back({s, n, flags, name, kind, 1});
  rebuildHost();
  return CUDA_SUCCESS;
}
CUresult removeRange(const void* p, char kind) {
  for (size_t i = 0; i < ranges.size(); i++)
    if (ranges[i].start == (u64)p && ranges[i].kind == kind) {
      if (!--ranges[i].refs) {
        ranges.erase(ranges.begin() + i);
        rebuildHost();
      }
      return CUDA_SUCCESS;
    }
  return err(CUDA_ERROR_INVALID_VALUE, "%p is not registered", p);
}
void mapHostPages() {
  memory.mapped.clear();
  if (!opt.host_access) return;
  FILE* f = fopen("/proc/self/maps", "r");
  if (!f) return;
  char line[512], perm[8];
  unsigned long a, b;
  while (fgets(line, sizeof line, f))
    if (sscanf(line, "%lx-%lx %7s", &a, &b, perm) == 3 && perm[0] == 'r' && perm[1] == 'w')
      memory.mapped.push_back({a, b});
  fclose(f);
  memory.any = Alloc();
  memory.any.size = ~0ull;
  memory.any.name = "host memory";
}
// host address of [va, va+n); null when not device-addressable
static u8* resolve(u64 va, u64 n, Alloc** al = nullptr) {
  Alloc* a = memory.find(va);
  if (!a || a == &memory.any || n > a->size || va - a->va > a->size - n) return nullptr;
  if (al) *al = a;
  return a->host + (va - a->va);
}
static bool isDevice(u64 va) {
  Alloc* a = memory.find(va);
  return a && a != &memory.any;
}
// The host address of [va, va + n) as the destination or the source of a copy.
static CUresult deviceRange(const char* what, u64 va, u64 n, u8*& p, Alloc*& a) {
  p = resolve(va, n, &a);
  if (!p)
    return err(CUDA_ERROR_INVALID_VALUE, "%s 0x%llx + %llu bytes is not inside a device allocation%s", what,
               (unsigned long long)va, (unsigned long long)n, memory.describe(va).c_str());
  if (a->readonly && *what == 'd')
    return err(CUDA_ERROR_INVALID_VALUE, "write to read-only buffer '%s'", a->name.c_str());
  return CUDA_SUCCESS;
}
enum Side { HOST, DEVICE_SIDE, EITHER };  // cuMemcpy finds out by the address
static bool onDevice(u64 va, Side side) {
  const u64 window = va >> WSHIFT;
  return side == DEVICE_SIDE ||
         (side == EITHER && (isDevice(va) || (window && window < GLOBAL_WIN0 + MAX_ALLOCATIONS)));
}
static CUresult copy(u64 d, u64 s, u64 n, Side dk, Side sk) {
  if (!n) return CUDA_SUCCESS;
  u8 *dp = (u8*)d, *sp = (u8*)s;
  Alloc *da = nullptr, *sa = nullptr;
  if (onDevice(d, dk)) TRY(deviceRange("destination", d, n, dp, da));
  if (onDevice(s, sk)) TRY(deviceRange("source", s, n, sp, sa));
  if (dk == HOST) resolve(d, n, &da);  // host memory may be registered, and then its bytes are tracked
  if (sk == HOST) resolve(s, n, &sa);
  if (!dp || !sp) return err(CUDA_ERROR_INVALID_VALUE, "null pointer");
  if (da && da->track) {
    u8* w = &da->written[dp - da->host];
    if (sa && sa->track)
      memmove(w, &sa->written[sp - sa->host], n);
    else
      memset(w, 1, n);
  }
  memmove(dp, sp, n);
  return CUDA_SUCCESS;
}
static CUresult fill(u64 d, u32 v, int w, u64 n) {
  if (!n) return CUDA_SUCCESS;
  if (d % w) return err(CUDA_ERROR_INVALID_VALUE, "memset destination is not aligned to %d bytes", w);
  u8* p;
  Alloc* a;
  TRY(deviceRange("destination", d, n * w, p, a));
  if (a->track) memset(&a->written[p - a->host], 1, n * w);
  for (u64 i = 0; i < n; i++) memcpy(p + i * w, &v, w);
  return CUDA_SUCCESS;
}
static CUresult allocate(Context* c, CUdeviceptr* out, size_t n) {
  if (!out) return err(CUDA_ERROR_INVALID_VALUE, "null result pointer");
  if (!n) return err(CUDA_ERROR_INVALID_VALUE, "size 0");
  if (memoryUsed + n > devices[c->dev].mem)
    return err(CUDA_ERROR_OUT_OF_MEMORY, "%zu bytes with %llu in use", n, (unsigned long long)memoryUsed);
  u8* h = (u8*)aligned_alloc(512, (n + 511) / 512 * 512);
  if (!h) return err(CUDA_ERROR_OUT_OF_MEMORY, "%zu bytes", n);
  if (opt.poison >= 0 && n <= GB) memset(h, (int)opt.poison, n);
  try {
    u64 va = memory.add(h, n, true, strf("allocation %llu", (unsigned long long)idCounter), false, opt.track_uninit);
    allocations[va] = {c, n, 'd', idCounter++};
    memoryUsed += n;
    *out = va;
  } catch (std::exception& e) {
    free(h);
    return err(CUDA_ERROR_OUT_OF_MEMORY, "%s", e.what());
  }
  return CUDA_SUCCESS;
}
CUresult freeAllocation(u64 va, char kind) {
  auto it = allocations.find(va);
  if (it == allocations.end() || it->second.kind != kind)
    return err(CUDA_ERROR_INVALID_VALUE, "0x%llx is not the start of a live allocation%s", (unsigned long long)va,
               memory.describe(va).c_str());
  if (kind == 'd') {
    memoryUsed -= it->second.size;
    memory.free(va);
  } else {
    removeRange((void*)va, kind);
    if (kind == 'h') free((void*)va);
  }
  allocations.erase(it);
  return CUDA_SUCCESS;
}
static const Allocation* owner(u64 va) {
  auto it = allocations.upper_bound(va);
  if (it == allocations.begin()) return nullptr;
  --it;
  return va - it->first < it->second.size ? &it->second : nullptr;
}

void clearRanges() {
  ranges.clear();
  rebuildHost();
}
}  // namespace drv

API CUresult cuMemAlloc_v2(CUdeviceptr* p, size_t n) {
  ENTER();
  CONTEXT();
  TRY(notWhileCapturing("cuMemAlloc"));
  return allocate(c, p, n);
}
API CUresult cuMemFree_v2(CUdeviceptr p) {
  ENTER();
  CONTEXT();
  if (!p) return CUDA_SUCCESS;
  TRY(notWhileCapturing("cuMemFree"));
  return freeAllocation(p, 'd');
}
API CUresult cuMemAllocAsync(CUdeviceptr* p, size_t n, CUstream h) {
  ENTER();
  CONTEXT();
  Stream* s;
  TRY(streamOf(c, h, s));
  if (s->capture) return err(CUDA_ERROR_NOT_SUPPORTED, "graph memory nodes are not implemented");
  return allocate(c, p, n);
}
API CUresult cuMemFreeAsync(CUdeviceptr p, CUstream h) {
  ENTER();
  CONTEXT();
  Stream* s;
  TRY(streamOf(c, h, s));
  if (s->capture) return err(CUDA_ERROR_NOT_SUPPORTED, "graph memory nodes are not implemented");
  return freeAllocation(p, 'd');
}
API CUresult cuMemHostAlloc(void** p, size_t n, unsigned) {
  ENTER();
  ARG(p && n);
  CONTEXT();
  TRY(notWhileCapturing("cuMemHostAlloc"));
  void* h = aligned_alloc(4096, (n + 4095) / 4096 * 4096);
  if (!h) return err(CUDA_ERROR_OUT_OF_MEMORY, "%zu bytes", n);
  if (CUresult r = addRange(h, n, 0, strf("pinned host allocation %llu", (unsigned long long)idCounter), 'h')) {
    free(h);
    return r;
  }
  allocations[(u64)h] = {c, n, 'h', idCounter++};
  *p = h;
  return CUDA_SUCCESS;
}
API CUresult cuMemAllocHost_v2(void** p, size_t n) { return cuMemHostAlloc(p, n, 0); }
API CUresult cuMemFreeHost(void* p) {
  ENTER();
  CONTEXT();
  return freeAllocation((u64)p, 'h');
}
API CUresult cuMemHostRegister_v2(void* p, size_t n, unsigned flags) {
  ENTER();
  ARG(p && n);
  CONTEXT();
  if (owner((u64)p)) return err(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "%p is already registered", p);
  TRY(addRange(p, n, flags & CU_MEMHOSTREGISTER_READ_ONLY ? 1 : 0, strf("registered host range %p", p), 'r'));
  allocations[(u64)p] = {c, n, 'r', idCounter++};
  return CUDA_SUCCESS;
}
API CUresult cuMemHostUnregister(void* p) {
  ENTER();
  CONTEXT();
  auto it = allocations.find((u64)p);
  if (it == allocations.end() || it->second.kind != 'r')
    return err(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "%p is not registered", p);
  return freeAllocation((u64)p, 'r');
}
API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* d, void* p, unsigned) {
  ENTER();
  ARG(d);
  CONTEXT();
  if (!isDevice((u64)p)) return err(CUDA_ERROR_INVALID_VALUE, "%p is not registered host memory", p);
  *d = (CUdeviceptr)p;
  return CUDA_SUCCESS;
}
API CUresult cuMemGetInfo_v2(size_t* fr, size_t* total) {
  ENTER();
  CONTEXT();
  if (fr) *fr = devices[c->dev].mem - memoryUsed;
  if (total) *total = devices[c->dev].mem;
  return CUDA_SUCCESS;
}
API CUresult cuMemGetAddressRange_v2(CUdeviceptr* b, size_t* n, CUdeviceptr p) {
  ENTER();
  Alloc* a = memory.find(p);
  if (!a || p - a->va >= a->size)
    return err(CUDA_ERROR_NOT_FOUND, "0x%llx is not device memory", (unsigned long long)p);
  if (b) *b = a->va;
  if (n) *n = a->size;
  return CUDA_SUCCESS;
}
#define SYNCCOPY(name, D, S, dk, sk)        \
  API CUresult name(D d, S s, size_t n) {   \
    ENTER();                                \
    CONTEXT();                              \
    TRY(notWhileCapturing(#name));          \
    Stream* stream;                         \
    TRY(streamOf(c, nullptr, stream));      \
    return copy((u64)d, (u64)s, n, dk, sk); \
  }
#define ASYNCCOPY(name, D, S, dk, sk)                                                  \
  API CUresult name(D d, S s, size_t n, CUstream h) {                                  \
    ENTER();                                                                           \
    CONTEXT();                                                                         \
    Stream* stream;                                                                    \
    TRY(streamOf(c, h, stream));                                                       \
    return enqueue(stream, "memcpy", [=] { return copy((u64)d, (u64)s, n, dk, sk); }); \
  }
SYNCCOPY(cuMemcpyHtoD_v2, CUdeviceptr, const void*, DEVICE_SIDE, HOST)
SYNCCOPY(cuMemcpyDtoH_v2, void*, CUdeviceptr, HOST, DEVICE_SIDE)
SYNCCOPY(cuMemcpyDtoD_v2, CUdeviceptr, CUdeviceptr, DEVICE_SIDE, DEVICE_SIDE)
SYNCCOPY(cuMemcpy, CUdeviceptr, CUdeviceptr, EITHER, EITHER)
ASYNCCOPY(cuMemcpyHtoDAsync_v2, CUdeviceptr, const void*, DEVICE_SIDE, HOST)
ASYNCCOPY(cuMemcpyDtoHAsync_v2, void*, CUdeviceptr, HOST, DEVICE_SIDE)
ASYNCCOPY(cuMemcpyDtoDAsync_v2, CUdeviceptr, CUdeviceptr, DEVICE_SIDE, DEVICE_SIDE)
ASYNCCOPY(cuMemcpyAsync, CUdeviceptr, CUdeviceptr, EITHER, EITHER)
#define MEMSET(w, T)                                                           \
  API CUresult cuMemsetD##w##_v2(CUdeviceptr d, T v, size_t n) {               \
    ENTER();                                                                   \
    CONTEXT();                                                                 \
    TRY(notWhileCapturing("cuMemset"));                                        \
    Stream* stream;                                                            \
    TRY(streamOf(c, nullptr, stream));                                         \
    return fill(d, v, w / 8, n);                                               \
  }                                                                            \
  API CUresult cuMemsetD##w##Async(CUdeviceptr d, T v, size_t n, CUstream h) { \
    ENTER();                                                                   \
    CONTEXT();                                                                 \
    Stream* stream;                                                            \
    TRY(streamOf(c, h, stream));                                               \
    return enqueue(stream, "memset", [=] { return fill(d, v, w / 8, n); });    \
  }
MEMSET(8, unsigned char)
MEMSET(16, unsigned short)
MEMSET(32, unsigned)
static CUresult ptrAttr(void* o, CUpointer_attribute a, CUdeviceptr p) {
  Alloc* al = memory.find(p);
  if (al && (al == &memory.any || p - al->va >= al->size)) al = nullptr;
  if (!al) return CUDA_ERROR_INVALID_VALUE;
  const Allocation* r = owner(p);
  bool win = p >> WSHIFT >= GLOBAL_WIN0 && p >> WSHIFT < GLOBAL_WIN0 + MAX_ALLOCATIONS;
  bool host = r && r->kind != 'd';
  Context* c = r ? r->c : contextStack.empty() ? contexts[0].get() : contextStack.back();
  switch (a) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      *(CUcontext*)o = (CUcontext)c;
      break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *(unsigned*)o = host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
      break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      *(CUdeviceptr*)o = p;
      break;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      if (win) return CUDA_ERROR_INVALID_VALUE;
      *(void**)o = (void*)p;
      break;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
      *(u64*)o = r ? r->id : al->va;
      break;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
      *(unsigned*)o = 0;
      break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      *(int*)o = c->dev;
      break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      *(CUdeviceptr*)o = al->va;
      break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      *(size_t*)o = al->size;
      break;
    case CU_POINTER_ATTRIBUTE_MAPPED:
      *(unsigned*)o = 1;
      break;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}
API CUresult cuPointerGetAttribute(void* o, CUpointer_attribute a, CUdeviceptr p) {
  ENTER();
  ARG(o);
  CUresult r = ptrAttr(o, a, p);
  return r ? err(r, "attribute %d of pointer 0x%llx", (int)a, (unsigned long long)p) : r;
}
API CUresult cuPointerGetAttributes(unsigned n, CUpointer_attribute* a, void** o, CUdeviceptr p) {
  ENTER();
  ARG(a && o && n);
  for (unsigned i = 0; i < n; i++)
    if (ptrAttr(o[i], a[i], p)) switch (a[i]) {
        case CU_POINTER_ATTRIBUTE_CONTEXT:
        case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        case CU_POINTER_ATTRIBUTE_BUFFER_ID:
        case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
          *(u64*)o[i] = 0;
          break;
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
          *(int*)o[i] = -2;
          break;
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
        case CU_POINTER_ATTRIBUTE_MAPPED:
          *(unsigned*)o[i] = 0;
          break;
        default:
          return err(CUDA_ERROR_INVALID_VALUE, "attribute %d", (int)a[i]);
      }
  return CUDA_SUCCESS;
}
