// Stream capture and graphs. While a stream is captured, its work becomes nodes instead of being done. Other streams
// join by waiting on an event of the capture; each remembers how much of the others it has seen, so that a fork that is
// not joined again is found when the capture ends. A graph keeps its nodes in the order of their submission.
#include "driver.h"

namespace drv {
std::set<Capture*> captures;
static u64 captureCounter = 0;

Capture* findCapture(u64 id) {
  for (auto* k : captures)
    if (k->id == id) return k;
  return nullptr;
}
CUresult notWhileCapturing(const char* what) {  // calls not permitted while capturing
  for (auto* k : captures)
    if (k->mode == CU_STREAM_CAPTURE_MODE_GLOBAL ||
        (k->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && k->tid == std::this_thread::get_id())) {
      k->invalid = true;
      return err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s while a stream is capturing", what);
    }
  return CUDA_SUCCESS;
}
CUresult enqueue(Stream* s, const char* kind, std::function<CUresult()> f) {
  if (!s->capture) return f();
  if (s->capture->invalid)
    return err(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "the capture was invalidated by an earlier call");
  s->capture->graph->nodes.push_back({kind, std::move(f)});
  s->capture->members[s][s]++;
  return CUDA_SUCCESS;
}
CUresult notCapturing(Stream* s, const char* what) {
  if (!s->capture) return CUDA_SUCCESS;
  s->capture->invalid = true;
  return err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s on a capturing stream", what);
}
void dropCaptures() {
  for (auto* k : captures) {
    for (auto& m : k->members) m.first->capture = nullptr;
    delete k->graph;
    delete k;
  }
  captures.clear();
}
}  // namespace drv

API CUresult cuStreamWaitEvent(CUstream h, CUevent eh, unsigned) {
  ENTER();
  HANDLE(eh, 'e');
  CONTEXT();
  Stream* s;
  TRY(streamOf(c, h, s));
  Event* e = (Event*)eh;
  Capture* k = e->captureId ? findCapture(e->captureId) : nullptr;
  if (e->captureId && !k)
    return err(CUDA_ERROR_CAPTURED_EVENT, "the event was last recorded in a capture that has ended");
  if (k) {
    if (s->capture && s->capture != k) {
      s->capture->invalid = k->invalid = true;
      return err(CUDA_ERROR_STREAM_CAPTURE_MERGE, "the event belongs to another capture");
    }
    if (s == &c->legacy) return err(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "the legacy stream cannot join a capture");
    s->capture = k;
    for (auto& x : e->seen) {
      size_t& v = k->members[s][x.first];
      v = std::max(v, x.second);
    }
  } else if (s->capture && e->recorded) {
    s->capture->invalid = true;
    return err(CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
               "a capturing stream waits on an event recorded outside the capture");
  }
  return CUDA_SUCCESS;
}
API CUresult cuStreamBeginCapture_v2(CUstream h, CUstreamCaptureMode mode) {
  ENTER();
  CONTEXT();
  Stream* s;
  TRY(streamOf(c, h, s));
  if (s == &c->legacy) return err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the legacy stream cannot be captured");
  if (s->capture) return err(CUDA_ERROR_ILLEGAL_STATE, "the stream is already capturing");
  auto* k = new Capture{++captureCounter, s, mode, std::this_thread::get_id(), new Graph};
  k->members[s];
  s->capture = k;
  captures.insert(k);
  return CUDA_SUCCESS;
}
API CUresult cuStreamEndCapture(CUstream h, CUgraph* out) {
  ENTER();
  ARG(out);
  CONTEXT();
  *out = nullptr;
  Stream* s = h == CU_STREAM_PER_THREAD ? &c->perThread : isLive(h, 's') ? (Stream*)h : nullptr;
  if (!s) return err(CUDA_ERROR_INVALID_HANDLE, "invalid stream");
  Capture* k = s->capture;
  if (!k) return err(CUDA_ERROR_ILLEGAL_STATE, "the stream is not capturing");
  if (k->origin != s) {
    k->invalid = true;
    return err(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture did not begin on this stream");
  }
  if (k->mode != CU_STREAM_CAPTURE_MODE_RELAXED && k->tid != std::this_thread::get_id())
    return err(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "the capture began on another thread");
  bool unjoined = false;
  for (auto& m : k->members) {
    m.first->capture = nullptr;
    if (m.first != s && m.second[m.first] > k->members[s][m.first]) unjoined = true;
  }
  captures.erase(k);
  std::unique_ptr<Graph> g(k->graph);
  bool invalid = k->invalid;
  delete k;
  if (invalid) return err(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "the capture was invalidated by an earlier call");
  if (unjoined) return err(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "a forked stream has work that was not joined");
  live[g.get()] = 'g';
  *out = (CUgraph)g.release();
  return CUDA_SUCCESS;
}
API CUresult cuStreamIsCapturing(CUstream h, CUstreamCaptureStatus* st) {
  ENTER();
  ARG(st);
  CONTEXT();
  Stream* s = !h || h == CU_STREAM_LEGACY ? &c->legacy
              : h == CU_STREAM_PER_THREAD ? &c->perThread
              : isLive(h, 's')            ? (Stream*)h
                                          : nullptr;
  if (!s) return err(CUDA_ERROR_INVALID_HANDLE, "invalid stream");
  *st = !s->capture           ? CU_STREAM_CAPTURE_STATUS_NONE
        : s->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                              : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  return CUDA_SUCCESS;
}
API CUresult cuGraphInstantiateWithFlags(CUgraphExec* x, CUgraph g, unsigned long long) {
  ENTER();
  ARG(x);
  HANDLE(g, 'g');
  auto* e = new Graph{((Graph*)g)->nodes};
  live[e] = 'x';
  *x = (CUgraphExec)e;
  return CUDA_SUCCESS;
}
API CUresult cuGraphInstantiate_v2(CUgraphExec* x, CUgraph g, CUgraphNode* bad, char* log, size_t n) {
  if (bad) *bad = nullptr;
  if (log && n) *log = 0;
  return cuGraphInstantiateWithFlags(x, g, 0);
}
API CUresult cuGraphLaunch(CUgraphExec x, CUstream h) {
  ENTER();
  HANDLE(x, 'x');
  CONTEXT();
  Stream* s;
  TRY(streamOf(c, h, s));
  for (auto& o : ((Graph*)x)->nodes) TRY(enqueue(s, o.kind, o.run));
  return CUDA_SUCCESS;
}
API CUresult cuGraphGetNodes(CUgraph g, CUgraphNode* nodes, size_t* n) {
  ENTER();
  ARG(n);
  HANDLE(g, 'g');
  auto& ops = ((Graph*)g)->nodes;
  if (nodes)
    for (size_t i = 0; i < *n; i++) nodes[i] = i < ops.size() ? (CUgraphNode)&ops[i] : nullptr;
  *n = ops.size();
  return CUDA_SUCCESS;
}
API CUresult cuGraphDestroy(CUgraph g) {
  ENTER();
  HANDLE(g, 'g');
  live.erase(g);
  delete (Graph*)g;
  return CUDA_SUCCESS;
}
API CUresult cuGraphExecDestroy(CUgraphExec x) {
  ENTER();
  HANDLE(x, 'x');
  live.erase(x);
  delete (Graph*)x;
  return CUDA_SUCCESS;
}
