// Races in shared memory, by happens-before. Every granule (1, 2 or 4 bytes) remembers its last writer and the readers
// since, each with a stamp; a block's stamp goes up with every synchronisation. An access is in order when the accesses
// before it are known to the one who makes it:
//   - stamps up to Warp::floor are known of all threads: the last barrier of the whole block;
//   - stamps up to Warp::wfloor are known of the own warp: the last barrier of the warp;
//   - Warp::lane2 and the vector clock Warp::vc hold what partial masks, named barriers, mbarriers and asynchronous
//     copies have made known, actor by actor.
// Everything else is a race, whether or not it did harm in this run. Blocks of a cluster are not tracked in each other.
#include <algorithm>

#include "exec.h"

namespace ptx {

static const char* const raceHelp = " without synchronisation between them";

namespace {
struct Granules {
  u32 first, last;
  Granules(const Block& b, u32 off, u32 n)
      : first((off - SMEM_BASE) >> b.sh.shift), last((off + n - 1 - SMEM_BASE) >> b.sh.shift) {}
};
ReadEntry& readEntry(Block& b, u32 slot, u32 g) { return b.sh.reads[(size_t)slot * b.sh.writer.size() + g]; }
}  // namespace

void Exec::bump(Block& b) {
  if (++b.stamp < (1u << 26) - 8) return;
  // Stamps have 26 bits: forget the past, once in 67 million synchronisations.
  b.stamp = 1;
  std::fill(b.sh.readers.begin(), b.sh.readers.end(), 0);
  std::fill(b.sh.stamp.begin(), b.sh.stamp.end(), 0);
  for (auto& x : b.w) {
    x.floor = x.wfloor = 0;
    std::fill(x.vc.begin(), x.vc.end(), 0);
  }
}
bool Exec::known(Warp& w, int l, u32 t, u32 s) {
  if (t < AG_WG) {
    if (t == w.wid * 32 + (u32)l || s <= w.floor) return true;
    if (t / 32 == w.wid && (s <= w.wfloor || (!w.lane2.empty() && w.lane2[l * 32 + (t & 31)] >= s))) return true;
  }
  return !w.vc.empty() && w.vc[t] >= s;
}
// Whether the reads of a slot are known; otherwise `reader` is one that is not.
bool Exec::readsKnown(Warp& w, int l, const ReadEntry& e, u32 slot, u32& reader) {
  const Block& b = *w.b;
  const u32 stamp = e.stampLane >> 6, lane = e.stampLane & 63;
  if (slot >= b.nwarps) return known(w, l, reader = AG_WG + slot - b.nwarps, stamp);
  if (stamp <= w.floor) return true;
  if (lane != RD_MULTI) return known(w, l, reader = slot * 32 + lane, stamp);
  if (slot == w.wid && stamp <= w.wfloor) return true;
  for (u32 q = b.w[slot].exists; q; q &= q - 1)
    if (!known(w, l, reader = slot * 32 + std::countr_zero(q), stamp)) return false;
  return true;
}

void Exec::shRead(Warp& w, int l, Block& b, u32 off, u32 n, bool atomic, int warpgroup) {
  if (&b != w.b) return;
  Shadow& sh = b.sh;
  const Granules gs(b, off, n);
  const bool actor = warpgroup >= 0;
  const u32 tid = w.wid * 32 + l, slot = actor ? b.nwarps + warpgroup : w.wid, me = actor ? RD_MULTI : l;
  const u64 bit = 1ull << slot;
  for (u32 g = gs.first; g <= gs.last; g++) {
    const u32 t = sh.writer[g] & 0x7fff;
    if (t == W_NEVER) {
      if (cfg.checkUninit & 1) fail(w, l, "read of never-written shared memory at offset %u", g << sh.shift);
    } else if (t == W_PENDING)
      fail(w, l,
           "read of shared memory at offset %u while an asynchronous copy into it (issued at PTX line %u) has not been "
           "waited for",
           g << sh.shift, sh.line[g]);
    else if (t != tid && !(atomic && (sh.writer[g] & W_ATOMIC)) && !known(w, l, t, sh.stamp[g]))
      fail(w, l, "shared-memory race at offset %u: read after write by %s at PTX line %u%s", g << sh.shift,
           actorName(t).c_str(), sh.line[g], raceHelp);
    ReadEntry& e = readEntry(b, slot, g);
    const bool others = (sh.readers[g] & bit) && (e.stampLane & 63) != me && (e.stampLane >> 6) > w.wfloor;
    sh.readers[g] |= bit;
    e = {b.stamp << 6 | (others ? RD_MULTI : me), w.curLine};
  }
}
// shRead for the lanes of a warp, each with its offset. Most often everybody knows the writers, since a barrier came
// between, and then nothing has to be looked up; and lanes that read the same place are remembered as one reader.
void Exec::shReadLanes(Warp& w, const u32* off, u32 mk, u32 n, bool atomic) {
  Block& b = *w.b;
  Shadow& sh = b.sh;
  const u64 bit = 1ull << w.wid;
  ReadEntry* reads = &readEntry(b, w.wid, 0);
  for (u32 rest = mk; rest;) {
    const int l = std::countr_zero(rest);
    u32 same = rest & -rest;
    for (u32 q = rest & (rest - 1); q && off[std::countr_zero(q)] == off[l]; q &= q - 1) same |= q & -q;
    rest &= ~same;
    const Granules gs(b, off[l], n);
    bool settled = true;
    for (u32 g = gs.first; g <= gs.last; g++) settled &= (sh.writer[g] & 0x7fff) < AG_WG && sh.stamp[g] <= w.floor;
    if (!settled) {
      forLanes(same, [&](int lane) { shRead(w, lane, b, off[l], n, atomic); });
      continue;
    }
    const u32 me = same & (same - 1) ? RD_MULTI : l;
    for (u32 g = gs.first; g <= gs.last; g++) {
      ReadEntry& e = reads[g];
      const bool others = (sh.readers[g] & bit) && (e.stampLane & 63) != me && (e.stampLane >> 6) > w.wfloor;
      sh.readers[g] |= bit;
      e = {b.stamp << 6 | (others ? RD_MULTI : me), w.curLine};
    }
  }
}
void Exec::shWrite(Warp& w, int l, Block& b, u32 off, u32 n, bool atomic, const u8* data) {
  Shadow& sh = b.sh;
  if (sh.writer.empty()) return;
  const Granules gs(b, off, n);
  if (&b != w.b) {
    for (u32 g = gs.first; g <= gs.last; g++) {
      sh.writer[g] = 0;
      sh.stamp[g] = 0;
      sh.readers[g] = 0;
      sh.line[g] = w.curLine;
    }
    return;
  }
  if (b.inflightStores)
    for (auto& x : b.w)
      for (auto& s : x.bulkSt)
        if (s.b == &b && off < s.off + s.bytes && s.off < off + n)
          fail(w, l,
               "write to shared memory at offset %u while a bulk store is still reading it (missing "
               "cp.async.bulk.wait_group.read)",
               off - SMEM_BASE);
  const u32 tid = w.wid * 32 + l;
  for (u32 g = gs.first; g <= gs.last; g++) {
    const u32 t = sh.writer[g] & 0x7fff;
    const bool atomics = atomic && (sh.writer[g] & W_ATOMIC);
    if (t == W_PENDING)
      fail(
          w, l,
          "write to shared memory at offset %u while an asynchronous copy into it (issued at PTX line %u) has not been "
          "waited for",
          g << sh.shift, sh.line[g]);
    if (t != W_NEVER && t != tid && !atomics && !known(w, l, t, sh.stamp[g])) {
      // Lanes of one warp that store the same value with one instruction do no harm.
      const bool same = data && t / 32 == w.wid && sh.line[g] == w.curLine && sh.stamp[g] == b.stamp &&
                        !memcmp(data, &b.smem[off], n);
      if (!same)
        fail(w, l, "shared-memory race at offset %u: write after write by %s at PTX line %u%s", g << sh.shift,
             actorName(t).c_str(), sh.line[g], raceHelp);
    }
    for (u64 q = atomics ? 0 : sh.readers[g]; q; q &= q - 1) {
      const u32 slot = std::countr_zero(q);
      const ReadEntry& e = readEntry(b, slot, g);
      u32 reader = 0;
      if (!readsKnown(w, l, e, slot, reader))
        fail(w, l, "shared-memory race at offset %u: write after read by %s at PTX line %u%s", g << sh.shift,
             actorName(reader).c_str(), e.line, raceHelp);
    }
    sh.readers[g] = 0;
    sh.writer[g] = tid | (atomic ? W_ATOMIC : 0);
    sh.stamp[g] = b.stamp;
    sh.line[g] = w.curLine;
  }
}
void Exec::shPending(Warp& w, int l, Block& b, u32 off, u32 n) {
  if (!chk || !n) return;
  if (&b == w.b) shWrite(w, l, b, off, n);
  const Granules gs(b, off, n);
  for (u32 g = gs.first; g <= gs.last; g++) {
    b.sh.writer[g] = W_PENDING;
    b.sh.line[g] = w.curLine;
  }
}
void Exec::shLanded(Block& b, u32 off, u32 n, u32 writer) {
  if (!chk || !n) return;
  const Granules gs(b, off, n);
  for (u32 g = gs.first; g <= gs.last; g++) {
    b.sh.writer[g] = writer;
    b.sh.stamp[g] = b.stamp;
    b.sh.readers[g] = 0;
  }
}

// ---- vector clocks
void Exec::release(Warp& w, u32 mk, std::vector<u32>& acc, u32& floor) {  // join what these lanes know into acc
  if (!chk) return;
  if (acc.size() != NVC) acc.assign(NVC, 0);
  if (!w.vc.empty())
    for (u32 i = 0; i < NVC; i++) acc[i] = std::max(acc[i], w.vc[i]);
  for (u32 q = mk; q; q &= q - 1) acc[w.wid * 32 + std::countr_zero(q)] = w.b->stamp;
  // Other lanes of this warp are known up to the last synchronisation with them.
  for (u32 i = 0; i < 32; i++) {
    u32 s = w.wfloor;
    if (!w.lane2.empty())
      for (u32 q = mk; q; q &= q - 1) s = std::max(s, w.lane2[std::countr_zero(q) * 32 + i]);
    u32& x = acc[w.wid * 32 + i];
    x = std::max(x, s);
  }
  floor = std::max(floor, w.floor);
}
void Exec::acquire(Warp& w, const std::vector<u32>& v, u32 floor) {
  if (!chk) return;
  if (w.vc.empty()) w.vc.assign(NVC, 0);
  if (!v.empty())
    for (u32 i = 0; i < NVC; i++) w.vc[i] = std::max(w.vc[i], v[i]);
  w.floor = std::max(w.floor, floor);
}
// wgmma and bulk stores read shared memory through another proxy: what threads wrote has to be fenced first.
void Exec::proxyCheck(Warp& w, int l, Block& b, u32 off, u32 n, const char* who) {
  if (!chk || !cfg.checkProxy || &b != w.b) return;
  const u32 fenced = *std::max_element(w.fence, w.fence + 32);
  const Granules gs(b, off, n);
  for (u32 g = gs.first; g <= gs.last; g++) {
    const u32 t = b.sh.writer[g] & 0x7fff, stamp = b.sh.stamp[g];
    if (t < AG_WG && stamp > fenced && stamp > b.w[t / 32].fence[t & 31])
      fail(w, l, "%s reads shared memory at offset %u written by %s at PTX line %u without fence.proxy.async", who,
           g << b.sh.shift, actorName(t).c_str(), b.sh.line[g]);
  }
}
void Exec::fenceProxy(Warp& w, const Instr&, u32 mk) {
  forLanes(mk, [&](int l) { w.fence[l] = w.b->stamp; });
  if (chk) bump(*w.b);
}
}  // namespace ptx
