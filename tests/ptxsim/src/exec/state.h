// What a running kernel consists of: warps, blocks, and groups of blocks that run together; with the bookkeeping of
// their checks.
#pragma once
#include <functional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../ptx/module.h"

namespace ptx {
struct Block;
struct Group;

// Actors that read and write shared memory: threads 0..1023, then asynchronous ones, then marks that name no actor.
constexpr u32 AG_WG = 1024;                    // + warpgroup: wgmma reading its operands
constexpr u32 AG_MB = 1032;                    // + mbarrier slot: bulk copies that complete on it
constexpr u32 N_MB = 248, NVC = AG_MB + N_MB;  // length of a vector clock
constexpr u16 W_NEVER = 0x7ffe, W_PENDING = 0x7fff, W_ATOMIC = 0x8000;
constexpr u32 RD_MULTI = 63;  // read by several lanes

// Shadow of shared memory, one entry a granule: who wrote it last, and who has read it since (races.cpp).
struct ReadEntry {
  u32 stampLane;  // stamp << 6 | lane
  u32 line;
};
struct Shadow {
  u32 shift = 2, slots = 0;  // log2 of the granule; readers that are told apart: warps, then warpgroups
  std::vector<u16> writer;
  std::vector<u32> stamp, line;
  std::vector<u64> readers;      // a bit a slot
  std::vector<ReadEntry> reads;  // [granule][slot]
};

struct CpOp {  // cp.async that has not been waited for
  u8 lane, size;
  u32 group, dst;
  u8 data[16];
};
struct Bulk {  // bulk load that has not been delivered
  Block* mb;   // the mbarrier it completes on
  u32 mboff;
  Block* b;  // its destination
  u32 off, bytes;
  std::vector<u8> data;
};
struct BulkStore {  // bulk store whose source has not been read
  u32 group;
  int lane;
  Block* b;
  u32 off, bytes;
  std::function<void()> perform;
};

struct MBar {
  u32 expected = 0, pending = 0, phase = 0;
  s64 tx = 0;
  u32 initTid = 0, initStamp = 0, slot = 0;
  std::vector<u32> acc, rel;  // what those who arrived know: in this phase, in the last one
  u32 accFloor = 0, relFloor = 0;
  bool valid = false;
};
struct NBar {  // named barrier: bar.sync 0..15
  u32 arrived = 0, expected = 0;
  u32 anyTrue = 0, allTrue = ~0u, countTrue = 0;  // bar.red
  std::vector<u32> vc;
  u32 floor = 0;
  bool used = false, hasCount = false;  // with a number of threads of its own
};

struct Warp {
  Block* b = nullptr;
  u32 wid = 0;
  u8 *regs = nullptr, *local = nullptr, *fparam = nullptr;
  u32 exists = 0, live = 0, pc[32];
  u32 parked = 0;   // lanes that wait for others of their warp at a .sync instruction
  u32 barWait = 0;  // lanes that wait at a barrier, and which
  u8 barId[32];
  u32 yielded = 0;  // lanes that let the others go first
  u32 cc = 0;       // carry flags
  u32 curLine = 0;
  u64 slice = 0;               // instructions in the current time slice
  u64 diverged = 0;            // instructions since all ready lanes ran together
  std::vector<s32> stack[32];  // of calls
  // asynchronous copies
  std::vector<CpOp> cp;
  u32 cpGroup[32] = {};
  std::vector<BulkStore> bulkSt;
  u32 bulkGroup[32] = {};
  // happens-before: stamps up to `floor` are known of everyone, up to `wfloor` of this warp
  u32 floor = 0, wfloor = 0;
  std::vector<u32> vc;
  std::vector<u32> lane2;  // [lane][other lane], after bar.warp.sync with a partial mask
  u32 fence[32] = {};      // last fence.proxy.async
  // wgmma
  u32 wgGroup = 0;
  std::vector<std::pair<u32, std::vector<u32>>> wgInflight;  // group, registers
  std::vector<u32> wgIssueStamp, wgCommitCount;
  std::vector<u32> taint;  // by register: used by a wgmma in flight
  bool tainted = false, wgFenced = false;
  // cluster barrier
  bool clArrived = false;
  u32 clPhase = 0;

  u32 ready() const { return live & ~barWait & ~parked; }
};
struct Block {
  u32 id[3], rank = 0, nthreads = 0, nwarps = 0;
  Group* g = nullptr;
  std::vector<Warp> w;
  std::vector<u8> smem, regs, local, fparam;
  u32 smemEnd = 0;
  NBar bar[16];
  std::unordered_map<u32, MBar> mb;
  u32 mbSlots = 0;
  u32 stamp = 1;  // goes up with every synchronisation
  u32 exited = 0, liveWarps = 0;
  Shadow sh;
  u32 inflightStores = 0;
};
struct Group {  // blocks that run together on one host thread: a cluster, or resident blocks
  std::vector<Block*> b;
  u32 cl[3] = {1, 1, 1};
  std::vector<Bulk> bulk;
  u64 progress = 0;  // for the detection of deadlocks
  u32 clPhase = 0;
};
}  // namespace ptx
