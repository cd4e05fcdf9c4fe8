// mma.sync. The products and their sum over the K of one instruction are formed in double, added to the accumulator,
// and rounded once to its type; hardware truncates differently in the last bits. tf32 operands lose their low 13 bits.
#include <algorithm>
#include <cmath>

#include "exec.h"

namespace ptx {

// Fragments, for lane 4g + t: A has rows g and g + 8, B column g, C columns 2t and 2t + 1. A register holds `per`
// neighbouring elements along K; the next register of A is 8 rows below, the one after that and the next of B is 4 *
// per further along K. Loops over g and t instead of lanes let the compiler unroll them.
namespace {
typedef double Row __attribute__((vector_size(64)));  // 8 columns

constexpr int perRegister(Ty t) { return t == TF32 ? 1 : t == F16 || t == BF16 ? 2 : 4; }
float element(Ty t, u32 reg, int i) {
  switch (t) {
    case TF32:
      return tf2f(reg);
    case F16:
      return h2f(reg >> 16 * i);
    case BF16:
      return bf2f(reg >> 16 * i);
    case E4M3:
      return fp82f(reg >> 8 * i, false);
    case E5M2:
      return fp82f(reg >> 8 * i, true);
    case S8:
      return (s8)(reg >> 8 * i);
    default:
      return (u8)(reg >> 8 * i);
  }
}
template <class F>
void forFragment(F f) {  // f(g, t, lane)
  for (int g = 0; g < 8; g++)
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++) f(g, t, 4 * g + t);
}
// put(g, position along K, v) for the elements of a register in all lanes.
template <class Put>
void eachElement(Ty t, const u32* reg, Put put) {
  auto each = [&](auto type) {
    constexpr Ty T = decltype(type)::value;
    constexpr int per = perRegister(T);
    forFragment([&](int g, int t, int l) {
      for (int i = 0; i < per; i++) put(g, t * per + i, element(T, reg[l], i));
    });
  };
  switch (t) {
    case TF32:
      return each(std::integral_constant<Ty, TF32>());
    case F16:
      return each(std::integral_constant<Ty, F16>());
    case BF16:
      return each(std::integral_constant<Ty, BF16>());
    case E4M3:
      return each(std::integral_constant<Ty, E4M3>());
    case E5M2:
      return each(std::integral_constant<Ty, E5M2>());
    case S8:
      return each(std::integral_constant<Ty, S8>());
    default:
      return each(std::integral_constant<Ty, U8>());
  }
}
}  // namespace

void Exec::mma(Warp& w, const Instr& in) {
  st.mmaCount++;
  st.mmaFlops += 2ull * in.m * in.n * in.k;
  if (in.t2 == F64) return mmaDouble(w, in);
  const auto &dv = k.vecs[in.o[0].vec], &av = k.vecs[in.o[1].vec], &bv = k.vecs[in.o[2].vec], &cv = k.vecs[in.o[3].vec];
  const int per = perRegister(in.t2), K = in.k;
  double A[32][16];  // [k][row]
  alignas(64) double B[32][8], acc[16][8];
  for (size_t r = 0; r < av.size(); r++) {
    double (*a)[16] = &A[(r >> 1) * 4 * per];
    const int below = 8 * (r & 1);
    eachElement(in.t2, (u32*)P(w, av[r]), [=](int g, int kk, float v) { a[kk][g + below] = v; });
  }
  for (size_t r = 0; r < bv.size(); r++) {
    double (*b)[8] = &B[r * 4 * per];
    eachElement(in.t3, (u32*)P(w, bv[r]), [=](int g, int kk, float v) { b[kk][g] = v; });
  }

  // A product is exact in double, and the sum runs along K, whatever the order of these loops.
  Row sum[16] = {};
  for (int kk = 0; kk < K; kk++) {
    const Row b = *(Row*)B[kk];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) sum[i] += A[kk][i] * b;
  }

  // Accumulators: two columns a lane; f16 in one register, the other types in one each.
  const bool halfC = in.t4 == F16, halfD = in.t == F16, integer = in.t == S32, finite = in.flags & F_SATFINITE;
  for (size_t r = 0; r < cv.size(); r++) {
    const u32* s = (u32*)P(w, cv[r]);
    double (*a)[8] = &acc[halfC ? 8 * r : 8 * (r >> 1)];
    const int h = r & 1;
    if (halfC)
      forFragment([=](int g, int t, int l) {
        a[g][2 * t] = h2f(s[l]);
        a[g][2 * t + 1] = h2f(s[l] >> 16);
      });
    else if (integer)
      forFragment([=](int g, int t, int l) { a[g][2 * t + h] = (s32)s[l]; });
    else
      forFragment([=](int g, int t, int l) { a[g][2 * t + h] = asF(s[l]); });
  }
  for (int i = 0; i < 16; i++) *(Row*)acc[i] += sum[i];
  for (size_t r = 0; r < dv.size(); r++) {
    u32* d = (u32*)D(w, dv[r]);
    const double (*a)[8] = &acc[halfD ? 8 * r : 8 * (r >> 1)];
    const int h = r & 1;
    if (halfD)
      forFragment([=](int g, int t, int l) { d[l] = d2h(a[g][2 * t]) | (u32)d2h(a[g][2 * t + 1]) << 16; });
    else if (!integer)
      forFragment([=](int g, int t, int l) { d[l] = asU((float)a[g][2 * t + h]); });
    else
      forFragment([=](int g, int t, int l) {
        const double x = a[g][2 * t + h];
        d[l] = finite ? (u32)(s32)std::clamp(x, -2147483648.0, 2147483647.0) : (u32)(s64)x;
      });
  }
}
void Exec::mmaDouble(Warp& w, const Instr& in) {  // one element a register, fused in double
  const auto &dv = k.vecs[in.o[0].vec], &av = k.vecs[in.o[1].vec], &bv = k.vecs[in.o[2].vec], &cv = k.vecs[in.o[3].vec];
  const bool small = in.m == 8;
  double A[16][16], B[16][8], acc[16][8];
  for (int l = 0; l < 32; l++) {
    const int g = l >> 2, t = l & 3;
    for (size_t i = 0; i < av.size(); i++)
      A[small ? g : g + 8 * (i & 1)][small ? t : t + 4 * (i >> 1)] = asD(rd(w, av[i], l));
    for (size_t i = 0; i < bv.size(); i++) B[t + 4 * i][g] = asD(rd(w, bv[i], l));
    for (size_t i = 0; i < cv.size(); i++) acc[g + 8 * (i >> 1)][t * 2 + (i & 1)] = asD(rd(w, cv[i], l));
  }
  for (int i = 0; i < in.m; i++)
    for (int kk = 0; kk < in.k; kk++)
      for (int j = 0; j < 8; j++) acc[i][j] = std::fma(A[i][kk], B[kk][j], acc[i][j]);
  for (int l = 0; l < 32; l++)
    for (size_t i = 0; i < dv.size(); i++) wr(w, dv[i], l, asU(acc[(l >> 2) + 8 * (i >> 1)][(l & 3) * 2 + (i & 1)]));
}
}  // namespace ptx
