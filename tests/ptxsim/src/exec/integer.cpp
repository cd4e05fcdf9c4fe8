// Integer arithmetic.
#include <algorithm>

#include "exec.h"

namespace ptx {

namespace {
template <class V>
using Unsigned = std::make_unsigned_t<V>;
template <class V>
using Twice = std::conditional_t<
    std::is_signed_v<V>, std::conditional_t<sizeof(V) == 2, s32, std::conditional_t<sizeof(V) == 4, s64, __int128>>,
    std::conditional_t<sizeof(V) == 2, u32, std::conditional_t<sizeof(V) == 4, u64, unsigned __int128>>>;

// Two's complement, without the undefined overflow of C++. Division by zero gives all ones, as on the hardware.
template <class V>
V add(V x, V y) {
  return (V)((Unsigned<V>)x + (Unsigned<V>)y);
}
template <class V>
V sub(V x, V y) {
  return (V)((Unsigned<V>)x - (Unsigned<V>)y);
}
template <class V>
V mulLow(V x, V y) {
  return (V)((u64)x * (u64)y);
}
template <class V>
V mulHigh(V x, V y) {
  return (V)((Twice<V>)x * y >> (8 * sizeof(V)));
}
template <class V>
V div(V x, V y) {
  if (y == 0) return (V) ~(V)0;
  if (std::is_signed_v<V> && y == (V)-1) return sub((V)0, x);
  return (V)(x / y);
}
template <class V>
V rem(V x, V y) {
  if (y == 0) return x;
  if (std::is_signed_v<V> && y == (V)-1) return 0;
  return (V)(x % y);
}
template <class V>
V absDiff(V x, V y) {
  return x > y ? sub(x, y) : sub(y, x);
}
s32 saturate(s64 r) { return std::clamp<s64>(r, INT32_MIN, INT32_MAX); }
}  // namespace

void Exec::integer(Warp& w, const Instr& in, u32 mk) {
  const Args x = args(w, in, mk);
  const u32 fl = in.flags;
  if (in.sub == 24) return mul24(w, in, mk);
  if (fl & (F_CC | F_CARRY)) return in.op == O_MAD ? madCarry(w, in, mk) : addCarry(w, in, mk);
  if (fl & F_WIDE) return mulWide(w, in, mk);
  if (fl & F_SAT && in.t == S32) {
    if (in.op == O_ADD) return map2<s32, s32, s32>(x, [](s32 a, s32 b) { return saturate((s64)a + b); });
    if (in.op == O_SUB) return map2<s32, s32, s32>(x, [](s32 a, s32 b) { return saturate((s64)a - b); });
    if (in.op == O_MAD)
      return map3<s32, s32, s32, s32>(x, [](s32 a, s32 b, s32 c) { return saturate(((s64)a * b >> 32) + c); });
  }
  const bool ok = withInt(in.t, [&](auto zero) {
    using V = decltype(zero);
    const bool hi = fl & F_HI;
    switch (in.op) {
      case O_ADD:
        return map2<V, V, V>(x, [](V a, V b) { return add(a, b); });
      case O_SUB:
        return map2<V, V, V>(x, [](V a, V b) { return sub(a, b); });
      case O_MUL:
        if (hi) return map2<V, V, V>(x, [](V a, V b) { return mulHigh(a, b); });
        return map2<V, V, V>(x, [](V a, V b) { return mulLow(a, b); });
      case O_MAD:
        if (hi) return map3<V, V, V, V>(x, [](V a, V b, V c) { return add(mulHigh(a, b), c); });
        return map3<V, V, V, V>(x, [](V a, V b, V c) { return add(mulLow(a, b), c); });
      case O_DIV:
        return map2<V, V, V>(x, [](V a, V b) { return div(a, b); });
      case O_REM:
        return map2<V, V, V>(x, [](V a, V b) { return rem(a, b); });
      case O_MIN:
        return map2<V, V, V>(x, [](V a, V b) { return a < b ? a : b; });
      case O_MAX:
        return map2<V, V, V>(x, [](V a, V b) { return a > b ? a : b; });
      case O_NEG:
        return map1<V, V>(x, [](V a) { return sub((V)0, a); });
      case O_ABS:
        return map1<V, V>(x, [](V a) { return a < 0 ? sub((V)0, a) : a; });
      case O_SAD:
        return map3<V, V, V, V>(x, [](V a, V b, V c) { return add(absDiff(a, b), c); });
      default:
        notImplemented(w);
    }
  });
  if (!ok) notImplemented(w);
}
void Exec::addCarry(Warp& w, const Instr& in, u32 mk) {
  const int bits = 8 * tySize(in.t);
  forLanes(mk, [&](int l) {
    unsigned __int128 x = rd(w, in.o[1], l), y = rd(w, in.o[2], l);
    const u32 carry = in.flags & F_CARRY ? w.cc >> l & 1 : 0;
    const unsigned __int128 r = in.op == O_SUB ? x - y - carry : x + y + carry;
    wr(w, in.o[0], l, r);
    if (in.flags & F_CC) w.cc = (w.cc & ~(1u << l)) | (u32)(r >> bits & 1) << l;
  });
}
void Exec::madCarry(Warp& w, const Instr& in, u32 mk) {
  const int bits = 8 * tySize(in.t);
  forLanes(mk, [&](int l) {
    const u64 x = rd(w, in.o[1], l), y = rd(w, in.o[2], l);
    const auto product =
        isSigned(in.t) ? (unsigned __int128)((__int128)sext(x, in.t) * sext(y, in.t)) : (unsigned __int128)x * y;
    const u64 half = in.flags & F_HI ? product >> bits : product;
    unsigned __int128 r = bits == 32 ? (u32)half : half;
    r += rd(w, in.o[3], l) + (unsigned __int128)(in.flags & F_CARRY ? w.cc >> l & 1 : 0);
    wr(w, in.o[0], l, r);
    if (in.flags & F_CC) w.cc = (w.cc & ~(1u << l)) | (u32)(r >> bits & 1) << l;
  });
}
void Exec::mul24(Warp& w, const Instr& in, u32 mk) {
  const int up = in.t == S32 ? 40 : 0;
  auto low24 = [up](u64 v) -> s64 { return up ? (s64)(v << up) >> up : (s64)(v & 0xffffff); };
  forLanes(mk, [&](int l) {
    const s64 r = low24(rd(w, in.o[1], l)) * low24(rd(w, in.o[2], l));
    const u32 sum = in.op == O_MAD ? rd(w, in.o[3], l) : 0;
    wr(w, in.o[0], l, (u32)(in.flags & F_HI ? r >> 16 : r) + sum);
  });
}
void Exec::mulWide(Warp& w, const Instr& in, u32 mk) {
  const Args x = args(w, in, mk);
  auto apply = [&](auto zero) {
    using V = decltype(zero);
    using W = Twice<V>;
    if (in.op == O_MAD)
      map3<W, V, V, W>(x, [](V a, V b, W c) { return add((W)a * (W)b, c); });
    else
      map2<W, V, V>(x, [](V a, V b) { return (W)a * (W)b; });
  };
  switch (in.t) {
    case S32:
      return apply(s32{});
    case U32:
      return apply(u32{});
    case S16:
      return apply(s16{});
    case U16:
      return apply(u16{});
    default:
      notImplemented(w);
  }
}
void Exec::dotProduct(Warp& w, const Instr& in, u32 mk) {  // dp4a, dp2a
  const bool four = in.op == O_DP4A;
  const int n = four ? 4 : 2, width = four ? 8 : 16, skip = !four && in.flags & F_HI ? 16 : 0;
  auto element = [](u32 x, int at, int bits, Ty t) -> s32 {
    const s32 v = (s32)(x >> at << (32 - bits));
    return t == S32 ? v >> (32 - bits) : (s32)((u32)v >> (32 - bits));
  };
  forLanes(mk, [&](int l) {
    const u32 x = rd(w, in.o[1], l), y = rd(w, in.o[2], l);
    u32 r = rd(w, in.o[3], l);
    for (int i = 0; i < n; i++) r += (u32)(element(x, width * i, width, in.t) * element(y, skip + 8 * i, 8, in.t2));
    wr(w, in.o[0], l, r);
  });
}
}  // namespace ptx
