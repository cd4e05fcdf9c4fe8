// Special registers: each one that the kernel reads is an ordinary register, filled when the block starts.
#include <map>

#include "exec.h"

namespace ptx {

void Exec::specialRegisters(Warp& w) {
  const Block& b = *w.b;
  const u32* cl = b.g->cl;
  const u32 clusterSize = cl[0] * cl[1] * cl[2];
  struct Lane {
    u32 l, tid[3];
  };
  using Value = std::function<u64(const Lane&, int axis)>;
  auto same = [](u64 v) -> Value { return [v](const Lane&, int) { return v; }; };
  const std::map<std::string, Value> values = {
      // by name without .x .y .z; what is missing reads 0
      {"%tid", [](const Lane& t, int axis) { return t.tid[axis]; }},
      {"%ntid", [&](const Lane&, int axis) { return cfg.block[axis]; }},
      {"%ctaid", [&](const Lane&, int axis) { return b.id[axis]; }},
      {"%nctaid", [&](const Lane&, int axis) { return cfg.grid[axis]; }},
      {"%laneid", [](const Lane& t, int) { return t.l; }},
      {"%warpid", same(w.wid)},
      {"%nwarpid", same(b.nwarps)},
      {"%nsmid", same(1)},
      {"%lanemask_eq", [](const Lane& t, int) { return 1ull << t.l; }},
      {"%lanemask_lt", [](const Lane& t, int) { return (1ull << t.l) - 1; }},
      {"%lanemask_le", [](const Lane& t, int) { return (2ull << t.l) - 1; }},
      {"%lanemask_gt", [](const Lane& t, int) { return (u32) ~((2ull << t.l) - 1); }},
      {"%lanemask_ge", [](const Lane& t, int) { return (u32) ~((1ull << t.l) - 1); }},
      {"%dynamic_smem_size", same(cfg.dynSmem)},
      {"%total_smem_size", same(b.smemEnd - SMEM_BASE)},
      {"%aggr_smem_size", same(b.smemEnd - SMEM_BASE)},
      {"%reserved_smem_offset_end", same(SMEM_BASE)},
      {"%cluster_ctaid", [&](const Lane&, int axis) { return b.id[axis] % cl[axis]; }},
      {"%cluster_nctaid", [&](const Lane&, int axis) { return cl[axis]; }},
      {"%clusterid", [&](const Lane&, int axis) { return b.id[axis] / cl[axis]; }},
      {"%nclusterid", [&](const Lane&, int axis) { return cfg.grid[axis] / cl[axis]; }},
      {"%cluster_ctarank", same(b.rank)},
      {"%cluster_nctarank", same(clusterSize)},
      {"%is_explicit_cluster", same(clusterSize > 1)},
  };
  for (auto& s : k.sregs) {
    const size_t dot = s.name.find('.');
    const int axis = dot == std::string::npos ? 0 : s.name[dot + 1] - 'x';
    const auto it = values.find(s.name.substr(0, dot));
    Opnd o;
    o.k = K_REG;
    o.off = s.off;
    o.sz = s.size;
    for (u32 l = 0; l < 32; l++) {
      const u32 t = w.wid * 32 + l, plane = cfg.block[0] * cfg.block[1];
      const Lane lane = {l, {t % cfg.block[0], t / cfg.block[0] % cfg.block[1], t / plane}};
      wr(w, o, l, it == values.end() ? 0 : it->second(lane, axis));
    }
  }
}
}  // namespace ptx
