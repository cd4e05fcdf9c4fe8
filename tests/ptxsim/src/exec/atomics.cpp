// Atomic operations on global and shared memory, one lane after the other.
#include <algorithm>
#include <mutex>

#include "exec.h"

namespace ptx {

u64 atomOp(u8 op, Ty t, u64 old, u64 v, u64 v2, bool& ok) {
  ok = true;
  switch (op) {
    case A_CAS:
      return old == v ? v2 : old;
    case A_EXCH:
      return v;
    case A_AND:
      return old & v;
    case A_OR:
      return old | v;
    case A_XOR:
      return old ^ v;
    case A_INC:
      return (u32)old >= (u32)v ? 0 : old + 1;
    case A_DEC:
      return (u32)old == 0 || (u32)old > (u32)v ? v : old - 1;
  }
  auto combine = [op](auto a, auto b) {
    return op == A_ADD ? decltype(a)(a + b) : op == A_MIN ? minNum(a, b) : maxNum(a, b);
  };
  auto half = [&](u16 a, u16 b) -> u32 {
    const double x = half2f(a, t), y = half2f(b, t);
    return d2half(op == A_ADD ? fmaOdd(x, 1, y) : combine(x, y), t);
  };
  switch (t) {
    case F32:
      return asU(combine(asF((u32)old), asF((u32)v)));
    case F64:
      ok = op == A_ADD;
      return asU(asD(old) + asD(v));
    case F16:
    case BF16:
      return half(old, v);
    case F16X2:
    case BF16X2:
      return half(old, v) | half(old >> 16, v >> 16) << 16;
    default:
      break;
  }
  if (op == A_ADD) return tySize(t) == 4 ? (u32)(old + v) : old + v;
  if (isSigned(t)) return op == A_MAX ? std::max(sext(old, t), sext(v, t)) : std::min(sext(old, t), sext(v, t));
  return op == A_MAX ? std::max(old, v) : std::min(old, v);
}
// Blocks run on several host threads: global memory is updated by compare-and-swap.
template <class V>
static u64 updateGlobal(u8* p, const Instr& in, u64 v, u64 v2, bool& ok) {
  V *at = (V*)p, old = __atomic_load_n(at, __ATOMIC_SEQ_CST), next;
  do {
    next = atomOp(in.sub, in.t, old, v, v2, ok);
  } while (!__atomic_compare_exchange_n(at, &old, next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  return old;
}

void Exec::atom(Warp& w, const Instr& in, u32 mk) {
  const u32 es = tySize(in.t), size = es * in.vn;
  const Opnd* dv = in.o[0].k == K_VEC ? k.vecs[in.o[0].vec].data() : &in.o[0];
  const Opnd* sv = in.o[2].k == K_VEC ? k.vecs[in.o[2].vec].data() : &in.o[2];
  const bool wanted = !(in.flags & F_RED) && in.o[0].k != K_SINK;
  forLanes(mk, [&](int l) {
    u64 va = addr(w, in.o[1], l);
    const u8 space = spaceOf(w, l, in.space, va, "atomic");
    if (space == LOCAL || space == PARAM)
      fail(w, l, "atomic at invalid generic address 0x%llx", (unsigned long long)va);
    const bool glob = space == GLOBAL;
    u8* p;
    if (glob) {
      p = global(w, l, va, size, true);
      st.atomG++;
    } else {
      Block* b;
      u32 off;
      p = shared(w, l, sharedAddr(w, l, SHARED, va), size, b, off);
      if (chk && b == w.b) {
        const u32 g = (off - SMEM_BASE) >> b->sh.shift;
        if ((b->sh.writer[g] & 0x7fff) == W_NEVER && (cfg.checkUninit & 1) && in.sub != A_EXCH)
          fail(w, l, "atomic on never-written shared memory");
        shWrite(w, l, *b, off, size, true);
      }
      st.atomS++;
    }
    if (es == 16) {
      if (in.sub != A_CAS && in.sub != A_EXCH) fail(w, l, "128-bit atomic operation");
      static std::mutex mutex;
      std::lock_guard<std::mutex> lock(mutex);
      u64 old[2];
      memcpy(old, p, 16);
      if (in.sub == A_EXCH || !memcmp(wide(w, in.o[2], l), old, 16))
        memcpy(p, wide(w, in.o[in.sub == A_CAS ? 3 : 2], l), 16);
      if (wanted) memcpy(wide(w, in.o[0], l), old, 16);
      return;
    }
    const u64 v2 = in.sub == A_CAS ? rd(w, in.o[3], l) : 0;
    for (u32 i = 0; i < in.vn; i++, p += es) {
      const u64 v = rd(w, sv[i], l);
      u64 old = 0;
      bool ok = true;
      if (!glob) {
        memcpy(&old, p, es);
        const u64 next = atomOp(in.sub, in.t, old, v, v2, ok);
        memcpy(p, &next, es);
      } else
        old = es == 4   ? updateGlobal<u32>(p, in, v, v2, ok)
              : es == 8 ? updateGlobal<u64>(p, in, v, v2, ok)
                        : updateGlobal<u16>(p, in, v, v2, ok);
      if (!ok) notImplemented(w);
      if (wanted) wr(w, dv[i], l, old);
    }
  });
  w.b->g->progress++;
}
}  // namespace ptx
