// The executor: one object per host thread runs groups of blocks. Names that recur in its methods:
//   w warp, b block, in instruction, mk mask of the lanes that execute it, l a lane, off an offset in shared memory
#pragma once
#include <atomic>
#include <mutex>

#include "formats.h"
#include "lanes.h"
#include "launch.h"
#include "state.h"

namespace ptx {

// How the interpreter goes on after an instruction.
enum Flow {
  NEXT,     // at the next instruction, with the same lanes
  JUMP,     // at Step::pc, with the same lanes
  RESELECT  // the pc of every lane was saved: choose again who runs
};
struct Step {
  u32 mask;  // lanes that run together
  u32 em;    // those among them whose guard predicate holds
  u32 pc;
};

struct Access {  // of one load or store, by lane
  u32 size;
  u8* p[32];
  u64 address[32];                      // in global memory
  u32 offset[32];                       // in shared memory
  u32 global = 0, shared = 0, own = 0;  // lanes; own: in the shared memory of their own block
};

struct Exec {
  Module& m;
  Kernel& k;
  const LaunchCfg& cfg;
  const u8* params;
  const bool chk;  // races are checked
  Stats st;
  u64 total = 0;  // warp instructions up to the current time slice: what clocks show
  // shared with the other host threads
  std::atomic<int>* stop;
  std::atomic<u64>* gtotal;
  std::string *out, *warn;
  std::mutex* omu;

  Exec(Module& mm, Kernel& kk, const LaunchCfg& c, const u8* p)
      : m(mm), k(kk), cfg(c), params(p), chk(c.checkRaces), discard(1024) {}

  // ---- scheduling: interpreter.cpp, blocks.cpp, special_registers.cpp
  void initBlock(Block& b, u32 bx, u32 by, u32 bz, Group& g, u32 rank);
  void runGroup(Group& g);

 private:
  std::vector<u64> discard;  // where results go that nobody wants

  void run(Warp& w, u64 quantum);
  void specialRegisters(Warp& w);
  [[noreturn]] void deadlock(const std::vector<Warp*>& warps);
  [[noreturn]] void tooManyInstructions(const std::vector<Warp*>& warps);

  // ---- registers
  u8* P(Warp& w, const Opnd& o) { return (o.k == K_CONST ? k.cpool.data() : w.regs) + o.off; }
  u8* D(Warp& w, const Opnd& o) { return o.k == K_REG ? w.regs + o.off : (u8*)discard.data(); }
  Args args(Warp& w, const Instr& in, u32 mk) {
    return {D(w, in.o[0]), P(w, in.o[1]), P(w, in.o[2]), P(w, in.o[3]), mk};
  }
  u32 pmask(Warp& w, const Opnd& o) {
    u32 v = o.k == K_CONST ? o.off : *(u32*)(w.regs + o.off);
    return o.neg ? ~v : v;
  }
  void setPred(Warp& w, const Opnd& o, u32 mk, u32 v) {
    if (o.k != K_REG) return;
    u32& r = *(u32*)(w.regs + o.off);
    r = (r & ~mk) | (v & mk);
  }
  u64 rd(Warp& w, const Opnd& o, int l) {
    switch (o.sz) {
      case 1:
        return pmask(w, o) >> l & 1;
      case 4:
        return ((u32*)P(w, o))[l];
      case 8:
        return ((u64*)P(w, o))[l];
      case 16:
        return ((u64*)P(w, o))[2 * l];
      default:
        return 0;
    }
  }
  void wr(Warp& w, const Opnd& o, int l, u64 v) {
    if (o.k != K_REG) return;
    u8* r = w.regs + o.off;
    switch (o.sz) {
      case 1:
        setPred(w, o, 1u << l, v & 1 ? ~0u : 0);
        break;
      case 4:
        ((u32*)r)[l] = v;
        break;
      case 8:
        ((u64*)r)[l] = v;
        break;
      case 16:
        ((u64*)r)[2 * l] = v;
        ((u64*)r)[2 * l + 1] = 0;
        break;
    }
  }
  u64* wide(Warp& w, const Opnd& o, int l) { return (u64*)P(w, o) + 2 * l; }  // of a 128-bit register
  u64 addr(Warp& w, const Opnd& o, int l) {
    if (!o.hasBase) return o.imm;
    return (o.sz == 4 ? (u64)((u32*)(w.regs + o.off))[l] : ((u64*)(w.regs + o.off))[l]) + o.imm;
  }
  void save(Warp& w, u32 mk, u32 pc) {
    for (u32 q = mk; q; q &= q - 1) w.pc[std::countr_zero(q)] = pc;
  }

