// Primary contexts, and the stack of current contexts of each thread.
#include "driver.h"

namespace drv {
vector<std::unique_ptr<Context>> contexts;
std::unordered_map<const void*, char> live;
u64 idCounter = 1;
thread_local vector<Context*> contextStack;

bool isLive(const void* h, char kind) {
  auto it = live.find(h);
  return it != live.end() && it->second == kind;
}
CUresult currentContext(Context*& c) {
  c = contextStack.empty() ? nullptr : contextStack.back();
  if (!c) return err(CUDA_ERROR_INVALID_CONTEXT, "no context is current on this thread");
  if (!c->active) return err(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the current primary context has been released");
  const CUresult pending = c->pending;
  if (!opt.sticky_errors) c->pending = CUDA_SUCCESS;
  return pending;
}
void resetContext(Context* c) {
  while (!c->modules.empty()) unloadModule(*c->modules.begin());
  for (auto* s : c->streams) {
    live.erase(s);
    delete s;
  }
  for (auto* e : c->events) {
    live.erase(e);
    delete e;
  }
  c->streams.clear();
  c->events.clear();
  for (auto it = allocations.begin(); it != allocations.end();) {
    u64 va = it->first;
    char kind = it->second.kind;
    bool mine = it->second.c == c;
    ++it;
    if (mine) freeAllocation(va, kind);
  }
  c->pending = CUDA_SUCCESS;
  c->active = false;
}
}  // namespace drv

API CUresult cuDevicePrimaryCtxRetain(CUcontext* p, CUdevice d) {
  ENTER();
  ARG(p);
  DEVICE(d);
  Context* c = contexts[d].get();
  c->refs++;
  if (!c->active) c->id = idCounter++;
  c->active = true;
  *p = (CUcontext)c;
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice d) {
  ENTER();
  DEVICE(d);
  Context* c = contexts[d].get();
  if (!c->refs) return err(CUDA_ERROR_INVALID_CONTEXT, "the primary context is not retained");
  if (!--c->refs) resetContext(c);
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxReset_v2(CUdevice d) {
  ENTER();
  DEVICE(d);
  Context* c = contexts[d].get();
  resetContext(c);
  c->active = c->refs > 0;
  c->id = idCounter++;
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned* flags, int* active) {
  ENTER();
  DEVICE(d);
  ARG(flags && active);
  *flags = contexts[d]->flags;
  *active = contexts[d]->active;
  return CUDA_SUCCESS;
}
static bool isCtx(CUcontext h) {
  for (auto& c : contexts)
    if ((Context*)h == c.get()) return true;
  return false;
}
API CUresult cuCtxGetCurrent(CUcontext* p) {
  ENTER();
  ARG(p);
  *p = (CUcontext)(contextStack.empty() ? nullptr : contextStack.back());
  return CUDA_SUCCESS;
}
API CUresult cuCtxSetCurrent(CUcontext h) {
  ENTER();
  if (h && !isCtx(h)) return err(CUDA_ERROR_INVALID_CONTEXT, "unknown context");
  if (!contextStack.empty()) contextStack.pop_back();
  if (h) contextStack.push_back((Context*)h);
  return CUDA_SUCCESS;
}
API CUresult cuCtxPushCurrent_v2(CUcontext h) {
  ENTER();
  if (!isCtx(h)) return err(CUDA_ERROR_INVALID_CONTEXT, "unknown context");
  contextStack.push_back((Context*)h);
  return CUDA_SUCCESS;
}
API CUresult cuCtxPopCurrent_v2(CUcontext* p) {
  ENTER();
  if (contextStack.empty()) return err(CUDA_ERROR_INVALID_CONTEXT, "the context stack is empty");
  if (p) *p = (CUcontext)contextStack.back();
  contextStack.pop_back();
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetDevice(CUdevice* d) {
  ENTER();
  ARG(d);
  CONTEXT();
  *d = c->dev;
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetId(CUcontext h, unsigned long long* id) {
  ENTER();
  ARG(id);
  Context* c = h ? (Context*)h : contextStack.empty() ? nullptr : contextStack.back();
  if (!c || !isCtx((CUcontext)c)) return err(CUDA_ERROR_INVALID_CONTEXT, "unknown context");
  *id = c->id;
  return CUDA_SUCCESS;
}
API CUresult cuCtxSynchronize(void) {
  ENTER();
  CONTEXT();
  for (auto* k : captures)
    if (k->origin->c == c) {
      k->invalid = true;
      return err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuCtxSynchronize while a stream is capturing");
    }
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetStreamPriorityRange(int* lo, int* hi) {
  ENTER();
  CONTEXT();
  if (lo) *lo = 0;
  if (hi) *hi = -5;
  return CUDA_SUCCESS;
}
