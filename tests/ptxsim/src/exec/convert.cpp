// cvt between all number formats.
#include <algorithm>
#include <cmath>

#include "exec.h"

namespace ptx {

namespace {
double fromFloat(Ty t, u64 v) {
  switch (t) {
    case F32:
      return asF((u32)v);
    case F64:
      return asD(v);
    case F16:
    case BF16:
      return half2f(v, t);
    default:
      return 0;
  }
}
float ftz(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
double saturate(double x) { return x > 0 ? (x < 1 ? x : 1.0) : 0.0; }
double maxFinite(Ty t) { return t == BF16 || t == BF16X2 ? 0x1.fep127 : 65504.0; }
double relu(const Instr& in, double x) { return in.flags & F_RELU && !(x > 0) && x == x ? 0.0 : x; }
// The host converts in the current rounding mode; volatile keeps the compiler from converting early.
float toFloat(auto v) {
  volatile auto x = v;
  volatile float r = (float)x;
  return r;
}
double toDouble(auto v) {
  volatile auto x = v;
  volatile double r = (double)x;
  return r;
}
// A value of integer type S clamped to the range of integer type D.
s64 clampInt(s64 v, Ty S, Ty D) {
  const int bits = tySize(D) * 8;
  const bool huge = !isSigned(S) && v < 0;  // an unsigned 64-bit value above the range of s64
  if (isSigned(D)) {
    const s64 max = bits == 64 ? INT64_MAX : (1ll << (bits - 1)) - 1;
    return huge ? max : std::clamp(v, -max - 1, max);
  }
  const u64 max = bits == 64 ? ~0ull : (1ull << bits) - 1;
  if (isSigned(S) && v < 0) return 0;
  return (u64)v > max ? max : v;
}
u64 doubleToInt(double x, Ty D, Ty S, int rnd) {  // out of range: the nearest; NaN: as the hardware
  const int bits = tySize(D) * 8;
  if (std::isnan(x)) return bits == 64 ? 1ull << 63 : bits == 32 && S == F64 ? 0x80000000u : 0;
  const double y = rnd == R_RNA ? std::nearbyint(x) : roundInt(x, rnd);
  const u64 all = bits == 64 ? ~0ull : (1ull << bits) - 1;
  if (!isSigned(D)) return y >= std::ldexp(1.0, bits) ? all : y < 0 ? 0 : (u64)y;
  const double limit = std::ldexp(1.0, bits - 1);
  return y >= limit ? all >> 1 : y < -limit ? (u64)(-1ll << (bits - 1)) : (u64)(s64)y;
}
}  // namespace

void Exec::cvt(Warp& w, const Instr& in, u32 mk) {
  const Ty D = in.t, S = in.t2;
  if (D == BF16X2 || D == F16X2 || D == E4M3X2 || D == E5M2X2) return cvtPair(w, in, mk);
  if (D == TF32)
    return forLanes(mk,
                    [&](int l) { wr(w, in.o[0], l, toTf32((float)relu(in, asF((u32)rd(w, in.o[1], l))), in.rnd)); });
  if (!isFloat(S)) return isFloat(D) ? cvtFromInt(w, in, mk) : cvtInts(w, in, mk);
  return isFloat(D) ? cvtFloats(w, in, mk) : cvtToInt(w, in, mk);
}
void Exec::cvtInts(Warp& w, const Instr& in, u32 mk) {
  const Ty D = in.t, S = in.t2;
  const Args x = args(w, in, mk);
  const bool exact = in.o[0].sz == 8 && in.o[1].sz == 4;  // a register may be wider than the type it is read as
  if (D == S64 && S == S32 && exact) return map1<s64, s32>(x, [](s32 v) { return (s64)v; });
  if (D == U64 && S == U32 && exact) return map1<u64, u32>(x, [](u32 v) { return (u64)v; });
  const bool sat = in.flags & F_SAT;
  if (tySize(D) == 4 && tySize(S) == 8 && !sat && in.o[0].sz == 4 && in.o[1].sz == 8)
    return map1<u32, u64>(x, [](u64 v) { return (u32)v; });
  forLanes(mk, [&](int l) {
    s64 v = sext(rd(w, in.o[1], l), S);
    if (sat) v = clampInt(v, S, D);
    wr(w, in.o[0], l, sext(v, D));
  });
}
void Exec::cvtToInt(Warp& w, const Instr& in, u32 mk) {
  forLanes(mk, [&](int l) {
    double x = fromFloat(in.t2, rd(w, in.o[1], l));
    if (in.flags & F_FTZ && in.t2 == F32) x = ftz((float)x);
    wr(w, in.o[0], l, doubleToInt(x, in.t, in.t2, in.rnd));
  });
}
void Exec::cvtFromInt(Warp& w, const Instr& in, u32 mk) {
  const Ty D = in.t;
  RoundMode mode(D == F32 || D == F64 ? in.rnd : (u8)R_NONE);
  forLanes(mk, [&](int l) {
    const s64 v = sext(rd(w, in.o[1], l), in.t2);
    const bool un = in.t2 == U64;
    u64 r;
    if (D == F32) {
      const float f = un ? toFloat((u64)v) : toFloat(v);
      r = asU(in.flags & F_SAT ? (float)saturate(f) : f);
    } else if (D == F64)
      r = asU(un ? toDouble((u64)v) : toDouble(v));
    else
      r = d2half(un ? (double)(u64)v : (double)v, D, in.rnd);
    wr(w, in.o[0], l, r);
  });
}
void Exec::cvtFloats(Warp& w, const Instr& in, u32 mk) {
  const Ty D = in.t, S = in.t2;
  forLanes(mk, [&](int l) {
    double x = fromFloat(S, rd(w, in.o[1], l));
    if (in.flags & F_FTZ && S == F32) x = ftz((float)x);
    if (in.flags & F_INTRND) x = roundInt(x, in.rnd);
    x = relu(in, x);
    if (in.flags & F_SAT) x = saturate(x);
    u64 r = 0;
    switch (D) {
      case F64:
        r = asU(x);
        break;
      case F32: {
        RoundMode mode(S == F64 ? in.rnd : (u8)R_NONE);
        const float f = toFloat(x);
        r = asU(in.flags & F_FTZ ? ftz(f) : f);
        break;
      }
      case F16:
      case BF16:
        if (in.flags & F_SATFINITE && x == x) x = std::clamp(x, -maxFinite(D), maxFinite(D));
        r = d2half(x, D, in.rnd);
        break;
      default:
        notImplemented(w);
    }
    wr(w, in.o[0], l, r);
  });
}
void Exec::cvtPair(Warp& w, const Instr& in, u32 mk) {  // two values to one register, the first one above
  const Ty D = in.t, S = in.t2;
  const bool toFp8 = D == E4M3X2 || D == E5M2X2, fromFp8 = S == E4M3X2 || S == E5M2X2;
  const bool two = S == F32, finite = in.flags & F_SATFINITE;
  if (!two && !(toFp8 ? S == F16X2 || S == BF16X2 : fromFp8)) notImplemented(w);
  forLanes(mk, [&](int l) {
    const u32 a = rd(w, in.o[1], l), b = two ? rd(w, in.o[2], l) : 0;
    u32 r = 0;
    for (int h = 0; h < 2; h++) {
      double x = two ? asF(h ? a : b) : fromFp8 ? fp82f(a >> 8 * h, S == E5M2X2) : half2f(a >> 16 * h, S);
      if (toFp8) {
        r |= (u32)d2fp8(x, D == E5M2X2, in.flags & F_RELU) << 8 * h;
        continue;
      }
      x = relu(in, x);
      if (finite && x == x) x = std::clamp(x, -maxFinite(D), maxFinite(D));
      r |= (u32)d2half(x, D, in.rnd) << 16 * h;
    }
    wr(w, in.o[0], l, r);
  });
}
}  // namespace ptx
