// Running a kernel: the interface between the executor and those who launch (capi.cpp, driver/).
#pragma once
#include "../ptx/module.h"

namespace ptx {

struct Stats {
  u64 warpInstr = 0, threadInstr = 0, cls[S_NCLS] = {};
  u64 gldBytes = 0, gstBytes = 0, gldSectors = 0, gstSectors = 0, gldReq = 0, gstReq = 0;
  u64 sldReq = 0, sldWave = 0, sldBytes = 0, sstReq = 0, sstWave = 0, sstBytes = 0;
  u64 ldmReq = 0, ldmWave = 0, cpaReq = 0, cpaBytes = 0, cpaSectors = 0, cpaWave = 0;
  u64 mmaFlops = 0, mmaCount = 0, wgmmaFlops = 0, wgmmaCount = 0, tmaLoadBytes = 0, tmaStoreBytes = 0, tmaReq = 0;
  u64 tmaLoadSectors = 0;
  u64 atomG = 0, atomS = 0, barriers = 0, blocks = 0, warps = 0, fp32Flops = 0, divergentBranches = 0;

  void add(const Stats& o) {  // every member is a u64
    const u64* s = (const u64*)&o;
    u64* d = (u64*)this;
    for (size_t i = 0; i < sizeof(Stats) / 8; i++) d[i] += s[i];
  }
};

// The fields of ptxsim/library.py: Config, in the same order.
struct LaunchCfg {
  u32 grid[3], block[3], cluster[3];
  u32 dynSmem;
  int checkRaces, checkUninit, checkProxy, allowExitedCta, exitedAtBarrier;
  int threads, resident;
  u32 maxSmem;
  u64 maxInstr;
  int order, strictWarp;
  bool coverage = false;  // Kernel::executed is filled in
};
struct LaunchResult {
  Stats st;
  std::string error, out, warn;
};

void launch(Module& m, Kernel& k, const LaunchCfg& cfg, const u8* params, LaunchResult& res);
std::string jsonStr(const std::string& s);
std::string statsJson(const LaunchResult& r, const Kernel& k);
}  // namespace ptx
