// Operations between the lanes of a warp: shfl, vote, match, redux, elect, bar.warp.sync.
#include "exec.h"

namespace ptx {

// Lanes `em` are at a .sync instruction with member mask `members`. Returns the lanes that execute it now, or 0 after
// parking them until the others come. anyPc: the members may wait at different instructions (bar.warp.sync).
u32 Exec::gather(Warp& w, u32 em, u32 members, bool anyPc, u32 pc) {
  u32 want = members & w.exists;
  if (em & ~members)
    fail(w, std::countr_zero(em & ~members),
         "lane executes a .sync instruction whose member mask 0x%08x does not include it", members);
  if (want & ~w.live) {
    if (!anyPc) fail(w, std::countr_zero(em), "member mask 0x%08x names exited lanes (live 0x%08x)", members, w.live);
    want &= w.live;
  }
  if (!(want & ~em)) return em;
  u32 all = em;
  for (u32 q = w.parked & want & ~em; q; q &= q - 1) {
    const int l = std::countr_zero(q);
    if (anyPc ? k.code[w.pc[l]].op == O_BARWARP : w.pc[l] == pc) all |= 1u << l;
  }
  if (want & ~all) {
    w.parked |= em;
    return 0;
  }
  w.parked &= ~all;
  return all;
}
// Lanes that name the same members execute together; there may be several such sets in one instruction.
Flow Exec::warpOp(Warp& w, const Instr& in, Step& s) {
  const Opnd& members = in.o[in.op == O_SHFL ? 4 : in.op == O_BARWARP ? 0 : 2];
  const bool barrier = in.op == O_BARWARP;
  u32 ran = 0;
  bool waiting = false;
  save(w, s.mask, s.pc);
  for (u32 rest = s.em; rest;) {
    const u32 M = rd(w, members, std::countr_zero(rest));
    u32 same = 0;
    for (u32 q = rest; q; q &= q - 1)
      if ((u32)rd(w, members, std::countr_zero(q)) == M) same |= q & -q;
    rest &= ~same;
    const u32 go = gather(w, same, M, barrier, s.pc);
    waiting |= !go;
    if (!go) continue;
    ran |= go;
    switch (in.op) {
      case O_SHFL:
        shfl(w, in, go);
        break;
      case O_VOTE:
        vote(w, in, go);
        break;
      case O_MATCH:
        match(w, in, go);
        break;
      case O_REDUX:
        redux(w, in, go);
        break;
      case O_ELECT:
        elect(w, in, go);
        break;
      default:
        barWarp(w, go);
    }
  }
  if (chk && !cfg.strictWarp && ran == w.live && !barrier) {
    w.wfloor = w.b->stamp;
    bump(*w.b);
  }
  if (ran == s.mask && !waiting) return NEXT;
  for (u32 q = ran | (s.mask & ~s.em); q; q &= q - 1) w.pc[std::countr_zero(q)]++;
  return RESELECT;
}

void Exec::shfl(Warp& w, const Instr& in, u32 mk) {
  u32 src[32], res[32], inRange = 0;
  memcpy(src, P(w, in.o[1]), sizeof src);
  const u32 *B = (u32*)P(w, in.o[2]), *C = (u32*)P(w, in.o[3]);
  forLanes(mk, [&](int l) {
    const int b = B[l] & 31, clamp = C[l] & 31, segment = C[l] >> 8 & 31;
    const int first = l & segment, bound = first | (clamp & ~segment);
    int j;
    switch (in.sub) {
      case SHFL_UP:
        j = l - b;
        break;
      case SHFL_DOWN:
        j = l + b;
        break;
      case SHFL_BFLY:
        j = l ^ b;
        break;
      default:
        j = first | (b & ~segment);
    }
    const bool ok = in.sub == SHFL_UP ? j >= bound : j <= bound;
    if (!ok) j = l;
    if (!(mk >> j & 1))
      fail(w, l, "shfl.sync reads lane %d, which does not take part (mask 0x%08x, live 0x%08x)", j, mk, w.live);
    res[l] = src[j];
    inRange |= (u32)ok << l;
  });
  u32* d = (u32*)D(w, in.o[0]);
  forLanes(mk, [&](int l) { d[l] = res[l]; });
  setPred(w, in.o[5], mk, inRange);
}
void Exec::vote(Warp& w, const Instr& in, u32 mk) {
  const u32 p = pmask(w, in.o[1]) & mk;
  if (in.sub == VOTE_BALLOT) return forLanes(mk, [&](int l) { wr(w, in.o[0], l, p); });
  const bool all = p == mk, none = p == 0;
  const bool r = in.sub == VOTE_ALL ? all : in.sub == VOTE_ANY ? !none : all || none;
  setPred(w, in.o[0], mk, r ? ~0u : 0);
}
void Exec::match(Warp& w, const Instr& in, u32 mk) {
  u64 v[32];
  forLanes(mk, [&](int l) { v[l] = rd(w, in.o[1], l); });
  auto equal = [&](u64 x) {
    u32 r = 0;
    forLanes(mk, [&](int l) { r |= (u32)(v[l] == x) << l; });
    return r;
  };
  if (in.sub) {  // .all
    const bool same = equal(v[std::countr_zero(mk)]) == mk;
    forLanes(mk, [&](int l) { wr(w, in.o[0], l, same ? mk : 0); });
    setPred(w, in.o[3], mk, same ? ~0u : 0);
  } else
    forLanes(mk, [&](int l) { wr(w, in.o[0], l, equal(v[l])); });
}
void Exec::redux(Warp& w, const Instr& in, u32 mk) {
  u64 r = rd(w, in.o[1], std::countr_zero(mk));
  bool ok;
  forLanes(mk & (mk - 1), [&](int l) { r = (u32)atomOp(in.sub, in.t, r, rd(w, in.o[1], l), 0, ok); });
  forLanes(mk, [&](int l) { wr(w, in.o[0], l, r); });
}
void Exec::elect(Warp& w, const Instr& in, u32 mk) {
  const u32 leader = std::countr_zero(mk);
  forLanes(mk, [&](int l) { wr(w, in.o[0], l, leader); });
  setPred(w, in.o[1], mk, 1u << leader);
}
void Exec::barWarp(Warp& w, u32 mk) {
  if (chk) {
    if (mk == w.live)
      w.wfloor = w.b->stamp;
    else {
      if (w.lane2.empty()) w.lane2.assign(32 * 32, 0);
      forLanes(mk, [&](int a) { forLanes(mk, [&](int b) { w.lane2[a * 32 + b] = w.b->stamp; }); });
    }
    bump(*w.b);
  }
  w.b->g->progress++;
}
}  // namespace ptx
