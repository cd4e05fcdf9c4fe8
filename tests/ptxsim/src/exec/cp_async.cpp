// cp.async. The source is read at once, but the bytes arrive only when their thread waits for them; until then the
// destination holds 0xff (NaN in every float format) and counts as pending, and touching it is an error.
#include "exec.h"

namespace ptx {

void Exec::cpAsync(Warp& w, const Instr& in, u32 mk) {
  u64 ga[32];
  u32 sa[32];
  u32 reading = 0;
  const u32 size = in.o[2].imm;
  forLanes(mk, [&](int l) {
    const u64 src = addr(w, in.o[1], l);
    u32 n = in.o[3].k ? rd(w, in.o[3], l) : size;  // the rest becomes zero
    if (in.o[4].k && rd(w, in.o[4], l)) n = 0;
    if (n > size) fail(w, l, "cp.async src-size %u larger than copy size %u", n, size);
    CpOp op = {(u8)l, (u8)size, w.cpGroup[l], 0, {}};
    Block* b;
    u8* dst = shared(w, l, sharedAddr(w, l, SHARED, addr(w, in.o[0], l)), size, b, op.dst);
    if (src & (size - 1)) fail(w, l, "misaligned cp.async source");  // even if nothing is read
    if (n) {
      u8* p = global(w, l, src, n, false, n & (n - 1) ? 1 : n);
      memcpy(op.data, p, n);
      ga[l] = src;
      reading |= 1u << l;
    }
    shPending(w, l, *b, op.dst, size);
    memset(dst, 0xff, size);
    w.cp.push_back(op);
    sa[l] = op.dst;
    st.cpaBytes += n;
  });
  st.cpaReq++;
  if (reading) st.cpaSectors += sectors(ga, reading, size);
  st.cpaWave += wavefronts(sa, mk, size);
}
void Exec::cpCommit(Warp& w, const Instr&, u32 mk) {
  forLanes(mk, [&](int l) { w.cpGroup[l]++; });
}
void Exec::cpWait(Warp& w, const Instr& in, u32 mk) {  // wait_group n, wait_all
  cpComplete(w, mk, in.sub ? ~0u : (u32)in.o[0].imm);
}
// Lets arrive what is older than the newest `keep` groups of these lanes; ~0: everything.
void Exec::cpComplete(Warp& w, u32 mk, u32 keep) {
  size_t left = 0;
  for (auto& op : w.cp) {
    if ((mk >> op.lane & 1) && (keep == ~0u || op.group + keep < w.cpGroup[op.lane])) {
      memcpy(&w.b->smem[op.dst], op.data, op.size);
      shLanded(*w.b, op.dst, op.size, w.wid * 32 + op.lane);
    } else
      w.cp[left++] = op;
  }
  w.cp.resize(left);
  w.b->g->progress++;
}
void Exec::cpArrive(Warp& w, const Instr& in, u32 mk) {  // cp.async.mbarrier.arrive
  cpComplete(w, mk, ~0u);
  forLanes(mk, [&](int l) {
    Block* b;
    u32 off;
    shared(w, l, sharedAddr(w, l, in.space, addr(w, in.o[0], l)), 8, b, off);
    if (!(in.flags & F_NOINC)) mbGet(w, l, *b, off).pending++;
    mbArrive(w, l, *b, off, 1, 0, false);
  });
}
}  // namespace ptx
