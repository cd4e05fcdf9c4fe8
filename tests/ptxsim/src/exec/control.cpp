// Branches, calls, returns and exits.
#include "exec.h"

namespace ptx {

Flow Exec::yield(Warp& w, Step& s, u32 at) {
  save(w, s.mask, at);
  w.yielded |= s.mask;
  return RESELECT;
}
Flow Exec::branch(Warp& w, const Instr& in, Step& s) {
  if (s.em == s.mask || !s.em) {
    s.pc = s.em ? in.target : s.pc + 1;
    return JUMP;
  }
  st.divergentBranches++;
  save(w, s.em, in.target);
  save(w, s.mask & ~s.em, s.pc + 1);
  return RESELECT;
}
Flow Exec::branchTable(Warp& w, const Instr& in, Step& s) {
  const auto& targets = k.targets[in.msg];
  const u32 first = rd(w, in.o[0], std::countr_zero(s.em));
  bool same = true;
  forLanes(s.em, [&](int l) {
    const u32 v = rd(w, in.o[0], l);
    if (v >= targets.size()) fail(w, l, "brx.idx index %u out of %zu", v, targets.size());
    same &= v == first;
    w.pc[l] = targets[v];
  });
  if (same && s.em == s.mask) {
    s.pc = targets[first];
    return JUMP;
  }
  save(w, s.mask & ~s.em, s.pc + 1);
  return RESELECT;
}
Flow Exec::call(Warp& w, const Instr& in, Step& s) {
  const CallRec& c = k.calls[in.msg];
  forLanes(s.em, [&](int l) {
    u8* fp = w.fparam + (size_t)l * k.fparamBytes;
    for (auto& x : c.in) memcpy(fp + x.to, fp + x.from, x.size);
    w.stack[l].push_back(s.pc);
  });
  if (s.em == s.mask) {
    s.pc = c.target;
    return JUMP;
  }
  save(w, s.em, c.target);
  save(w, s.mask & ~s.em, s.pc + 1);
  return RESELECT;
}
Flow Exec::ret(Warp& w, const Instr&, Step& s) {
  bool same = true;
  s32 to = -1;
  forLanes(s.em, [&](int l) {
    if (w.stack[l].empty()) fail(w, l, "return without a call");
    const s32 from = w.stack[l].back();
    w.stack[l].pop_back();
    u8* fp = w.fparam + (size_t)l * k.fparamBytes;
    for (auto& x : k.calls[k.code[from].msg].out) memcpy(fp + x.to, fp + x.from, x.size);
    same &= to < 0 || to == from + 1;
    w.pc[l] = to = from + 1;
  });
  if (same && s.em == s.mask) {
    s.pc = to;
    return JUMP;
  }
  save(w, s.mask & ~s.em, s.pc + 1);
  return RESELECT;
}
Flow Exec::exit(Warp& w, const Instr&, Step& s) {
  Block& b = *w.b;
  cpComplete(w, s.em, ~0u);
  bulkWait(w, s.em, 0, true);
  w.live &= ~s.em;
  b.exited += std::popcount(s.em);
  b.g->progress++;
  if (!w.live) b.liveWarps--;
  if (cfg.exitedAtBarrier)
    for (int i = 0; i < 16; i++) {
      NBar& n = b.bar[i];
      if (!n.used || n.hasCount) continue;
      n.expected = b.nthreads - b.exited;
      if (n.arrived == n.expected) barFinish(b, i);
    }
  save(w, s.mask & ~s.em, s.pc + 1);
  return RESELECT;
}
}  // namespace ptx
