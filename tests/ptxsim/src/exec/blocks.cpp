// Blocks and their scheduling: the grid is cut into groups of blocks that run together on one host thread, a cluster or
// cfg.resident blocks; the warps of a group take turns until all have exited. Nothing makes progress: a deadlock.
#include <algorithm>
#include <thread>

#include "exec.h"

namespace ptx {

void Exec::initBlock(Block& b, u32 bx, u32 by, u32 bz, Group& g, u32 rank) {
  b.id[0] = bx;
  b.id[1] = by;
  b.id[2] = bz;
  b.rank = rank;
  b.g = &g;
  b.nthreads = cfg.block[0] * cfg.block[1] * cfg.block[2];
  b.nwarps = b.liveWarps = (b.nthreads + 31) / 32;
  b.smemEnd = cfg.dynSmem ? k.dynOff + cfg.dynSmem : SMEM_BASE + k.smemStatic;
  b.smem.assign(b.smemEnd + 16, 0xff);
  b.mb.clear();
  b.mbSlots = 0;
  b.stamp = 1;
  b.exited = b.inflightStores = 0;
  for (auto& x : b.bar) x = NBar();
  if (chk) {
    b.sh.shift = k.granule == 1 ? 0 : k.granule == 2 ? 1 : 2;
    b.sh.slots = b.nwarps + (k.usesWgmma ? (b.nwarps + 3) / 4 : 0);
    const u32 n = ((b.smemEnd - SMEM_BASE) >> b.sh.shift) + 4;
    b.sh.writer.assign(n, W_NEVER);
    b.sh.stamp.assign(n, 0);
    b.sh.line.assign(n, 0);
    b.sh.readers.assign(n, 0);
    b.sh.reads.resize(std::max(b.sh.reads.size(), (size_t)n * b.sh.slots));
  }
  const size_t regBytes = (k.regBytes + 127) / 64 * 64 + 512;
  b.regs.assign(regBytes * b.nwarps + 64, 0);
  b.local.assign((size_t)b.nwarps * 32 * k.localBytes + 64, 0xff);
  b.fparam.assign((size_t)b.nwarps * 32 * k.fparamBytes + 64, 0);
  u8* regs = (u8*)(((uintptr_t)b.regs.data() + 63) & ~63ull);
  b.w.clear();
  b.w.resize(b.nwarps);
  for (u32 i = 0; i < b.nwarps; i++) {
    Warp& w = b.w[i];
    w.b = &b;
    w.wid = i;
    w.regs = regs + i * regBytes;
    w.local = b.local.data() + (size_t)i * 32 * k.localBytes;
    w.fparam = b.fparam.data() + (size_t)i * 32 * k.fparamBytes;
    const u32 n = std::min(32u, b.nthreads - i * 32);
    w.exists = w.live = n == 32 ? ~0u : (1u << n) - 1;
    memset(w.pc, 0, sizeof w.pc);
    specialRegisters(w);
  }
  st.blocks++;
  st.warps += b.nwarps;
}

void Exec::runGroup(Group& g) {
  std::vector<Warp*> ws;
  for (auto* b : g.b)
    for (auto& w : b->w) ws.push_back(&w);
  if (cfg.order == 1) std::reverse(ws.begin(), ws.end());
  const bool shuffled = cfg.order >= 2;
  u32 rng = 12345u * (u32)(cfg.order + 1), idle = 0;
  for (;;) {
    bool any = false, runnable = false;
    const u64 progress = g.progress, before = st.warpInstr;
    if (shuffled)
      for (size_t i = ws.size(); i > 1; i--) {
        rng = rng * 1664525u + 1013904223u;
        std::swap(ws[i - 1], ws[(rng >> 8) % i]);
      }
    for (auto* w : ws) {
      any |= w->live != 0;
      if (!w->ready()) continue;
      runnable = true;
      const u64 start = st.warpInstr;
      run(*w, shuffled ? 64 + (rng >> 20) : 4000);
      total += st.warpInstr - start;
    }
    if (*stop) throw Error("stopped");
    if (!any) break;
    const u64 executed = st.warpInstr - before;
    if (gtotal->fetch_add(executed) + executed > cfg.maxInstr) tooManyInstructions(ws);
    idle = g.progress == progress ? idle + 1 : 0;
    if (!runnable || idle > 20000 || (idle > 200 && executed < 64 * ws.size())) deadlock(ws);
  }
  flushBulk(g);
}
void Exec::tooManyInstructions(const std::vector<Warp*>& ws) {
  Warp* last = nullptr;
  for (auto* w : ws)
    if (w->live) last = w;
  fail(*last, -1, "instruction limit of %llu warp instructions exceeded (endless loop?)",
       (unsigned long long)cfg.maxInstr);
}
void Exec::deadlock(const std::vector<Warp*>& ws) {
  std::string s;
  Warp* first = nullptr;
  int listed = 0;
  for (auto* w : ws) {
    if (!w->live) continue;
    if (!first) first = w;
    if (listed++ >= 8) continue;
    for (u32 rest = w->live; rest;) {  // lanes at one place together
      const int l = std::countr_zero(rest);
      u32 same = 0, pc = w->pc[l];
      for (u32 q = rest; q; q &= q - 1)
        if (w->pc[std::countr_zero(q)] == pc) same |= q & -q;
      rest &= ~same;
      const bool waits = w->barWait >> l & 1;
      if (waits && pc) pc--;
      const Block& b = *w->b;
      const NBar& n = b.bar[w->barId[l] & 15];
      const std::string why =
          waits ? strf("barrier %u: %u of %u threads arrived, %u exited", w->barId[l], n.arrived, n.expected, b.exited)
          : w->parked >> l & 1       ? "waits for other lanes of its warp"
          : k.code[pc].op == O_CLBAR ? "cluster barrier"
                                     : "spins on an mbarrier or memory";
      s += strf("\n  block (%u,%u,%u) warp %u lanes 0x%08x at PTX line %u (%s)", b.id[0], b.id[1], b.id[2], w->wid,
                same, k.code[pc].line, why.c_str());
    }
  }
  first->curLine = k.code[first->pc[std::countr_zero(first->live)]].line;
  throw Error(where(*first, -1) + ": deadlock or barrier divergence; waiting threads:" + s);
}

static std::string refused(const Kernel& k, const LaunchCfg& cfg, const u32* cl) {  // why a launch is not possible
  const Func& f = *k.entry;
  auto product = [](const u32* v) { return v[0] * v[1] * v[2]; };
  const u32 threads = product(cfg.block);
  if (!threads || threads > 1024) return "block size";
  if (f.reqntid[0] && threads != product(f.reqntid)) return "block size differs from .reqntid";
  if (f.maxntid[0] && threads > product(f.maxntid)) return "block size exceeds .maxntid (launch bounds)";
  for (int i = 0; i < 3; i++) {
    if (!cfg.grid[i]) return "empty grid";
    if (cfg.grid[i] % cl[i]) return "grid is not a multiple of the cluster size";
  }
  if (product(cl) > 16) return "cluster too large";
  if (k.smemStatic > 48 * 1024) return "static shared memory above 48 KiB";
  if (k.dynOff + cfg.dynSmem - SMEM_BASE > cfg.maxSmem)
    return strf("shared memory %u + %u exceeds %u bytes", k.smemStatic, cfg.dynSmem, cfg.maxSmem);
  return "";
}
void launch(Module& m, Kernel& k, const LaunchCfg& cfg, const u8* params, LaunchResult& res) {
  const std::string& name = k.entry->name;
  if (k.unsupported.size()) {
    res.error = strf("kernel %s uses %zu unsupported instructions:", name.c_str(), k.unsupported.size());
    for (size_t i = 0; i < k.unsupported.size() && i < 5; i++) res.error += "\n  " + k.unsupported[i];
    return;
  }
  u32 cl[3], n[3];  // blocks of a cluster, clusters of the grid
  for (int i = 0; i < 3; i++) {
    cl[i] = k.entry->cluster[0] ? k.entry->cluster[i] : std::max(1u, cfg.cluster[i]);
    n[i] = cfg.grid[i] / cl[i];
  }
  if (std::string why = refused(k, cfg, cl); !why.empty()) {
    res.error = "launch of " + name + ": " + why;
    return;
  }
  const u32 size = cl[0] * cl[1] * cl[2];
  const u64 clusters = (u64)n[0] * n[1] * n[2];
  const u64 together = size > 1 ? 1 : cfg.resident < 0 ? clusters : std::max(1, cfg.resident);
  const u64 groups = (clusters + together - 1) / together;
  std::atomic<u64> nextGroup{0}, executed{0};
  std::atomic<int> stop{0};
  std::mutex mutex;
  auto work = [&] {
    Exec ex(m, k, cfg, params);
    ex.stop = &stop;
    ex.gtotal = &executed;
    ex.out = &res.out;
    ex.warn = &res.warn;
    ex.omu = &mutex;
    std::vector<std::unique_ptr<Block>> pool;  // their memory is used again
    try {
      for (u64 i; (i = nextGroup++) < groups && !stop;) {
        Group g;
        memcpy(g.cl, cl, sizeof cl);
        for (u64 c = i * together; c < std::min(clusters, (i + 1) * together); c++)
          for (u32 r = 0; r < size; r++) {
            if (pool.size() <= g.b.size()) pool.push_back(std::make_unique<Block>());
            Block& b = *pool[g.b.size()];
            g.b.push_back(&b);
            ex.initBlock(b, c % n[0] * cl[0] + r % cl[0], c / n[0] % n[1] * cl[1] + r / cl[0] % cl[1],
                         c / n[0] / n[1] * cl[2] + r / cl[0] / cl[1], g, r);
          }
        ex.runGroup(g);
      }
    } catch (std::exception& e) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!stop) {
        stop = 1;
        res.error = e.what();
      }
    }
    std::lock_guard<std::mutex> lock(mutex);
    res.st.add(ex.st);
  };
  const u64 extra = std::min<u64>(std::max(1, cfg.threads), groups) - 1;
  std::vector<std::thread> threads;
  for (u64 i = 0; i < extra; i++) threads.emplace_back(work);
  work();
  for (auto& t : threads) t.join();
}
}  // namespace ptx