  // ---- errors: addresses.cpp
  [[noreturn]] void fail(Warp& w, int lane, const char* f, ...) __attribute__((format(printf, 4, 5)));
  [[noreturn]] void notImplemented(Warp& w) { fail(w, -1, "internal: operation not implemented for this type"); }
  std::string where(Warp& w, int lane);
  std::string actorName(u32 actor);

  // ---- addresses: addresses.cpp
  u8 spaceOf(Warp& w, int l, u8 space, u64& va, const char* what);
  u8* global(Warp& w, int l, u64 va, u32 n, bool write, u32 align = 0);
  u8* shared(Warp& w, int l, u32 a, u32 n, Block*& blk, u32& off, u32 align = 0);
  u32 sharedAddr(Warp& w, int l, u8 space, u64 a);  // with the rank of the block in its upper bits

  // ---- races in shared memory: races.cpp
  void bump(Block& b);
  bool known(Warp& w, int l, u32 actor, u32 stamp);
  void shRead(Warp& w, int l, Block& b, u32 off, u32 n, bool atomic = false, int warpgroup = -1);
  void shReadLanes(Warp& w, const u32* off, u32 mk, u32 n, bool atomic);
  void shWrite(Warp& w, int l, Block& b, u32 off, u32 n, bool atomic = false, const u8* data = nullptr);
  void shPending(Warp& w, int l, Block& b, u32 off, u32 n);  // an asynchronous copy into it begins
  void shLanded(Block& b, u32 off, u32 n, u32 writer);       // and arrives
  bool readsKnown(Warp& w, int l, const ReadEntry& e, u32 slot, u32& reader);
  void release(Warp& w, u32 mk, std::vector<u32>& acc, u32& floor);
  void acquire(Warp& w, const std::vector<u32>& v, u32 floor);
  void proxyCheck(Warp& w, int l, Block& b, u32 off, u32 n, const char* who);

  // ---- statistics: stats.cpp
  u32 sectors(const u64* a, u32 mk, u32 size);
  u32 wavefronts(const u32* a, u32 mk, u32 size);

  // ---- instructions that only compute
  void compute(Warp& w, const Instr& in, u32 mk);
  void integer(Warp& w, const Instr& in, u32 mk);
  void addCarry(Warp& w, const Instr& in, u32 mk);
  void madCarry(Warp& w, const Instr& in, u32 mk);
  void mul24(Warp& w, const Instr& in, u32 mk);
  void mulWide(Warp& w, const Instr& in, u32 mk);
  void dotProduct(Warp& w, const Instr& in, u32 mk);
  void floating(Warp& w, const Instr& in, u32 mk);
  void minMax(Warp& w, const Instr& in, u32 mk);
  void special(Warp& w, const Instr& in, u32 mk);
  void logic(Warp& w, const Instr& in, u32 mk);
  void shift(Warp& w, const Instr& in, u32 mk);
  void prmt(Warp& w, const Instr& in, u32 mk);
  void bitField(Warp& w, const Instr& in, u32 mk);
  void bitCount(Warp& w, const Instr& in, u32 mk);
  void lop3(Warp& w, const Instr& in, u32 mk);
  void copysign(Warp& w, const Instr& in, u32 mk);
  void select(Warp& w, const Instr& in, u32 mk);
  void setp(Warp& w, const Instr& in, u32 mk);
  void setHalves(Warp& w, const Instr& in, u32 mk);
  void testp(Warp& w, const Instr& in, u32 mk);
  void mov(Warp& w, const Instr& in, u32 mk);
  void pack(Warp& w, const Instr& in, u32 mk);
  void unpack(Warp& w, const Instr& in, u32 mk);
  void cvta(Warp& w, const Instr& in, u32 mk);
  void isspacep(Warp& w, const Instr& in, u32 mk);
  void mapa(Warp& w, const Instr& in, u32 mk);
  void ctaRank(Warp& w, const Instr& in, u32 mk);
  void activemask(Warp& w, const Instr& in, u32 mk);
  void cvt(Warp& w, const Instr& in, u32 mk);
  void cvtInts(Warp& w, const Instr& in, u32 mk);
  void cvtToInt(Warp& w, const Instr& in, u32 mk);
  void cvtFromInt(Warp& w, const Instr& in, u32 mk);
  void cvtFloats(Warp& w, const Instr& in, u32 mk);
  void cvtPair(Warp& w, const Instr& in, u32 mk);

