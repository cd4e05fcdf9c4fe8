// Comparisons and selections: setp, set, selp, slct, testp, copysign.
#include <cmath>

#include "exec.h"

namespace ptx {

template <class V, class F>
static u32 compareEach(const Args& x, F f) {  // a mask over all lanes; those that are not active do not matter
  auto* a = (const CellT<V>*)x.a;
  auto* b = (const CellT<V>*)x.b;
  u32 r = 0;
  for (int l = 0; l < 32; l++) r |= (u32)f(Cell<V>::get(a[l]), Cell<V>::get(b[l])) << l;
  return r;
}
static bool unordered(u8 c, double a, double b) {
  const bool nan = std::isnan(a) || std::isnan(b);
  switch (c) {
    case C_EQ:
      return a == b;
    case C_NE:
      return !nan && a != b;
    case C_LT:
      return a < b;
    case C_LE:
      return a <= b;
    case C_GT:
      return a > b;
    case C_GE:
      return a >= b;
    case C_EQU:
      return nan || a == b;
    case C_NEU:
      return nan || a != b;
    case C_LTU:
      return nan || a < b;
    case C_LEU:
      return nan || a <= b;
    case C_GTU:
      return nan || a > b;
    case C_GEU:
      return nan || a >= b;
    case C_NUM:
      return !nan;
    default:
      return nan;
  }
}
template <class V>
static u32 compareAs(u8 c, const Args& x) {
  switch (c) {
    case C_EQ:
      return compareEach<V>(x, [](V a, V b) { return a == b; });
    case C_LT:
      return compareEach<V>(x, [](V a, V b) { return a < b; });
    case C_LE:
      return compareEach<V>(x, [](V a, V b) { return a <= b; });
    case C_GT:
      return compareEach<V>(x, [](V a, V b) { return a > b; });
    case C_GE:
      return compareEach<V>(x, [](V a, V b) { return a >= b; });
    case C_NE:
      if (std::is_integral_v<V>) return compareEach<V>(x, [](V a, V b) { return a != b; });
      [[fallthrough]];
    default:
      return compareEach<V>(x, [c](V a, V b) { return unordered(c, (double)a, (double)b); });
  }
}
static bool compare(const Instr& in, const Args& x, u32& r) {  // false: not a type that can be compared
  const u8 c = in.cmp;
  switch (in.t) {
    case F32:
      if (in.flags & F_FTZ)
        r = compareEach<float>(x, [c](float a, float b) {
          auto ftz = [](float v) { return std::fabs(v) < 0x1p-126f ? 0.0f : v; };
          return unordered(c, ftz(a), ftz(b));
        });
      else
        r = compareAs<float>(c, x);
      return true;
    case F64:
      r = compareAs<double>(c, x);
      return true;
    case F16:
    case BF16:
      r = compareEach<u16>(x, [&](u16 a, u16 b) { return unordered(c, half2f(a, in.t), half2f(b, in.t)); });
      return true;
    default:
      return withInt(in.t, [&](auto zero) { r = compareAs<decltype(zero)>(c, x); });
  }
}
static u32 trueValue(Ty t) {  // what set writes
  return t == F32 ? 0x3f800000u : t == F16 ? 0x3c00 : t == BF16 ? 0x3f80 : tySize(t) == 2 ? 0xffff : 0xffffffffu;
}

void Exec::setp(Warp& w, const Instr& in, u32 mk) {  // and set
  if (in.t == F16X2 || in.t == BF16X2) return setHalves(w, in, mk);
  u32 r, r2;
  if (!compare(in, args(w, in, mk), r)) notImplemented(w);
  r2 = ~r;
  if (in.bop) {
    const u32 p = pmask(w, in.o[3]);
    auto combine = [&](u32 x) { return in.bop == B_AND ? x & p : in.bop == B_OR ? x | p : x ^ p; };
    r = combine(r);
    r2 = combine(r2);
  }
  if (in.op == O_SETP) {
    setPred(w, in.o[0], mk, r);
    setPred(w, in.o[4], mk, r2);
  } else
    forLanes(mk, [&](int l) { wr(w, in.o[0], l, r >> l & 1 ? trueValue(in.t2) : 0); });
}
void Exec::setHalves(Warp& w, const Instr& in, u32 mk) {
  if (in.bop) notImplemented(w);
  const u32 *a = (u32*)P(w, in.o[1]), *b = (u32*)P(w, in.o[2]);
  u32 r[2] = {};
  for (int h = 0; h < 2; h++)
    for (int l = 0; l < 32; l++) {
      const float x = half2f(a[l] >> 16 * h, in.t), y = half2f(b[l] >> 16 * h, in.t);
      r[h] |= (u32)unordered(in.cmp, x, y) << l;
    }
  if (in.op == O_SETP) {
    setPred(w, in.o[0], mk, r[0]);
    setPred(w, in.o[4], mk, r[1]);
    return;
  }
  const u32 one = in.t2 == F16X2 ? 0x3c00 : in.t2 == BF16X2 ? 0x3f80 : 0xffff;
  forLanes(mk, [&](int l) { wr(w, in.o[0], l, (r[0] >> l & 1 ? one : 0) | (r[1] >> l & 1 ? one << 16 : 0)); });
}
void Exec::select(Warp& w, const Instr& in, u32 mk) {  // selp, slct
  u32 first = 0;
  if (in.op == O_SELP)
    first = pmask(w, in.o[3]);
  else
    for (int l = 0; l < 32; l++) {
      const u32 v = rd(w, in.o[3], l);
      first |= (u32)(in.t2 == F32 ? asF(v) >= 0 : (s32)v >= 0) << l;
    }
  const Args x = args(w, in, mk);
  auto pick = [&](auto zero) {
    using V = decltype(zero);
    V* d = (V*)x.d;
    const V *a = (V*)x.a, *b = (V*)x.b;
    forLanes(mk, [=](int l) { d[l] = first >> l & 1 ? a[l] : b[l]; });
  };
  if (in.o[0].sz == 4)
    pick(u32{});
  else
    pick(u64{});
}
void Exec::testp(Warp& w, const Instr& in, u32 mk) {
  u32 r = 0;
  for (int l = 0; l < 32; l++) {
    const u64 v = rd(w, in.o[1], l);
    const double x = in.t == F64 ? asD(v) : asF((u32)v);
    const bool subnormal = x != 0 && std::fabs(x) < (in.t == F64 ? 0x1p-1022 : 0x1p-126);
    bool is;
    switch (in.sub) {  // in the order of Decoder::testp
      case 0:
        is = std::isfinite(x);
        break;
      case 1:
        is = std::isinf(x);
        break;
      case 2:
        is = !std::isnan(x);
        break;
      case 3:
        is = std::isnan(x);
        break;
      case 4:
        is = std::isfinite(x) && !subnormal && x != 0;
        break;
      default:
        is = subnormal;
    }
    r |= (u32)is << l;
  }
  setPred(w, in.o[0], mk, r);
}
void Exec::copysign(Warp& w, const Instr& in, u32 mk) {  // the sign of a, the magnitude of b
  const Args x = args(w, in, mk);
  if (in.t == F32)
    map2<u32, u32, u32>(x, [](u32 a, u32 b) { return (a & 1u << 31) | (b & ~(1u << 31)); });
  else
    map2<u64, u64, u64>(x, [](u64 a, u64 b) { return (a & 1ull << 63) | (b & ~(1ull << 63)); });
}
}  // namespace ptx
