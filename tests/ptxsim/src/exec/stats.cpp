// Statistics: what a request costs, and the report as JSON.
#include <algorithm>

#include "exec.h"

namespace ptx {

// Sectors of 32 bytes that a request touches.
u32 Exec::sectors(const u64* a, u32 mk, u32 size) {
  u64 s[32 * 4];  // a lane touches at most four: 16 bytes, or 64 that are aligned
  u32 n = 0;
  u64 last = ~0ull;
  bool sorted = true;
  for (u32 q = mk; q; q &= q - 1) {
    const u64 first = a[std::countr_zero(q)], end = (first + size - 1) >> 5;
    for (u64 x = first >> 5; x <= end && n < 128; x++) {
      if (x == last) continue;
      sorted &= !n || x > last;
      s[n++] = last = x;
    }
  }
  if (sorted) return n;
  std::sort(s, s + n);
  return std::unique(s, s + n) - s;
}
// Passes of 128 bytes that a request to shared memory takes: as many as the most loaded of the 32 banks has different
// words. Accesses of 8 bytes go by half warps, of 16 bytes by quarters. Accesses are aligned, so that those of 8 and 16
// bytes can be counted as units in 16 or 8 wider banks.
static u32 passes(const u32* a, u32 lanes, u32 shift) {
  const u32 banks = 128 >> shift;
  u32 units[32][32], count[32] = {}, most = 0;
  for (u32 q = lanes; q; q &= q - 1) {
    const u32 unit = a[std::countr_zero(q)] >> shift, bank = unit & (banks - 1);
    u32* known = units[bank];
    if (std::find(known, known + count[bank], unit) != known + count[bank]) continue;
    known[count[bank]++] = unit;
    most = std::max(most, count[bank]);
  }
  return most;
}
u32 Exec::wavefronts(const u32* a, u32 mk, u32 size) {
  const u32 per = size <= 4 ? 32 : size == 8 ? 16 : 8, shift = size <= 4 ? 2 : std::countr_zero(size);
  const u32 full = (1ull << per) - 1;
  u32 total = 0;
  for (u32 g = 0; g < 32; g += per) {
    const u32 lanes = mk >> g & full;
    if (lanes == full) {  // most often contiguous, or all the same
      const u32 lo = *std::min_element(a + g, a + g + per), hi = *std::max_element(a + g, a + g + per);
      if ((hi >> shift) - (lo >> shift) < 128u >> shift) {
        total++;
        continue;
      }
    }
    total += passes(a + g, lanes, shift);
  }
  return total;
}

// ---- report
static const char* const clsNames[S_NCLS] = {
    "int",         "fp32",      "fp64",      "fp16",      "sfu",      "move",     "cvt",      "ctrl",
    "ld_global",   "st_global", "ld_shared", "st_shared", "ld_local", "st_local", "ld_param", "atom_global",
    "atom_shared", "shfl",      "vote",      "barrier",   "cp_async", "ldmatrix", "stmatrix", "mma",
    "wgmma",       "tma",       "mbarrier",  "fence",     "other"};

std::string jsonStr(const std::string& s) {
  std::string r = "\"";
  for (char c : s) {
    if (c == '"' || c == '\\')
      r += std::string("\\") + c;
    else if (c == '\n')
      r += "\\n";
    else if ((u8)c < 32)
      r += strf("\\u%04x", c);
    else
      r += c;
  }
  return r + "\"";
}
std::string statsJson(const LaunchResult& r, const Kernel& k) {
  const Stats& s = r.st;
  const std::pair<const char*, u64> values[] = {
      {"blocks", s.blocks},
      {"warps", s.warps},
      {"warp_instructions", s.warpInstr},
      {"thread_instructions", s.threadInstr},
      {"global_load_requests", s.gldReq},
      {"global_load_bytes", s.gldBytes},
      {"global_load_sectors", s.gldSectors},
      {"global_store_requests", s.gstReq},
      {"global_store_bytes", s.gstBytes},
      {"global_store_sectors", s.gstSectors},
      {"shared_load_requests", s.sldReq},
      {"shared_load_bytes", s.sldBytes},
      {"shared_load_wavefronts", s.sldWave},
      {"shared_store_requests", s.sstReq},
      {"shared_store_bytes", s.sstBytes},
      {"shared_store_wavefronts", s.sstWave},
      {"ldmatrix_requests", s.ldmReq},
      {"ldmatrix_wavefronts", s.ldmWave},
      {"cp_async_requests", s.cpaReq},
      {"cp_async_bytes", s.cpaBytes},
      {"cp_async_sectors", s.cpaSectors},
      {"cp_async_smem_wavefronts", s.cpaWave},
      {"mma_count", s.mmaCount},
      {"mma_flops", s.mmaFlops},
      {"wgmma_count", s.wgmmaCount / 4},  // counted by warps
      {"wgmma_flops", s.wgmmaFlops},
      {"fp32_flops", s.fp32Flops},
      {"tma_requests", s.tmaReq},
      {"tma_load_bytes", s.tmaLoadBytes},
      {"tma_load_sectors", s.tmaLoadSectors},
      {"tma_store_bytes", s.tmaStoreBytes},
      {"atomics_global", s.atomG},
      {"atomics_shared", s.atomS},
      {"barriers_completed", s.barriers},
      {"divergent_branches", s.divergentBranches},
      {"registers", k.numRegs},
      {"static_smem", k.smemStatic},
  };
  std::string j = "{";
  for (auto& [name, v] : values) j += strf("\"%s\":%llu,", name, (unsigned long long)v);
  j += "\"warp_instructions_by_class\":{";
  const char* comma = "";
  for (int i = 0; i < S_NCLS; i++)
    if (s.cls[i]) {
      j += strf("%s\"%s\":%llu", comma, clsNames[i], (unsigned long long)s.cls[i]);
      comma = ",";
    }
  return j + "},\"printf\":" + jsonStr(r.out) + ",\"warnings\":" + jsonStr(r.warn) + "}";
}
}  // namespace ptx
