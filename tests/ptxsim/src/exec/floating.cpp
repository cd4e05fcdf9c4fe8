// Floating-point arithmetic. float and double are computed by the host's instructions, in the rounding mode asked for;
// halves in double with one rounding; approximations (.approx) are computed accurately, so that hardware differs from
// them by some units in the last place. A product and a sum without .rn are never fused here, though ptxas may do so.
#include <cmath>

#include "exec.h"

namespace ptx {

namespace {
float ftz(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
template <class T>
T saturate(T x) {
  return x > 0 ? (x < 1 ? x : 1) : 0;
}
template <class T>
T minimum(T a, T b) {  // a number wins over NaN
  if (std::isnan(a)) return std::isnan(b) ? (T)NAN : b;
  if (std::isnan(b)) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
template <class T>
T maximum(T a, T b) {
  if (std::isnan(a)) return std::isnan(b) ? (T)NAN : b;
  if (std::isnan(b)) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
bool isHalf(Ty t) { return t == F16 || t == BF16 || t == F16X2 || t == BF16X2; }

// f(x, y, z) on f16, bf16 and pairs of them, from and to double.
template <class F>
void eachHalf(const Args& x, const Instr& in, int operands, F f) {
  const int parts = in.t == F16X2 || in.t == BF16X2 ? 2 : 1;
  const u32 *a = (u32*)x.a, *b = (u32*)(operands > 1 ? x.b : x.a), *c = (u32*)(operands > 2 ? x.c : x.a);
  u32* d = (u32*)x.d;
  forLanes(x.mask, [&](int l) {
    u32 r = 0;
    for (int s = 0; s < 16 * parts; s += 16) {
      double v = f(half2f(a[l] >> s, in.t), half2f(b[l] >> s, in.t), half2f(c[l] >> s, in.t));
      if (in.flags & F_SAT) v = saturate(v);
      if (in.flags & F_RELU && !(v > 0) && v == v) v = 0;
      r |= (u32)d2half(v, in.t) << s;
    }
    d[l] = r;
  });
}
// f(x, y, z) on pairs of float.
template <class F>
void eachPair(const Args& x, int operands, F f) {
  const u64 *a = (u64*)x.a, *b = (u64*)x.b, *c = (u64*)(operands > 2 ? x.c : x.a);
  u64* d = (u64*)x.d;
  forLanes(x.mask, [&](int l) {
    u64 r = 0;
    for (int s = 0; s < 64; s += 32)
      r |= (u64)asU((float)f(asF((u32)(a[l] >> s)), asF((u32)(b[l] >> s)), asF((u32)(c[l] >> s)))) << s;
    d[l] = r;
  });
}
// f(x, y, z) on float, with .ftz and .sat; x.c may be anything when f ignores its third argument.
template <class F>
void eachFloat(const Args& x, u32 flags, F f) {
  if (!(flags & (F_FTZ | F_SAT))) return map3<float, float, float, float>(x, f);
  const bool flush = flags & F_FTZ, sat = flags & F_SAT;
  map3<float, float, float, float>(x, [=](float a, float b, float c) {
    float r = flush ? ftz(f(ftz(a), ftz(b), ftz(c))) : f(a, b, c);
    return sat ? saturate(r) : r;
  });
}
// The same operation on every type; with three operands, c is read.
template <class F>
bool eachType(Args x, const Instr& in, int operands, F f) {
  if (operands < 3) x.c = x.a;
  RoundMode mode(in.rnd);
  if (in.t == F32)
    eachFloat(x, in.flags, [=](float a, float b, float c) { return (float)f(a, b, c); });
  else if (in.t == F64)
    map3<double, double, double, double>(x, [=](double a, double b, double c) { return (double)f(a, b, c); });
  else if (in.t == F32X2)
    eachPair(x, operands, [=](float a, float b, float c) { return f(a, b, c); });
  else
    return false;
  return true;
}
}  // namespace

float minNum(float a, float b) { return minimum(a, b); }
float maxNum(float a, float b) { return maximum(a, b); }
double minNum(double a, double b) { return minimum(a, b); }
double maxNum(double a, double b) { return maximum(a, b); }

void Exec::floating(Warp& w, const Instr& in, u32 mk) {
  const Args x = args(w, in, mk);
  const bool half = isHalf(in.t);
  switch (in.op) {
    case O_ADD:
      if (half) return eachHalf(x, in, 2, [](double a, double b, double) { return fmaOdd(a, 1, b); });
      if (eachType(x, in, 2, [](auto a, auto b, auto) { return a + b; })) return;
      break;
    case O_SUB:
      if (half) return eachHalf(x, in, 2, [](double a, double b, double) { return fmaOdd(a, 1, -b); });
      if (eachType(x, in, 2, [](auto a, auto b, auto) { return a - b; })) return;
      break;
    case O_MUL:
      if (half) return eachHalf(x, in, 2, [](double a, double b, double) { return a * b; });
      if (eachType(x, in, 2, [](auto a, auto b, auto) { return a * b; })) return;
      break;
    case O_FMA:
      if (half) return eachHalf(x, in, 3, [](double a, double b, double c) { return fmaOdd(a, b, c); });
      if (eachType(x, in, 3, [](auto a, auto b, auto c) {
            if constexpr (sizeof a == 4)
              return __builtin_fmaf(a, b, c);
            else
              return __builtin_fma(a, b, c);
          }))
        return;
      break;
    case O_DIV:
      if (in.t != F32X2 && eachType(x, in, 2, [](auto a, auto b, auto) { return a / b; })) return;
      break;
    case O_MIN:
    case O_MAX:
      return minMax(w, in, mk);
    case O_NEG:
    case O_ABS: {
      const bool neg = in.op == O_NEG, flush = in.flags & F_FTZ;
      if (in.t == F32)
        return map1<float, float>(x, [=](float a) {
          if (flush) a = ftz(a);
          return neg ? -a : std::fabs(a);
        });
      if (in.t == F64) return map1<double, double>(x, [=](double a) { return neg ? -a : std::fabs(a); });
      if (!half) break;
      const u32 sign = in.t == F16X2 || in.t == BF16X2 ? 0x80008000u : 0x8000u;
      if (neg) return map1<u32, u32>(x, [=](u32 a) { return a ^ sign; });
      return map1<u32, u32>(x, [=](u32 a) { return a & (sign == 0x8000u ? 0x7fffu : 0x7fff7fffu); });
    }
    default:
      break;
  }
  notImplemented(w);
}

void Exec::minMax(Warp& w, const Instr& in, u32 mk) {
  const Args x = args(w, in, mk);
  const bool max = in.op == O_MAX, nan = in.flags & F_NAN, flush = in.flags & F_FTZ;
  auto pick = [=](auto a, auto b) { return max ? maximum(a, b) : minimum(a, b); };
  if (in.flags & F_XORSIGN) notImplemented(w);
  if (in.vn == 3) {
    if (in.t != F32) notImplemented(w);
    return map3<float, float, float, float>(x, [=](float a, float b, float c) {
      return nan && (std::isnan(a) || std::isnan(b) || std::isnan(c)) ? NAN : pick(pick(a, b), c);
    });
  }
  if (in.t == F32)
    return map2<float, float, float>(x, [=](float a, float b) {
      if (flush) {
        a = ftz(a);
        b = ftz(b);
      }
      float r = nan && (std::isnan(a) || std::isnan(b)) ? NAN : pick(a, b);
      return std::isnan(r) ? asF(0x7fffffff) : r;
    });
  if (in.t == F64) return map2<double, double, double>(x, pick);
  if (!isHalf(in.t)) notImplemented(w);
  eachHalf(x, in, 2,
           [=](double a, double b, double) { return nan && (std::isnan(a) || std::isnan(b)) ? NAN : pick(a, b); });
}

// Reciprocals, roots, exponentials: from double, rounded once.
void Exec::special(Warp& w, const Instr& in, u32 mk) {
  const Args x = args(w, in, mk);
  if (in.rnd > R_RN && (in.op == O_RCP || in.op == O_SQRT)) {  // directed rounding: by the host
    RoundMode mode(in.rnd);
    const bool root = in.op == O_SQRT;
    if (in.t == F32) return map1<float, float>(x, [=](float a) { return root ? __builtin_sqrtf(a) : 1.0f / a; });
    return map1<double, double>(x, [=](double a) { return root ? __builtin_sqrt(a) : 1.0 / a; });
  }
  auto apply = [&](auto f) {
    const bool flush = in.flags & F_FTZ;
    if (in.t == F32)
      map1<float, float>(x, [=](float a) {
        float r = (float)f((double)(flush ? ftz(a) : a));
        return flush ? ftz(r) : r;
      });
    else if (in.t == F64)
      map1<double, double>(x, f);
    else if (isHalf(in.t))
      eachHalf(x, in, 1, [=](double a, double, double) { return f(a); });
    else
      notImplemented(w);
  };
  switch (in.op) {
    case O_RCP:
      return apply([](double a) { return 1.0 / a; });
    case O_SQRT:
      return apply([](double a) { return std::sqrt(a); });
    case O_RSQRT:
      return apply([](double a) { return 1.0 / std::sqrt(a); });
    case O_EX2:
      return apply([](double a) { return std::exp2(a); });
    case O_LG2:
      return apply([](double a) { return std::log2(a); });
    case O_SIN:
      return apply([](double a) { return std::sin(a); });
    case O_COS:
      return apply([](double a) { return std::cos(a); });
    default:
      return apply([](double a) { return std::tanh(a); });
  }
}
}  // namespace ptx
