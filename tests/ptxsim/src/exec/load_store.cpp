// Loads and stores of all state spaces.
#include "exec.h"

namespace ptx {

// Where one lane's access goes, for what is not settled by the quick checks below.
u8* Exec::locate(Warp& w, const Instr& in, int l, u64 va, Access& x) {
  const bool store = in.op == O_ST;
  const u32 size = x.size;
  switch (spaceOf(w, l, in.space, va, store ? "store" : "load")) {
    case GLOBAL:
    case CONSTSP:
      x.global |= 1u << l;
      return global(w, l, x.address[l] = va, size, store);
    case SHARED:
    case SHARED_CLUSTER: {
      Block* b;
      u8* p = shared(w, l, sharedAddr(w, l, SHARED, va), size, b, x.offset[l]);
      x.shared |= 1u << l;
      if (b == w.b) x.own |= 1u << l;
      if (b != w.b && store && chk) shWrite(w, l, *b, x.offset[l], size);
      return p;
    }
    case LOCAL:
      if (va & (size - 1)) fail(w, l, "misaligned local access");
      if (va < LOCAL_BASE || va + size > k.localBytes)
        fail(w, l, "out-of-bounds local access at %lld", (long long)va - LOCAL_BASE);
      return w.local + (size_t)l * k.localBytes + va;
    default:  // PARAM
      if (va >= FPARAM_BASE) {
        va -= FPARAM_BASE;
        if (va + size > k.fparamBytes) fail(w, l, "out-of-bounds parameter access");
        return w.fparam + (size_t)l * k.fparamBytes + va;
      }
      if (store) fail(w, l, "store to kernel parameter space");
      if (va + size > k.paramBytes)
        fail(w, l, "out-of-bounds kernel parameter read at %llu of %u", (unsigned long long)va, k.paramBytes);
      return (u8*)params + va;
  }
}
// Element i of the access, between a register and the places p of the lanes.
template <class V>
static void moveElement(V* reg, u8* const* p, u32 at, u32 mk, bool store) {
  if (store)
    forLanes(mk, [=](int l) { memcpy(p[l] + at, &reg[l], sizeof(V)); });
  else
    forLanes(mk, [=](int l) { memcpy(&reg[l], p[l] + at, sizeof(V)); });
}
void Exec::moveElements(Warp& w, const Instr& in, u32 mk, u8* const* p) {
  const u32 es = tySize(in.t);
  const bool store = in.op == O_ST, sign = isSigned(in.t);
  const Opnd* v = in.o[0].k == K_VEC ? k.vecs[in.o[0].vec].data() : &in.o[0];
  for (u32 i = 0; i < in.vn; i++) {
    const u32 at = i * es;
    if (!store && v[i].k != K_REG) continue;
    if (es == 4 && v[i].sz == 4)
      moveElement((u32*)P(w, v[i]), p, at, mk, store);
    else if (es == 8 && v[i].sz == 8)
      moveElement((u64*)P(w, v[i]), p, at, mk, store);
    else if (es == 16)
      moveElement((unsigned __int128*)P(w, v[i]), p, at, mk, store);
    else if (store)
      forLanes(mk, [&](int l) {
        const u64 x = rd(w, v[i], l);
        memcpy(p[l] + at, &x, es);
      });
    else
      forLanes(mk, [&](int l) {
        u64 x = 0;
        memcpy(&x, p[l] + at, es);
        wr(w, v[i], l, sign ? (u64)sext(x, in.t) : x);
      });
  }
}
// Shared stores go lane by lane: equal values in one place are permitted, and each lane compares with those before it.
void Exec::storeShared(Warp& w, const Instr& in, u32 mk, Access& x) {
  const u32 es = tySize(in.t);
  const Opnd* v = in.o[0].k == K_VEC ? k.vecs[in.o[0].vec].data() : &in.o[0];
  forLanes(mk, [&](int l) {
    u8 data[64];
    for (u32 i = 0; i < in.vn; i++) {
      const u64 value = es == 16 ? 0 : rd(w, v[i], l);
      memcpy(data + i * es, es == 16 ? wide(w, v[i], l) : &value, es);
    }
    if (chk) shWrite(w, l, *w.b, x.offset[l], x.size, in.flags & F_VOL, data);
    memcpy(x.p[l], data, x.size);
  });
}

void Exec::ldst(Warp& w, const Instr& in, u32 mk) {
  const bool store = in.op == O_ST;
  Block& b = *w.b;
  Access x;
  x.size = tySize(in.t) * in.vn;
  const u32 size = x.size;
  const Alloc* last = nullptr;  // the buffer of the lane before
  forLanes(mk, [&](int l) {
    const u64 va = addr(w, in.o[1], l);
    const bool aligned = !(va & (size - 1));
    if (in.space == SHARED && aligned && va >= SMEM_BASE && va + size <= b.smemEnd) {
      x.p[l] = &b.smem[va];
      x.offset[l] = va;
      x.shared |= 1u << l;
      x.own |= 1u << l;
    } else if (last && aligned && va - last->va < last->size && va - last->va + size <= last->size) {
      x.p[l] = last->host + (va - last->va);
      x.address[l] = va;
      x.global |= 1u << l;
    } else {
      x.p[l] = locate(w, in, l, va, x);
      if (!(x.global >> l & 1)) return;
      const Alloc* a = m.mem->find(va);  // only buffers without checks of their own
      last = a && a->size != ~0ull && !a->track && !(store && a->readonly) ? a : nullptr;
    }
  });
  if (chk && x.own && !store) shReadLanes(w, x.offset, x.own, size, in.flags & F_VOL);
  if (store && x.own) storeShared(w, in, x.own, x);
  const u32 rest = store ? mk & ~x.own : mk;
  if (rest) moveElements(w, in, rest, x.p);
  if (x.global) {
    (store ? st.gstReq : st.gldReq)++;
    (store ? st.gstBytes : st.gldBytes) += (u64)size * std::popcount(x.global);
    (store ? st.gstSectors : st.gldSectors) += sectors(x.address, x.global, size);
  }
  if (x.shared) {
    (store ? st.sstReq : st.sldReq)++;
    (store ? st.sstBytes : st.sldBytes) += (u64)size * std::popcount(x.shared);
    (store ? st.sstWave : st.sldWave) += wavefronts(x.offset, x.shared, size);
  }
  if (store) b.g->progress++;
}
}  // namespace ptx
