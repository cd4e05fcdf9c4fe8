// wmma.load, wmma.store, wmma.mma. PTX does not say which lane holds which element of a fragment; here a matrix is
// dealt out row by row, R*C/32 elements a lane, so that code that assumes a layout fails.
#include "exec.h"

namespace ptx {

static int bitsOf(Ty t) { return t == F16 || t == BF16 ? 16 : t == S8 || t == U8 ? 8 : 32; }
static double value(Ty t, u32 x) {
  switch (t) {
    case F16:
    case BF16:
      return half2f(x, t);
    case S8:
      return (s8)x;
    case U8:
      return (u8)x;
    case TF32:
      return tf2f(x);
    case S32:
      return (s32)x;
    default:
      return asF(x);
  }
}
void Exec::wmmaMem(Warp& w, const Instr& in) {
  const bool load = in.op == O_WMMALD;
  const int R = in.sub == 'b' ? in.k : in.m, C = in.sub == 'a' ? in.k : in.n;
  const int bits = bitsOf(in.t), es = bits / 8, per = R * C / 32, inReg = 32 / bits;
  const int regs = in.o[0].k == K_VEC ? in.o[0].imm : 1, capacity = regs * inReg;
  const Opnd* v = in.o[0].k == K_VEC ? k.vecs[in.o[0].vec].data() : &in.o[0];
  if (capacity != per && capacity != 2 * per)
    fail(w, -1, "wmma fragment register count");  // f16 A and B are held twice
  const u64 ldm = in.o[2].k ? rd(w, in.o[2], 0) : (in.rowA ? C : R);
  u64 base = addr(w, in.o[1], 0);
  const bool global_ = spaceOf(w, 0, in.space, base, "wmma access") == GLOBAL;
  if (base & 15) fail(w, -1, "wmma address is not 16-byte aligned");
  for (int l = 0; l < 32; l++) {
    u32 buf[16] = {};
    if (!load)
      for (int i = 0; i < regs; i++) buf[i] = rd(w, v[i], l);
    for (int i = 0; i < per; i++) {
      const int e = l * per + i, r = e / C, c = e % C;
      const u64 a = base + (in.rowA ? r * ldm + c : c * ldm + r) * es;
      u8* p;
      if (global_)
        p = global(w, l, a, es, !load);
      else {
        Block* b;
        u32 off;
        p = shared(w, l, (u32)a, es, b, off);
        if (chk && load) shRead(w, l, *b, off, es);
        if (chk && !load) shWrite(w, l, *b, off, es);
      }
      if (load) {
        u32 x = 0;
        memcpy(&x, p, es);
        for (int q = i; q < capacity; q += per) buf[q / inReg] |= x << (bits * (q % inReg));
      } else {
        const u32 x = buf[i / inReg] >> (bits * (i % inReg));
        memcpy(p, &x, es);
      }
    }
    if (load)
      for (int i = 0; i < regs; i++) wr(w, v[i], l, buf[i]);
  }
  if (global_) (load ? st.gldBytes : st.gstBytes) += (u64)R * C * es;
}
void Exec::wmma(Warp& w, const Instr& in) {
  const int M = in.m, N = in.n, K = in.k;
  st.mmaCount++;
  st.mmaFlops += 2ull * M * N * K;
  auto fragment = [&](const Opnd& o, Ty t, int size) {
    const auto& v = k.vecs[o.vec];
    const int bits = bitsOf(t), inReg = 32 / bits, per = size / 32;
    if ((int)v.size() * inReg < per) fail(w, -1, "wmma fragment register count");
    std::vector<double> x(size);
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < per; i++) x[l * per + i] = value(t, (u32)rd(w, v[i / inReg], l) >> (bits * (i % inReg)));
    return x;
  };
  const std::vector<double> A = fragment(in.o[1], in.t2, M * K), B = fragment(in.o[2], in.t3, K * N);
  std::vector<double> C = fragment(in.o[3], in.t4, M * N);
  for (int i = 0; i < M; i++)
    for (int kk = 0; kk < K; kk++)
      for (int j = 0; j < N; j++) C[i * N + j] += A[i * K + kk] * B[kk * N + j];
  const auto& v = k.vecs[in.o[0].vec];
  const int bits = bitsOf(in.t), inReg = 32 / bits, per = M * N / 32;
  for (int l = 0; l < 32; l++) {
    u32 buf[16] = {};
    for (int i = 0; i < per; i++) {
      const double x = C[l * per + i];
      const u32 y = in.t == F16 ? d2h(x) : in.t == S32 ? (u32)(s64)x : asU((float)x);
      buf[i / inReg] |= y << (bits * (i % inReg));
    }
    for (size_t i = 0; i < v.size(); i++) wr(w, v[i], l, buf[i]);
  }
}
}  // namespace ptx
