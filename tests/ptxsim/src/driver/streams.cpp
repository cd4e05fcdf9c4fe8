// Streams and events. Work is done when it is submitted, so that there is nothing to wait for; what is checked is
// whether a call is permitted while streams are captured (graphs.cpp).
#include <chrono>

#include "driver.h"

namespace drv {
CUresult streamOf(Context* c, CUstream h, Stream*& s) {
  if (!h || h == CU_STREAM_LEGACY)
    s = &c->legacy;
  else if (h == CU_STREAM_PER_THREAD)
    s = &c->perThread;
  else {
    if (!isLive(h, 's')) return err(CUDA_ERROR_INVALID_HANDLE, "invalid or destroyed stream");
    s = (Stream*)h;
    if (s->c != c) return err(CUDA_ERROR_INVALID_HANDLE, "the stream belongs to another context");
  }
  if (s == &c->legacy)
    for (auto* k : captures)
      if (k->origin->c == c && !(k->origin->flags & CU_STREAM_NON_BLOCKING) &&
          k->mode != CU_STREAM_CAPTURE_MODE_RELAXED) {
        k->invalid = true;
        return err(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
                   "the legacy stream is used while a blocking stream is capturing");
      }
  return CUDA_SUCCESS;
}
double milliseconds() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace drv

API CUresult cuStreamCreateWithPriority(CUstream* h, unsigned flags, int prio) {
  ENTER();
  ARG(h);
  CONTEXT();
  ARG(flags <= 1);
  Stream* s = new Stream{c, flags, prio};
  c->streams.insert(s);
  live[s] = 's';
  *h = (CUstream)s;
  return CUDA_SUCCESS;
}
API CUresult cuStreamCreate(CUstream* h, unsigned flags) { return cuStreamCreateWithPriority(h, flags, 0); }
API CUresult cuStreamDestroy_v2(CUstream h) {
  ENTER();
  HANDLE(h, 's');
  Stream* s = (Stream*)h;
  TRY(notCapturing(s, "cuStreamDestroy"));
  live.erase(s);
  s->c->streams.erase(s);
  delete s;
  return CUDA_SUCCESS;
}
API CUresult cuStreamSynchronize(CUstream h) {
  ENTER();
  CONTEXT();
  Stream* s;
  TRY(streamOf(c, h, s));
  return notCapturing(s, "cuStreamSynchronize");
}
API CUresult cuStreamQuery(CUstream h) {
  ENTER();
  CONTEXT();
  Stream* s;
  TRY(streamOf(c, h, s));
  return notCapturing(s, "cuStreamQuery");
}
API CUresult cuStreamGetFlags(CUstream h, unsigned* f) {
  ENTER();
  ARG(f);
  CONTEXT();
  Stream* s;
  TRY(streamOf(c, h, s));
  *f = s->flags;
  return CUDA_SUCCESS;
}
API CUresult cuStreamGetPriority(CUstream h, int* p) {
  ENTER();
  ARG(p);
  CONTEXT();
  Stream* s;
  TRY(streamOf(c, h, s));
  *p = s->priority;
  return CUDA_SUCCESS;
}
API CUresult cuStreamGetCtx(CUstream h, CUcontext* p) {
  ENTER();
  ARG(p);
  CONTEXT();
  Stream* s;
  TRY(streamOf(c, h, s));
  *p = (CUcontext)s->c;
  return CUDA_SUCCESS;
}

API CUresult cuEventCreate(CUevent* p, unsigned flags) {
  ENTER();
  ARG(p);
  CONTEXT();
  Event* e = new Event{c, flags};
  c->events.insert(e);
  live[e] = 'e';
  *p = (CUevent)e;
  return CUDA_SUCCESS;
}
API CUresult cuEventRecord(CUevent h, CUstream sh) {
  ENTER();
  HANDLE(h, 'e');
  CONTEXT();
  Stream* s;
  TRY(streamOf(c, sh, s));
  Event* e = (Event*)h;
  if (e->c != s->c) return err(CUDA_ERROR_INVALID_HANDLE, "event and stream belong to different contexts");
  e->recorded = true;
  e->time = milliseconds();
  e->captureId = 0;
  e->seen.clear();
  if (s->capture) {
    e->captureId = s->capture->id;
    e->seen = s->capture->members[s];
  }
  return CUDA_SUCCESS;
}
API CUresult cuEventRecordWithFlags(CUevent h, CUstream s, unsigned) { return cuEventRecord(h, s); }
static CUresult evReady(Event* e) {
  if (Capture* k = e->captureId ? findCapture(e->captureId) : nullptr) {
    k->invalid = true;
    return err(CUDA_ERROR_CAPTURED_EVENT, "the event was last recorded in a capturing stream");
  }
  return CUDA_SUCCESS;
}
API CUresult cuEventSynchronize(CUevent h) {
  ENTER();
  HANDLE(h, 'e');
  CONTEXT();
  return evReady((Event*)h);
}
API CUresult cuEventQuery(CUevent h) {
  ENTER();
  HANDLE(h, 'e');
  CONTEXT();
  return evReady((Event*)h);
}
API CUresult cuEventElapsedTime(float* ms, CUevent a, CUevent b) {
  ENTER();
  ARG(ms);
  HANDLE(a, 'e');
  HANDLE(b, 'e');
  Event *x = (Event*)a, *y = (Event*)b;
  if (!x->recorded || !y->recorded || (x->flags | y->flags) & CU_EVENT_DISABLE_TIMING)
    return err(CUDA_ERROR_INVALID_HANDLE, "an event was not recorded or has no timing");
  TRY(evReady(x));
  TRY(evReady(y));
  *ms = (float)(y->time - x->time);
  return CUDA_SUCCESS;
}
API CUresult cuEventElapsedTime_v2(float* ms, CUevent a, CUevent b) { return cuEventElapsedTime(ms, a, b); }
API CUresult cuEventDestroy_v2(CUevent h) {
  ENTER();
  HANDLE(h, 'e');
  live.erase(h);
  ((Event*)h)->c->events.erase((Event*)h);
  delete (Event*)h;
  return CUDA_SUCCESS;
}
