// Bulk copies (TMA). A load reads its source at once and arrives when somebody waits on its mbarrier; a store reads its
// source when its thread waits. So a touch in between is either an error or sees the bytes that are not to be relied
// on.
#include <algorithm>
#include <array>

#include "exec.h"
#include "tensor_map.h"

namespace ptx {

// What one lane copies: a run of bytes, or a box of a tensor.
struct Tile {
  bool tensor;
  TensorMap map;
  std::array<s32, 5> at;  // coordinates
  u64 global;
  Block* b;
  u32 off, bytes;  // in shared memory

  // fn(offset in shared memory, global address, bytes, whether inside the tensor), in pieces of 16 bytes or less
  template <class F>
  void visit(F fn) const {
    if (!tensor) return fn(off, global, bytes, true);
    const u32 es = map.esize, width = map.box[0];
    const u32 step = map.estr[0] == 1 ? std::max(1u, 16 / es) : 1;
    u32 rows = 1, idx[5] = {};
    for (int i = 1; i < map.rank; i++) rows *= map.box[i];
    for (u32 r = 0; r < rows; r++) {
      bool inside = true;
      u64 base = map.addr;
      for (int i = 1; i < map.rank; i++) {
        const s64 x = (s64)at[i] + (s64)idx[i] * map.estr[i];
        inside &= x >= 0 && x < (s64)map.dims[i];
        base += x * map.strides[i - 1];
      }
      for (u32 i = 0; i < width; i += step) {
        const u32 n = std::min(step, width - i), to = swizzled(off + (r * width + i) * es, map.swizzle);
        const s64 x = (s64)at[0] + (s64)i * map.estr[0];
        if (inside && x >= 0 && x + n <= (s64)map.dims[0])
          fn(to, base + x * es, n * es, true);
        else
          for (u32 j = 0; j < n; j++)
            fn(to + j * es, base + (x + j) * es, es, inside && x + j >= 0 && x + j < (s64)map.dims[0]);
      }
      for (int i = 1; i < map.rank; i++) {
        if (++idx[i] < map.box[i]) break;
        idx[i] = 0;
      }
    }
  }
};

// To nearest even at 10 bits of mantissa; infinity and NaN stay.
static void roundTf32(u8* p) {
  u32 bits;
  memcpy(&bits, p, 4);
  if ((bits & 0x7f800000) != 0x7f800000) bits = (bits + 0xfff + (bits >> 13 & 1)) & 0xffffe000;
  memcpy(p, &bits, 4);
}

void Exec::bulk(Warp& w, const Instr& in, u32 mk) {
  forLanes(mk, [&](int l) {
    st.tmaReq++;
    Tile t = {};
    t.tensor = in.m;
    t.global = addr(w, in.o[1], l);
    if (t.tensor) {
      const u64 a = t.global;
      const u8* p;
      if ((a >> WSHIFT) == (PARAM_WIN >> WSHIFT)) {
        if (a - PARAM_WIN + 128 > k.paramBytes) fail(w, l, "tensor map outside kernel parameters");
        p = params + (a - PARAM_WIN);
      } else
        p = global(w, l, a, 128, false, 64);
      if (a & 63) fail(w, l, "tensor map address is not 64-byte aligned");
      memcpy(&t.map, p, sizeof t.map);
      if (memcmp(t.map.magic, TENSOR_MAP_MAGIC, 8))
        fail(w, l, "address 0x%llx does not hold a tensor map", (unsigned long long)a);
      if (t.map.rank != in.n) fail(w, l, "tensor map has rank %u, instruction %u", t.map.rank, in.n);
      const auto& v = k.vecs[in.o[1].vec];
      if (v.size() != t.map.rank) fail(w, l, "coordinate count");
      for (size_t i = 0; i < v.size(); i++) t.at[i] = (s32)rd(w, v[i], l);
      t.bytes = t.map.esize;
      for (int i = 0; i < t.map.rank; i++) t.bytes *= t.map.box[i];
    } else {
      t.bytes = rd(w, in.o[2], l);
      if (t.bytes % 16 || t.global % 16) fail(w, l, "bulk copy size and addresses must be multiples of 16");
    }
    shared(w, l, sharedAddr(w, l, SHARED, addr(w, in.o[0], l)), t.bytes, t.b, t.off, t.tensor ? 128 : 16);
    if (in.sub == BULK_LOAD)
      bulkLoad(w, in, l, t);
    else
      bulkStore(w, in, l, t);
  });
  w.b->g->progress++;
}
void Exec::bulkLoad(Warp& w, const Instr& in, int l, const Tile& t) {
  Group& g = *w.b->g;
  Block* mb;
  u32 mboff;
  shared(w, l, sharedAddr(w, l, SHARED, addr(w, in.o[3], l)), 8, mb, mboff);
  std::vector<u8> data(t.bytes, 0);
  st.tmaLoadBytes += t.bytes;
  u64 sector = ~0ull;  // the last one that was counted: pieces of a row follow each other
  t.visit([&](u32 to, u64 from, u32 n, bool inside) {
    if (to < t.off || to + n > t.off + t.bytes) fail(w, l, "TMA destination is not aligned to its swizzle pattern");
    u8* d = &data[to - t.off];
    if (inside) {
      memcpy(d, global(w, l, from, n, false, 1), n);
      if (t.map.dtype == TENSOR_TF32)
        for (u32 i = 0; i < n; i += 4) roundTf32(d + i);
      for (u64 s = from / 32; s <= (from + n - 1) / 32; s++)
        if (s != sector) {
          sector = s;
          st.tmaLoadSectors++;
        }
    } else if (t.map.oob) {  // NaN instead of zero
      const u32 nan = t.map.esize == 2 ? 0x7fff : 0x7fffffff;
      memcpy(d, &nan, std::min<u32>(n, 4));
    }
  });
  auto send = [&](Block* to, Block* barrier) {
    shPending(w, l, *to, t.off, t.bytes);
    memset(&to->smem[t.off], 0xff, t.bytes);
    auto it = barrier->mb.find(mboff);
    if (it == barrier->mb.end() || !it->second.valid)
      fail(w, l, "bulk copy names an uninitialised mbarrier at offset %u", mboff - SMEM_BASE);
    g.bulk.push_back({barrier, mboff, to, t.off, t.bytes, data});
  };
  if (!(in.flags & F_MULTICAST)) return send(t.b, mb);
  const u32 mask = rd(w, in.o[4], l);
  if (!mask || mask >> g.b.size()) fail(w, l, "multicast mask 0x%x in a cluster of %zu", mask, g.b.size());
  for (u32 r = 0; r < g.b.size(); r++)
    if (mask >> r & 1) send(g.b[r], g.b[r]);
}
void Exec::bulkStore(Warp& w, const Instr& in, int l, const Tile& t) {
  if (t.b != w.b) fail(w, l, "bulk store from remote shared memory");
  if (chk) {
    shRead(w, l, *t.b, t.off, t.bytes);
    proxyCheck(w, l, *t.b, t.off, t.bytes, "bulk store");
  }
  st.tmaStoreBytes += t.bytes;
  const bool reduce = in.flags & F_RED;
  Ty type = in.t;
  if (reduce && t.tensor) {
    static const std::map<u8, Ty> types = {{2, U32}, {3, S32}, {6, F16}, {7, F32}, {9, BF16}};
    auto it = types.find(t.map.dtype);
    if (it == types.end()) fail(w, l, "bulk reduction element type");
    type = it->second;
  }
  auto perform = [this, t, l, reduce, type, op = in.bop, warp = &w, line = w.curLine] {
    const u32 now = std::exchange(warp->curLine, line);  // errors name the copy
    t.visit([&](u32 from, u64 to, u32 n, bool inside) {
      if (!inside) return;
      u8* p = global(*warp, l, to, n, true, 1);
      if (reduce)
        reduceInto(*warp, l, p, &t.b->smem[from], n, type, op);
      else
        memcpy(p, &t.b->smem[from], n);
    });
    warp->curLine = now;
  };
  w.bulkSt.push_back({w.bulkGroup[l], l, t.b, t.off, t.bytes, perform});
  w.b->inflightStores++;
}
void Exec::reduceInto(Warp& w, int l, u8* p, const u8* s, u32 n, Ty t, u8 op) {
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  if (op != A_ADD && t != U32 && t != S32) fail(w, l, "bulk reduction operation");
  const u32 es = tySize(t);
  for (u32 i = 0; i < n; i += es) {
    u32 a = 0, b = 0;
    memcpy(&a, p + i, es);
    memcpy(&b, s + i, es);
    bool ok;
    const u32 r = atomOp(op, t, a, b, 0, ok);
    memcpy(p + i, &r, es);
  }
}
// Completes the loads that signal this mbarrier.
bool Exec::deliver(Group& g, Block* mb, u32 off) {
  bool any = false;
  size_t left = 0;
  for (size_t i = 0; i < g.bulk.size(); i++) {
    Bulk& x = g.bulk[i];
    if (x.mb != mb || x.mboff != off) {
      if (left != i) g.bulk[left] = std::move(x);
      left++;
      continue;
    }
    auto it = mb->mb.find(off);
    if (it == mb->mb.end()) continue;
    MBar& bar = it->second;
    any = true;
    memcpy(&x.b->smem[x.off], x.data.data(), x.bytes);
    const u32 actor = AG_MB + bar.slot;
    shLanded(*x.b, x.off, x.bytes, actor);
    if (chk) {
      if (bar.acc.size() != NVC) bar.acc.assign(NVC, 0);
      bar.acc[actor] = mb->stamp;
      bump(*mb);
    }
    bar.tx -= x.bytes;
    mbComplete(*mb, bar);
    g.progress++;
  }
  g.bulk.resize(left);
  return any;
}
void Exec::flushBulk(Group& g) {
  if (g.bulk.empty()) return;
  std::lock_guard<std::mutex> lock(*omu);
  const u32* id = g.b[0]->id;
  if (warn->size() < 4000)
    *warn += strf("block (%u,%u,%u): %zu bulk copies were still in flight when the block exited\n", id[0], id[1], id[2],
                  g.bulk.size());
}
void Exec::bulkCommit(Warp& w, const Instr&, u32 mk) {
  forLanes(mk, [&](int l) { w.bulkGroup[l]++; });
}
// Performs the stores of these lanes that are older than the newest `keep` groups, or all of them when the lanes exit.
// .read or not is the same here: a store is done as soon as its source is read.
void Exec::bulkWait(Warp& w, u32 mk, u32 keep, bool exits) {
  size_t left = 0;
  for (size_t i = 0; i < w.bulkSt.size(); i++) {
    BulkStore& x = w.bulkSt[i];
    if ((mk >> x.lane & 1) && (exits || x.group + keep < w.bulkGroup[x.lane])) {
      x.perform();
      x.b->inflightStores--;
      w.b->g->progress++;
    } else {
      if (i != left) w.bulkSt[left] = std::move(x);
      left++;
    }
  }
  w.bulkSt.resize(left);
}
}  // namespace ptx
