// Moves, packing and unpacking of registers, and conversions between kinds of addresses.
#include "exec.h"

namespace ptx {

void Exec::mov(Warp& w, const Instr& in, u32 mk) {
  const Opnd &d = in.o[0], &s = in.o[1];
  if (s.k == K_VEC) return pack(w, in, mk);
  if (d.k == K_VEC) return unpack(w, in, mk);
  if (d.k != K_REG) return;
  const Args x = args(w, in, mk);
  switch (d.sz) {
    case 1:
      return setPred(w, d, mk, pmask(w, s));
    case 4:
      if (s.sz == 8) return map1<u32, u64>(x, [](u64 v) { return (u32)v; });
      return map1<u32, u32>(x, [](u32 v) { return v; });
    case 8:
      if (s.sz == 4) return map1<u64, u32>(x, [](u32 v) { return (u64)v; });
      return map1<u64, u64>(x, [](u64 v) { return v; });
    default:
      forLanes(mk, [&](int l) { memcpy(wide(w, d, l), wide(w, s, l), 16); });
  }
}
void Exec::pack(Warp& w, const Instr& in, u32 mk) {  // mov.b64 %rd, {%r1, %r2}
  const Opnd& d = in.o[0];
  const auto& v = k.vecs[in.o[1].vec];
  const u32 bytes = tySize(in.t) / v.size();
  forLanes(mk, [&](int l) {
    u64 r[2] = {0, 0};
    for (size_t i = 0; i < v.size(); i++) {
      u64 x = rd(w, v[i], l);
      memcpy((u8*)r + i * bytes, &x, bytes);
    }
    if (d.sz == 16)
      memcpy(wide(w, d, l), r, 16);
    else
      wr(w, d, l, r[0]);
  });
}
void Exec::unpack(Warp& w, const Instr& in, u32 mk) {  // mov.b64 {%r1, %r2}, %rd
  const Opnd& s = in.o[1];
  const auto& v = k.vecs[in.o[0].vec];
  const u32 bytes = tySize(in.t) / v.size();
  forLanes(mk, [&](int l) {
    u64 r[2] = {0, 0};
    if (s.sz == 16)
      memcpy(r, wide(w, s, l), 16);
    else
      r[0] = rd(w, s, l);
    for (size_t i = 0; i < v.size(); i++) {
      u64 x = 0;
      memcpy(&x, (u8*)r + i * bytes, bytes);
      wr(w, v[i], l, x);
    }
  });
}
void Exec::activemask(Warp& w, const Instr& in, u32 mk) {
  forLanes(mk, [&](int l) { wr(w, in.o[0], l, mk); });
}

// ---- kinds of addresses
static u64 windowOf(u8 space) {
  switch (space) {
    case SHARED:
    case SHARED_CLUSTER:
      return SHARED_WIN;
    case LOCAL:
      return LOCAL_WIN;
    case PARAM:
      return PARAM_WIN;
    default:
      return 0;  // global addresses are generic addresses
  }
}
void Exec::cvta(Warp& w, const Instr& in, u32 mk) {
  const u64 base = windowOf(in.space);
  const bool to = in.sub;  // from generic to the space
  forLanes(mk, [&](int l) {
    u64 v = rd(w, in.o[1], l);
    if (!to)
      v += base;
    else if (base && v)  // null stays null; what is not in the space becomes an address that is nowhere
      v = (v >> WSHIFT) == (base >> WSHIFT) ? v - base : 0xffffffff;
    wr(w, in.o[0], l, v);
  });
}
void Exec::isspacep(Warp& w, const Instr& in, u32 mk) {
  const u64 base = windowOf(in.space);
  u32 r = 0;
  forLanes(mk, [&](int l) {
    const u64 a = rd(w, in.o[1], l);
    const bool is = in.space == GLOBAL ? m.mem->isGlobal(a) : base && (a >> WSHIFT) == (base >> WSHIFT);
    r |= (u32)is << l;
  });
  setPred(w, in.o[0], mk, r);
}
// Shared addresses carry the rank of their block, plus one, in bits 24 and up; 0 is the own block.
void Exec::mapa(Warp& w, const Instr& in, u32 mk) {
  const u64 base = in.space == GENERIC ? SHARED_WIN : 0;
  const size_t blocks = w.b->g->b.size();
  forLanes(mk, [&](int l) {
    const u64 v = rd(w, in.o[1], l);
    const u32 rank = rd(w, in.o[2], l);
    if (rank >= blocks) fail(w, l, "mapa: CTA rank %u out of %zu", rank, blocks);
    wr(w, in.o[0], l, base + (((v - base) & 0xffffff) | (u64)(rank + 1) << 24));
  });
}
void Exec::ctaRank(Warp& w, const Instr& in, u32 mk) {
  forLanes(mk, [&](int l) {
    const u32 rank = (u32)rd(w, in.o[1], l) >> 24;
    wr(w, in.o[0], l, rank ? rank - 1 : w.b->rank);
  });
}
}  // namespace ptx
