// The interpreter of one warp. Every lane has its own pc; the lanes at the smallest one run together, until they meet
// others or wait. That merges diverged lanes as soon as possible, and a time limit keeps one side of a branch from
// starving the other, as independent thread scheduling does.
#include <algorithm>
#include <atomic>

#include "exec.h"

namespace ptx {

constexpr u64 DIVERGED_BUDGET = 20000;  // instructions without all ready lanes, before the others come first

// Instructions that compute, lane by lane, and go on at the next one.
void Exec::compute(Warp& w, const Instr& in, u32 mk) {
  switch (in.op) {
    case O_ADD:
    case O_SUB:
    case O_MUL:
    case O_FMA:
      if (in.cls == S_FP32) {
        st.fp32Flops += (u64)std::popcount(mk) * (in.op == O_FMA ? 2 : 1) * (in.t == F32X2 ? 2 : 1);
        return floating(w, in, mk);
      }
      [[fallthrough]];
    case O_MAD:
    case O_DIV:
    case O_REM:
    case O_MIN:
    case O_MAX:
    case O_NEG:
    case O_ABS:
    case O_SAD:
      return isFloat(in.t) ? floating(w, in, mk) : integer(w, in, mk);
    case O_RCP:
    case O_SQRT:
    case O_RSQRT:
    case O_EX2:
    case O_LG2:
    case O_SIN:
    case O_COS:
    case O_TANH:
      return special(w, in, mk);
    case O_DP4A:
    case O_DP2A:
      return dotProduct(w, in, mk);
    case O_AND:
    case O_OR:
    case O_XOR:
    case O_NOT:
    case O_CNOT:
      return logic(w, in, mk);
    case O_LOP3:
      return lop3(w, in, mk);
    case O_SHL:
    case O_SHR:
    case O_SHF:
      return shift(w, in, mk);
    case O_PRMT:
      return prmt(w, in, mk);
    case O_BFE:
    case O_BFI:
    case O_BMSK:
    case O_SZEXT:
      return bitField(w, in, mk);
    case O_BREV:
    case O_POPC:
    case O_CLZ:
    case O_BFIND:
    case O_FNS:
      return bitCount(w, in, mk);
    case O_SETP:
    case O_SET:
      return setp(w, in, mk);
    case O_SELP:
    case O_SLCT:
      return select(w, in, mk);
    case O_TESTP:
      return testp(w, in, mk);
    case O_COPYSIGN:
      return copysign(w, in, mk);
    case O_MOV:
      return mov(w, in, mk);
    case O_CVT:
      return cvt(w, in, mk);
    case O_CVTA:
      return cvta(w, in, mk);
    case O_ISSPACEP:
      return isspacep(w, in, mk);
    case O_MAPA:
      return mapa(w, in, mk);
    case O_CTARANK:
      return ctaRank(w, in, mk);
    case O_ACTIVEMASK:
      return activemask(w, in, mk);
    case O_LD:
    case O_ST:
      return ldst(w, in, mk);
    case O_ATOM:
      return atom(w, in, mk);
    case O_VPRINTF:
      return vprintf_(w, in, mk);
    case O_CPASYNC:
      return cpAsync(w, in, mk);
    case O_CPCOMMIT:
      return cpCommit(w, in, mk);
    case O_CPWAIT:
      return cpWait(w, in, mk);
    case O_CPMBAR:
      return cpArrive(w, in, mk);
    case O_BULK:
      return bulk(w, in, mk);
    case O_BULKCOMMIT:
      return bulkCommit(w, in, mk);
    case O_BULKWAIT:
      return bulkWait(w, mk, in.o[0].imm);
    case O_FENCEPROXY:
      return fenceProxy(w, in, mk);
    case O_CLOCK:
      return forLanes(mk, [&](int l) { wr(w, in.o[0], l, in.sub ? 0 : total + w.slice); });
    case O_TRAP:
      fail(w, std::countr_zero(mk), in.sub ? "brkpt executed" : "trap executed");
    case O_BAD:
      throw Error(where(w, std::countr_zero(mk)) + ": " + k.msgs[in.msg]);
    default:
      notImplemented(w);
  }
}
// Instructions after which the lanes may be anywhere, or have to wait.
Flow Exec::flow(Warp& w, const Instr& in, Step& s) {
  switch (in.op) {
    case O_BRA:
      return branch(w, in, s);
    case O_BRX:
      return branchTable(w, in, s);
    case O_CALL:
      return call(w, in, s);
    case O_RET:
      return ret(w, in, s);
    case O_EXIT:
      return exit(w, in, s);
    case O_NANOSLEEP:
      return yield(w, s, s.pc + 1);
    case O_SHFL:
    case O_VOTE:
    case O_MATCH:
    case O_REDUX:
    case O_ELECT:
    case O_BARWARP:
      return warpOp(w, in, s);
    case O_BAR:
      return barrier(w, in, s);
    case O_CLBAR:
      return in.sub ? clusterWait(w, s) : clusterArrive(w, s);
    case O_MBAR:
      return mbarrier(w, in, s);
    default:
      return tensor(w, in, s);
  }
}

void Exec::run(Warp& w, u64 quantum) {
  const Instr* code = k.code.data();
  u8* executed = cfg.coverage ? k.executed.data() : nullptr;
  w.slice = 0;
  while (w.slice < quantum && w.live) {
    const u32 ready = w.ready(), candidates = ready & ~w.yielded;
    if (!candidates) {
      w.yielded = 0;
      return;
    }
    Step s = {0, 0, ~0u};
    u32 next = ~0u;  // the smallest pc of the other candidates: where they may join
    for (u32 q = candidates; q; q &= q - 1) s.pc = std::min(s.pc, w.pc[std::countr_zero(q)]);
    for (u32 q = ready; q; q &= q - 1) {
      const int l = std::countr_zero(q);
      if (w.pc[l] == s.pc)
        s.mask |= 1u << l;
      else if ((candidates >> l & 1) && w.pc[l] > s.pc)
        next = std::min(next, w.pc[l]);
    }
    const u64 start = w.slice;
    for (;;) {
      if (s.pc >= next || w.slice >= quantum) {
        save(w, s.mask, s.pc);
        break;
      }
      const Instr& in = code[s.pc];
      w.slice++;
      w.curLine = in.line;
      s.em = s.mask;
      if (in.hasPred) {
        const u32 p = *(u32*)(w.regs + in.predOff);
        s.em &= in.pneg ? ~p : p;
      }
      if (executed && s.em) std::atomic_ref(executed[s.pc]).store(1, std::memory_order_relaxed);
      st.warpInstr++;
      st.cls[in.cls]++;
      st.threadInstr += std::popcount(s.em);
      if (!s.em || in.op == O_NOP) {
        s.pc++;
        continue;
      }
      if (w.tainted && in.op != O_WGMMA) taintCheck(w, in);
      if (in.op < O_FIRST_FLOW) {
        compute(w, in, s.em);
        s.pc++;
        continue;
      }
      const Flow f = flow(w, in, s);
      if (f == RESELECT) break;
      if (f == NEXT) s.pc++;
    }
    w.diverged = s.mask == ready ? 0 : w.diverged + (w.slice - start);
    if (w.diverged < DIVERGED_BUDGET) continue;
    w.diverged = 0;
    w.yielded |= s.mask;
  }
}
}  // namespace ptx
