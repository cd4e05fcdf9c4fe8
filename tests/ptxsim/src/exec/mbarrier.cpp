// mbarrier: arrival counts, transaction counts, phases; and what they make known to those who wait.
#include "exec.h"

namespace ptx {

MBar& Exec::mbGet(Warp& w, int l, Block& b, u32 off) {
  auto it = b.mb.find(off);
  if (it == b.mb.end() || !it->second.valid)
    fail(w, l, "mbarrier at offset %u used before mbarrier.init", off - SMEM_BASE);
  MBar& x = it->second;
  if (chk && &b == w.b && !known(w, l, x.initTid, x.initStamp))
    fail(w, l, "mbarrier at offset %u used without synchronisation after its mbarrier.init by %s", off - SMEM_BASE,
         actorName(x.initTid).c_str());
  return x;
}
void Exec::mbComplete(Block& b, MBar& mb) {
  if (mb.pending || mb.tx) return;
  mb.phase++;
  mb.pending = mb.expected;
  mb.rel = mb.acc;
  mb.relFloor = mb.accFloor;
  b.g->progress++;
}
u64 Exec::mbArrive(Warp& w, int l, Block& b, u32 off, u32 count, s64 tx, bool drop) {  // returns the phase
  MBar& x = mbGet(w, l, b, off);
  const u64 phase = x.phase;
  x.tx += tx;
  if (count > x.pending)
    fail(w, l, "mbarrier at offset %u: arrival count %u exceeds the pending count %u", off - SMEM_BASE, count,
         x.pending);
  if (&b == w.b) release(w, 1u << l, x.acc, x.accFloor);
  x.pending -= count;
  if (drop) x.expected -= count;
  mbComplete(b, x);
  b.g->progress++;
  if (chk) bump(b);
  return phase;
}
void Exec::mbInit(Warp& w, const Instr& in, int l, Block& b, u32 off) {
  const u32 count = rd(w, in.o[2], l);
  if (!count || count >= (1u << 20)) fail(w, l, "mbarrier.init count %u", count);
  auto it = b.mb.find(off);
  MBar x;
  x.slot = it != b.mb.end() ? it->second.slot : b.mbSlots++ % N_MB;
  x.expected = x.pending = count;
  x.initTid = w.wid * 32 + l;
  x.initStamp = b.stamp;
  x.valid = true;
  b.mb[off] = std::move(x);
  if (chk) shWrite(w, l, b, off, 8);
}
bool Exec::mbWait(Warp& w, const Instr& in, int l, Block& b, u32 off) {
  MBar* x = &mbGet(w, l, b, off);
  if (&b != w.b) fail(w, l, "wait on a remote mbarrier");
  const u64 v = rd(w, in.o[2], l);
  auto done = [&] { return in.vn == 2 ? (x->phase & 1) != (v & 1) : x->phase != (u32)v; };
  if (!done() && deliver(*b.g, &b, off)) x = &mbGet(w, l, b, off);
  const bool ok = done();
  if (ok) acquire(w, x->rel, x->relFloor);
  wr(w, in.o[0], l, ok);
  return ok;
}
Flow Exec::mbarrier(Warp& w, const Instr& in, Step& s) {
  bool all = true;
  forLanes(s.em, [&](int l) {
    Block* b;
    u32 off;
    shared(w, l, sharedAddr(w, l, in.space, addr(w, in.o[1], l)), 8, b, off);
    auto value = [&] { return rd(w, in.o[2], l); };
    switch (in.sub) {
      case MB_INIT:
        mbInit(w, in, l, *b, off);
        break;
      case MB_INVAL:
        mbGet(w, l, *b, off).valid = false;
        break;
      case MB_ARRIVE:
      case MB_ARRIVE_DROP: {
        const bool expectTx = in.vn == 2;
        const u32 count = in.o[2].k && !expectTx ? value() : 1;
        wr(w, in.o[0], l, mbArrive(w, l, *b, off, count, expectTx ? value() : 0, in.sub == MB_ARRIVE_DROP));
        break;
      }
      case MB_TEST_WAIT:
      case MB_TRY_WAIT:
        all &= mbWait(w, in, l, *b, off);
        break;
      case MB_EXPECT_TX:
        mbGet(w, l, *b, off).tx += (s64)value();
        break;
      default: {  // MB_COMPLETE_TX
        MBar& x = mbGet(w, l, *b, off);
        x.tx -= (s64)value();
        mbComplete(*b, x);
      }
    }
  });
  return all ? NEXT : yield(w, s, s.pc + 1);  // a wait that failed: let the others go on
}
}  // namespace ptx
