// wgmma: each warp of a warpgroup computes its 16 rows when it issues the instruction, but the registers involved stay
// tainted, and the operands in shared memory count as being read, until the group has been waited for.
#include <algorithm>

#include "exec.h"
#include "tensor_map.h"

namespace ptx {

void Exec::taintCheck(Warp& w, const Instr& in) {
  if (in.op == O_WGFENCE || in.op == O_WGCOMMIT || in.op == O_WGWAIT) return;
  auto hit = [&](const Opnd& o) {
    return o.k == K_REG && o.sz >= 4 && o.off / 64 < w.taint.size() && w.taint[o.off / 64];
  };
  auto bad = [&](const char* what) { fail(w, -1, "register of an in-flight wgmma %s before wgmma.wait_group", what); };
  const Opnd& d = in.o[0];
  if (in.op == O_MOV && d.k == K_REG && in.o[1].k == K_REG && d.sz >= 4) {  // a copy is tainted as well
    if (hit(in.o[1])) {
      w.taint[d.off / 64] = 1;
      if (!w.wgInflight.empty()) w.wgInflight.back().second.push_back(d.off);
    } else if (hit(d))
      bad("overwritten");
    return;
  }
  for (int i = 0; i < 8; i++) {
    const Opnd& o = in.o[i];
    if (hit(o)) bad(i == 0 ? "used" : "read");
    if (o.k == K_ADDR && o.hasBase && o.off / 64 < w.taint.size() && w.taint[o.off / 64]) bad("read");
    if (o.vec >= 0 && std::any_of(k.vecs[o.vec].begin(), k.vecs[o.vec].end(), hit)) bad(o.k == K_VEC ? "used" : "read");
  }
}
bool Exec::wgmma(Warp& w, const Instr& in) {  // false: a wait has to be tried again
  if (w.wid / 4 * 4 + 4 > w.b->nwarps) fail(w, -1, "wgmma in an incomplete warpgroup");
  switch (in.op) {
    case O_WGFENCE:
      w.wgFenced = true;
      return true;
    case O_WGCOMMIT:
      w.wgGroup++;
      w.wgCommitCount.push_back(w.wgIssueStamp.size());
      return true;
    case O_WGWAIT:
      return wgWait(w, in.o[0].imm);
    default:
      if (!w.wgFenced) fail(w, -1, "wgmma.mma_async before any wgmma.fence");
      wgMultiply(w, in);
      return true;
  }
}
bool Exec::wgWait(Warp& w, u32 keep) {
  Block& b = *w.b;
  const u32 wg = w.wid / 4;
  if (w.wgGroup <= keep) return true;
  const u32 need = w.wgCommitCount[w.wgGroup - keep - 1];
  for (u32 i = wg * 4; i < wg * 4 + 4; i++)
    if (b.w[i].wgIssueStamp.size() < need) {
      if (!b.w[i].live) fail(w, -1, "wgmma wait, but warp %u of the warpgroup exited without issuing it", i);
      return false;
    }
  if (chk && need) {
    if (w.vc.empty()) w.vc.assign(NVC, 0);
    u32& clock = w.vc[AG_WG + wg];
    for (u32 i = wg * 4; i < wg * 4 + 4; i++) clock = std::max(clock, b.w[i].wgIssueStamp[need - 1]);
  }
  std::erase_if(w.wgInflight, [&](auto& x) { return x.first + keep < w.wgGroup; });
  std::fill(w.taint.begin(), w.taint.end(), 0);
  for (auto& x : w.wgInflight)
    for (u32 off : x.second) w.taint[off / 64] = 1;
  w.tainted = !w.wgInflight.empty();
  return true;
}

static int bytesOf(Ty t) { return t == TF32 ? 4 : t == BF16 || t == F16 ? 2 : 1; }
static float element(const u8* p, Ty t) {
  u32 x = 0;
  memcpy(&x, p, bytesOf(t));
  switch (t) {
    case TF32:
      return tf2f(x);
    case BF16:
    case F16:
      return half2f(x, t);
    case E4M3:
      return fp82f(x, false);
    case E5M2:
      return fp82f(x, true);
    case S8:
      return (s8)x;
    default:
      return (u8)x;
  }
}
// put(mn, k, v) for rows (of A) or columns (of B) first to first + count - 1 of a matrix that a descriptor names.
template <class Put>
void Exec::wgFetch(Warp& w, u64 desc, bool mnMajor, int first, int count, int K, Ty t, Put put) {
  Block& b = *w.b;
  const u32 wg = w.wid / 4, start = (desc & 0x3fff) << 4, lbo = (desc >> 16 & 0x3fff) << 4,
            sbo = (desc >> 32 & 0x3fff) << 4;
  const int layout = desc >> 62, mode = layout ? 4 - layout : 0,
            span = 1 << mode;  // swizzle span in chunks of 16 bytes
  if (desc >> 49 & 7) fail(w, -1, "wgmma descriptor with a base offset is not supported");
  auto chunk = [&](u32 at) -> const u8* {
    const u32 off = swizzled(start + at, mode);
    Block* owner;
    u32 ignored;
    const u8* p = shared(w, -1, off, 16, owner, ignored);
    if (chk) {
      shRead(w, 0, b, off, 16, false, wg);
      proxyCheck(w, 0, b, off, 16, "wgmma");
    }
    return p;
  };
  const int es = bytesOf(t), per = 16 / es;
  if (!mnMajor) {
    for (int r = first; r < first + count; r++)
      for (int c = 0; c < 2; c++) {
        const u8* p = chunk(r / 8 * sbo + (mode ? r % 8 * span * 16 + c * 16 : r % 8 * 16 + c * lbo));
        for (int i = 0; i < per; i++) put(r, c * per + i, element(p + i * es, t));
      }
    return;
  }
  for (int kk = 0; kk < K; kk++)
    for (int mn = first; mn < first + count; mn += 8) {
      const int c = mn / 8;
      const u8* p = chunk(mode ? c % span * 16 + c / span * lbo + kk % 8 * span * 16 + kk / 8 * sbo
                               : c * sbo + kk % 8 * 16 + kk / 8 * lbo);
      for (int i = 0; i < 8; i++) put(mn + i, kk, element(p + i * es, t));
    }
}
void Exec::wgMultiply(Warp& w, const Instr& in) {
  const int N = in.n, K = in.k, first = (w.wid & 3) * 16;
  for (int l = 1; l < 32; l++)
    if ((in.rowA && rd(w, in.o[1], l) != rd(w, in.o[1], 0)) || rd(w, in.o[2], l) != rd(w, in.o[2], 0))
      fail(w, l, "wgmma descriptor differs between lanes");
  const u32 keepD = pmask(w, in.o[3]);
  if (keepD != 0 && keepD != ~0u) fail(w, -1, "wgmma scale-d differs between lanes");
  const float signA = in.rnd & 1 ? -1.f : 1.f, signB = in.rnd & 2 ? -1.f : 1.f;
  std::vector<u32> touched;
  float A[16][32], B[32][256];
  if (in.rowA)
    wgFetch(w, rd(w, in.o[1], 0), in.cmp, first, 16, K, in.t2,
            [&](int r, int c, float v) { A[r - first][c] = v * signA; });
  else {
    const auto& av = k.vecs[in.o[1].vec];
    if (av.size() != 4) fail(w, -1, "wgmma A register count");
    const int es = bytesOf(in.t2), per = 4 / es;
    for (int i = 0; i < 4; i++) {
      if (av[i].k == K_REG) touched.push_back(av[i].off);
      const u8* p = P(w, av[i]);
      for (int l = 0; l < 32; l++)
        for (int h = 0; h < per; h++)
          A[(l >> 2) + 8 * (i & 1)][(l & 3) * per + 4 * per * (i >> 1) + h] =
              signA * element(p + 4 * l + h * es, in.t2);
    }
  }
  wgFetch(w, rd(w, in.o[2], 0), in.bop, 0, N, K, in.t3, [&](int n, int c, float v) { B[c][n] = v * signB; });
  double acc[16][256];
  for (int i = 0; i < 16; i++) {
    std::fill(acc[i], acc[i] + N, 0.0);
    for (int kk = 0; kk < K; kk++)
      for (int j = 0; j < N; j++) acc[i][j] += (double)A[i][kk] * (double)B[kk][j];
  }
  const auto& dv = k.vecs[in.o[0].vec];
  for (size_t i = 0; i < dv.size(); i++) {
    if (dv[i].k != K_REG) fail(w, -1, "wgmma accumulator must be a register");
    u32* d = (u32*)(w.regs + dv[i].off);
    touched.push_back(dv[i].off);
    for (int l = 0; l < 32; l++) {
      const int g = l >> 2, t = l & 3;
      if (in.t == F16) {
        const double* x = &acc[g + 8 * (i & 1)][8 * (i / 2) + t * 2];
        d[l] = d2h(x[0] + (keepD ? h2f(d[l]) : 0)) | (u32)d2h(x[1] + (keepD ? h2f(d[l] >> 16) : 0)) << 16;
        continue;
      }
      const double x = acc[g + 8 * ((i >> 1) & 1)][8 * (i / 4) + t * 2 + (i & 1)];
      const bool integer = in.t == S32;
      const double sum = x + (keepD ? (integer ? (double)(s32)d[l] : (double)asF(d[l])) : 0);
      d[l] = integer ? (u32)(s64)sum : asU((float)sum);
    }
  }
  if (w.taint.size() < k.regBytes / 64 + 2) w.taint.assign(k.regBytes / 64 + 2, 0);
  for (u32 off : touched) w.taint[off / 64] = 1;
  w.wgInflight.push_back({w.wgGroup, std::move(touched)});
  w.tainted = true;
  w.wgIssueStamp.push_back(w.b->stamp);
  if (chk) bump(*w.b);
  st.wgmmaCount++;
  st.wgmmaFlops += 2ull * 16 * N * K;
  w.b->g->progress++;
}
}  // namespace ptx
