// Addresses: which memory they name, whether they lie in it, and whether they are aligned; and the words of every
// error.
#include <cstdarg>

#include "exec.h"

namespace ptx {

std::string Exec::actorName(u32 t) {
  if (t >= AG_MB && t < NVC) return "a bulk copy";
  if (t >= AG_WG && t < AG_MB) return strf("wgmma of warpgroup %u", t - AG_WG);
  const u32 x = t % cfg.block[0], y = t / cfg.block[0] % cfg.block[1], z = t / cfg.block[0] / cfg.block[1];
  return strf("thread (%u,%u,%u)", x, y, z);
}
std::string Exec::where(Warp& w, int l) {
  const Block& b = *w.b;
  std::string s = strf("kernel %.120s, PTX line %u, block (%u,%u,%u), ", k.entry->name.c_str(), w.curLine, b.id[0],
                       b.id[1], b.id[2]);
  return s + (l >= 0 ? actorName(w.wid * 32 + l) : strf("warp %u", w.wid));
}
void Exec::fail(Warp& w, int l, const char* f, ...) {
  va_list a;
  va_start(a, f);
  char buf[2048];
  vsnprintf(buf, sizeof buf, f, a);
  va_end(a);
  throw Error(where(w, l) + ": " + buf);
}

// The state space of a generic address; va becomes an address in that space.
u8 Exec::spaceOf(Warp& w, int l, u8 space, u64& va, const char* what) {
  if (space != GENERIC) return space;
  const u64 window = va >> WSHIFT;
  if (window >= GLOBAL_WIN0 || (!window && m.mem->isGlobal(va))) return GLOBAL;
  if (window < 1 || window > 3) fail(w, l, "%s at invalid generic address 0x%llx", what, (unsigned long long)va);
  va -= window << WSHIFT;
  return window == 1 ? SHARED : window == 2 ? LOCAL : PARAM;
}
u8* Exec::global(Warp& w, int l, u64 va, u32 n, bool write, u32 align) {
  const char* what = write ? "store" : "load";
  if (va & ((align ? align : n) - 1))
    fail(w, l, "misaligned global %s of %u bytes at 0x%llx", what, n, (unsigned long long)va);
  Alloc* a = m.mem->find(va);
  if (!a || va < a->va || va + n > a->va + a->size)
    fail(w, l, "out-of-bounds global %s of %u bytes at 0x%llx%s", what, n, (unsigned long long)va,
         m.mem->describe(va).c_str());
  const u64 o = va - a->va;
  if (write) {
    if (a->readonly) fail(w, l, "store to read-only buffer '%s'", a->name.c_str());
    if (a->track) memset(&a->written[o], 1, n);
  } else if (a->track)
    for (u32 i = 0; i < n; i++)
      if (!a->written[o + i])
        fail(w, l, "read of never-written byte %llu of buffer '%s'", (unsigned long long)(o + i), a->name.c_str());
  return a->host + o;
}
u8* Exec::shared(Warp& w, int l, u32 a, u32 n, Block*& blk, u32& off, u32 align) {
  blk = w.b;
  off = a & 0xffffff;
  if (const u32 rank = a >> 24) {
    auto& blocks = w.b->g->b;
    if (rank > blocks.size())
      fail(w, l, "shared::cluster address 0x%x names CTA %u of %zu", a, rank - 1, blocks.size());
    blk = blocks[rank - 1];
    if (!blk->liveWarps && blk != w.b && !cfg.allowExitedCta) fail(w, l, "access to shared memory of an exited CTA");
  }
  if (off & ((align ? align : n) - 1)) fail(w, l, "misaligned shared access of %u bytes at 0x%x", n, off);
  if (off < SMEM_BASE || off + n > blk->smemEnd)
    fail(w, l, "out-of-bounds shared access of %u bytes at offset %d (block has %u bytes)", n, (int)(off - SMEM_BASE),
         blk->smemEnd - SMEM_BASE);
  return &blk->smem[off];
}
u32 Exec::sharedAddr(Warp& w, int l, u8 space, u64 a) {
  if (space == SHARED || space == SHARED_CLUSTER) {
    if (a >> 32) fail(w, l, "shared address 0x%llx is not a 32-bit shared address", (unsigned long long)a);
    return a;
  }
  if ((a >> WSHIFT) != 1) fail(w, l, "generic address 0x%llx is not in shared memory", (unsigned long long)a);
  return (u32)(a - SHARED_WIN);
}
}  // namespace ptx