  // ---- memory and asynchronous copies
  void ldst(Warp& w, const Instr& in, u32 mk);
  u8* locate(Warp& w, const Instr& in, int l, u64 va, Access& x);
  void moveElements(Warp& w, const Instr& in, u32 mk, u8* const* p);
  void storeShared(Warp& w, const Instr& in, u32 mk, Access& x);
  void atom(Warp& w, const Instr& in, u32 mk);
  void vprintf_(Warp& w, const Instr& in, u32 mk);
  std::string text(Warp& w, int l, u64 va);
  void cpAsync(Warp& w, const Instr& in, u32 mk);
  void cpCommit(Warp& w, const Instr& in, u32 mk);
  void cpWait(Warp& w, const Instr& in, u32 mk);
  void cpArrive(Warp& w, const Instr& in, u32 mk);
  void cpComplete(Warp& w, u32 mk, u32 keep);
  void fenceProxy(Warp& w, const Instr& in, u32 mk);
  void bulk(Warp& w, const Instr& in, u32 mk);
  void bulkLoad(Warp& w, const Instr& in, int l, const struct Tile& tile);
  void bulkStore(Warp& w, const Instr& in, int l, const struct Tile& tile);
  void reduceInto(Warp& w, int l, u8* p, const u8* s, u32 n, Ty t, u8 op);
  void bulkCommit(Warp& w, const Instr& in, u32 mk);
  void bulkWait(Warp& w, u32 mk, u32 keep, bool exits = false);
  bool deliver(Group& g, Block* mb, u32 off);
  void flushBulk(Group& g);

  // ---- mbarrier.cpp
  Flow mbarrier(Warp& w, const Instr& in, Step& s);
  void mbInit(Warp& w, const Instr& in, int l, Block& b, u32 off);
  bool mbWait(Warp& w, const Instr& in, int l, Block& b, u32 off);
  MBar& mbGet(Warp& w, int l, Block& b, u32 off);
  void mbComplete(Block& b, MBar& mb);
  u64 mbArrive(Warp& w, int l, Block& b, u32 off, u32 count, s64 tx, bool drop);

  // ---- control.cpp
  Flow flow(Warp& w, const Instr& in, Step& s);
  Flow branch(Warp& w, const Instr& in, Step& s);
  Flow branchTable(Warp& w, const Instr& in, Step& s);
  Flow call(Warp& w, const Instr& in, Step& s);
  Flow ret(Warp& w, const Instr& in, Step& s);
  Flow exit(Warp& w, const Instr& in, Step& s);
  Flow yield(Warp& w, Step& s, u32 at);

  // ---- warp_ops.cpp
  u32 gather(Warp& w, u32 em, u32 members, bool anyPc, u32 pc);
  Flow warpOp(Warp& w, const Instr& in, Step& s);
  void shfl(Warp& w, const Instr& in, u32 mk);
  void vote(Warp& w, const Instr& in, u32 mk);
  void match(Warp& w, const Instr& in, u32 mk);
  void redux(Warp& w, const Instr& in, u32 mk);
  void elect(Warp& w, const Instr& in, u32 mk);
  void barWarp(Warp& w, u32 mk);

  // ---- barriers.cpp
  Flow barrier(Warp& w, const Instr& in, Step& s);
  void arrive(Warp& w, const Instr& in, u32 mk, u32 pc);
  void barFinish(Block& b, int id);
  Flow clusterArrive(Warp& w, Step& s);
  Flow clusterWait(Warp& w, Step& s);

  // ---- matrices: ldmatrix.cpp, mma.cpp, wmma.cpp, wgmma.cpp
  Flow tensor(Warp& w, const Instr& in, Step& s);
  void matrix(Warp& w, const Instr& in);
  void movmatrix(Warp& w, const Instr& in);
  void mma(Warp& w, const Instr& in);
  void mmaDouble(Warp& w, const Instr& in);
  void wmmaMem(Warp& w, const Instr& in);
  void wmma(Warp& w, const Instr& in);
  bool wgmma(Warp& w, const Instr& in);
  bool wgWait(Warp& w, u32 keep);
  void wgMultiply(Warp& w, const Instr& in);
  template <class Put>
  void wgFetch(Warp& w, u64 desc, bool mnMajor, int first, int count, int K, Ty t, Put put);
  void taintCheck(Warp& w, const Instr& in);
};

u64 atomOp(u8 op, Ty t, u64 old, u64 v, u64 v2, bool& ok);  // atomics.cpp
float minNum(float a, float b);                             // floating.cpp: as the hardware, -0 below +0
float maxNum(float a, float b);
double minNum(double a, double b);
double maxNum(double a, double b);
}  // namespace ptx
