// Barriers of a block (bar.sync, bar.arrive, bar.red, with numbers and thread counts) and of a cluster.
#include <algorithm>

#include "exec.h"

namespace ptx {

static u32 waitingAt(const Warp& w, int id) {
  u32 r = 0;
  for (u32 q = w.barWait; q; q &= q - 1)
    if (w.barId[std::countr_zero(q)] == id) r |= q & -q;
  return r;
}
void Exec::barFinish(Block& b, int id) {
  NBar& n = b.bar[id];
  u32 waiting = 0;
  for (auto& w : b.w) waiting += std::popcount(waitingAt(w, id));
  const bool everyone = waiting == b.nthreads;
  for (auto& w : b.w) {
    const u32 mine = waitingAt(w, id);
    if (chk && everyone) {
      w.floor = w.wfloor = b.stamp;
      if (!n.vc.empty()) {
        if (w.vc.empty()) w.vc.assign(NVC, 0);
        for (u32 i = AG_WG; i < NVC; i++) w.vc[i] = std::max(w.vc[i], n.vc[i]);
      }
    } else if (chk && mine) {
      acquire(w, n.vc, n.floor);
      if (mine == w.live) w.wfloor = b.stamp;
    }
    forLanes(mine, [&](int l) {
      const Instr& in = k.code[w.pc[l] - 1];
      if (in.op == O_BAR && in.sub == BAR_RED)
        wr(w, in.o[0], l, in.bop == B_POPC ? n.countTrue : in.bop == B_AND ? n.allTrue & 1 : n.anyTrue);
    });
    w.barWait &= ~mine;
  }
  if (chk) bump(b);
  n = NBar();
  b.g->progress++;
  st.barriers++;
}
void Exec::arrive(Warp& w, const Instr& in, u32 mk, u32 pc) {
  Block& b = *w.b;
  const int first = std::countr_zero(mk);
  const u32 id = rd(w, in.o[1], first);
  if (id > 15) fail(w, first, "barrier id %u", id);
  for (u32 q = mk; q; q &= q - 1)
    if (rd(w, in.o[1], std::countr_zero(q)) != id) fail(w, first, "barrier id differs between lanes");
  NBar& n = b.bar[id];
  const bool hasCount = in.o[2].k;
  u32 expected = b.nthreads - (cfg.exitedAtBarrier ? b.exited : 0), count = std::popcount(mk);
  if (hasCount) {  // a warp counts as a whole
    expected = rd(w, in.o[2], first);
    count = 32;
    if (expected == 0 || expected % 32 || expected > (b.nthreads + 31) / 32 * 32)
      fail(w, first, "barrier %u thread count %u is not valid for a block of %u threads", id, expected, b.nthreads);
  }
  if (n.used && (n.hasCount || hasCount) && n.expected != expected)
    fail(w, first, "barrier %u used with thread counts %u and %u at once", id, n.expected, expected);
  n.hasCount |= hasCount && !n.used;
  n.expected = expected;
  n.used = true;
  n.arrived += count;
  if (in.sub == BAR_RED) {
    const u32 p = pmask(w, in.o[3]);
    n.anyTrue |= (p & mk) != 0;
    if (mk & ~p) n.allTrue = 0;
    n.countTrue += std::popcount(p & mk);
  }
  if (hasCount || k.usesAsyncProxy) release(w, mk, n.vc, n.floor);
  if (n.arrived > n.expected)
    fail(w, first, "barrier %u: more threads arrived (%u) than expected (%u)", id, n.arrived, n.expected);
  if (in.sub != BAR_ARRIVE)
    forLanes(mk, [&](int l) {
      w.barWait |= 1u << l;
      w.barId[l] = id;
      w.pc[l] = pc + 1;
    });
  else if (chk)
    bump(b);
  b.g->progress++;
  if (n.arrived == n.expected) barFinish(b, id);
}
Flow Exec::barrier(Warp& w, const Instr& in, Step& s) {
  u32 em = s.em;
  save(w, s.mask & ~em, s.pc + 1);
  if (!(in.flags & F_NOALIGN)) {  // .aligned: all lanes of the warp come together
    save(w, em, s.pc);
    em = gather(w, em, w.exists & w.live, false, s.pc);
    if (!em) return RESELECT;
  }
  arrive(w, in, em, s.pc);
  if (in.sub == BAR_ARRIVE) {
    if (em == s.mask) return NEXT;
    save(w, em, s.pc + 1);
  }
  return RESELECT;
}

// ---- barrier.cluster
Flow Exec::clusterArrive(Warp& w, Step& s) {
  save(w, s.em, s.pc);
  save(w, s.mask & ~s.em, s.pc + 1);
  const u32 go = gather(w, s.em, w.exists & w.live, false, s.pc);
  if (!go) return RESELECT;
  Group& g = *w.b->g;
  if (w.clArrived) fail(w, -1, "barrier.cluster.arrive twice without a wait");
  w.clArrived = true;
  w.clPhase = g.clPhase;
  bool all = true;
  for (auto* b : g.b)
    for (auto& x : b->w) all &= !x.live || (x.clArrived && x.clPhase == g.clPhase);
  g.progress++;
  if (all) g.clPhase++;
  save(w, go, s.pc + 1);
  return RESELECT;
}
Flow Exec::clusterWait(Warp& w, Step& s) {
  if (!w.clArrived) fail(w, -1, "barrier.cluster.wait without arrive");
  if (w.b->g->clPhase == w.clPhase) return yield(w, s, s.pc);
  w.clArrived = false;
  if (chk) {
    bump(*w.b);
    w.floor = w.wfloor = w.b->stamp - 1;
  }
  st.barriers++;
  return NEXT;
}
}  // namespace ptx
