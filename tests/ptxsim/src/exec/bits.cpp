// Logic, shifts and bit fields.
#include <algorithm>

#include "exec.h"

namespace ptx {

void Exec::logic(Warp& w, const Instr& in, u32 mk) {
  if (in.t == PRED) {
    const u32 x = pmask(w, in.o[1]), y = in.op == O_NOT ? 0 : pmask(w, in.o[2]);
    return setPred(w, in.o[0], mk, in.op == O_AND ? x & y : in.op == O_OR ? x | y : in.op == O_XOR ? x ^ y : ~x);
  }
  const Args x = args(w, in, mk);
  const bool ok = withInt(in.t, [&](auto zero) {
    using V = decltype(zero);
    switch (in.op) {
      case O_AND:
        return map2<V, V, V>(x, [](V a, V b) { return (V)(a & b); });
      case O_OR:
        return map2<V, V, V>(x, [](V a, V b) { return (V)(a | b); });
      case O_XOR:
        return map2<V, V, V>(x, [](V a, V b) { return (V)(a ^ b); });
      case O_NOT:
        return map1<V, V>(x, [](V a) { return (V)~a; });
      default:
        return map1<V, V>(x, [](V a) { return (V)(a == 0); });  // cnot
    }
  });
  if (!ok) notImplemented(w);
}
void Exec::lop3(Warp& w, const Instr& in, u32 mk) {
  const u32 table = in.o[4].imm;
  map3<u32, u32, u32, u32>(args(w, in, mk), [table](u32 x, u32 y, u32 z) {
    u32 r = 0;
    if (table & 1) r |= ~x & ~y & ~z;
    if (table & 2) r |= ~x & ~y & z;
    if (table & 4) r |= ~x & y & ~z;
    if (table & 8) r |= ~x & y & z;
    if (table & 16) r |= x & ~y & ~z;
    if (table & 32) r |= x & ~y & z;
    if (table & 64) r |= x & y & ~z;
    if (table & 128) r |= x & y & z;
    return r;
  });
}
void Exec::shift(Warp& w, const Instr& in, u32 mk) {  // amounts beyond the width are clamped to it
  const Args x = args(w, in, mk);
  if (in.op == O_SHF) {
    const bool left = in.flags & F_LEFT, wrap = in.flags & F_WRAP;
    return map3<u32, u32, u32, u32>(x, [=](u32 lo, u32 hi, u32 n) {
      n = wrap ? n & 31 : std::min(n, 32u);
      const u64 v = (u64)hi << 32 | lo;
      return left ? (u32)(v << n >> 32) : n == 32 ? hi : (u32)(v >> n);
    });
  }
  const bool left = in.op == O_SHL;
  const bool ok = withInt(in.t, [&](auto zero) {
    using V = decltype(zero);
    constexpr u32 bits = 8 * sizeof(V);
    if (left)
      map2<V, V, u32>(x, [](V a, u32 n) { return n >= bits ? (V)0 : (V)((std::make_unsigned_t<V>)a << n); });
    else if (std::is_signed_v<V>)
      map2<V, V, u32>(x, [](V a, u32 n) { return (V)(a >> std::min(n, bits - 1)); });
    else
      map2<V, V, u32>(x, [](V a, u32 n) { return n >= bits ? (V)0 : (V)(a >> n); });
  });
  if (!ok) notImplemented(w);
}
void Exec::prmt(Warp& w, const Instr& in, u32 mk) {
  const u8 mode = in.sub;
  map3<u32, u32, u32, u32>(args(w, in, mk), [mode](u32 x, u32 y, u32 selector) {
    const u64 v = (u64)y << 32 | x;
    auto byte = [&](u32 i) { return (u32)(v >> (8 * (i & 7))) & 0xff; };
    const u32 i = selector & 3;
    u32 r = 0;
    for (u32 j = 0; j < 4; j++) {
      u32 e;
      switch (mode) {
        case 0: {  // a nibble a byte; its top bit replicates the sign
          const u32 n = selector >> (4 * j) & 15;
          e = byte(n);
          if (n & 8) e = e & 0x80 ? 0xff : 0;
          break;
        }
        case 1:
          e = byte(i + j);
          break;
        case 2:
          e = byte(i - j + 8);
          break;
        case 3:
          e = byte(i);
          break;
        case 4:
          e = byte(std::max(i, j));
          break;
        case 5:
          e = byte(std::min(i, j));
          break;
        default:
          e = byte((i & 1) * 2 + (j & 1));
      }
      r |= e << (8 * j);
    }
    return r;
  });
}

static u64 lowMask(u32 n) { return n >= 64 ? ~0ull : (1ull << n) - 1; }
static u64 extract(u64 x, u32 pos, u32 len, u32 bits, bool isSigned) {  // bfe
  if (!len) return 0;
  u64 r = pos >= bits ? 0 : x >> pos & lowMask(len);
  const u32 signBit = std::min(pos + len - 1, bits - 1);
  if (isSigned && (x >> signBit & 1)) r |= ~lowMask(pos >= bits ? 0 : std::min(len, bits - pos));
  return r;
}
void Exec::bitField(Warp& w, const Instr& in, u32 mk) {  // bfe, bfi, bmsk, szext
  const u32 bits = tySize(in.t) * 8;
  const bool wrap = in.flags & F_WRAP;
  forLanes(mk, [&](int l) {
    auto value = [&](int i) { return rd(w, in.o[i], l); };
    u64 r;
    switch (in.op) {
      case O_BFE:
        r = extract(value(1), value(2) & 0xff, value(3) & 0xff, bits, isSigned(in.t));
        break;
      case O_BFI: {
        const u32 pos = value(3) & 0xff, len = value(4) & 0xff;
        const u64 field = pos >= bits ? 0 : lowMask(len) << pos;
        r = (value(2) & ~field) | (pos >= bits ? 0 : value(1) << pos & field);
        break;
      }
      case O_BMSK: {
        const u32 pos = wrap ? value(1) & 31 : value(1), len = wrap ? value(2) & 31 : value(2);
        r = pos >= 32 ? 0 : lowMask(len >= 32 ? 64 : len) << pos;
        break;
      }
      default: {  // szext: the low n bits with sign or zeros above
        const u32 x = value(1), n = wrap ? value(2) & 31 : value(2);
        r = n >= 32 ? x : n == 0 ? 0 : in.t == S32 ? (u32)((s32)(x << (32 - n)) >> (32 - n)) : x & (u32)lowMask(n);
      }
    }
    wr(w, in.o[0], l, r);
  });
}
static u32 nthSet(u32 x, u32 base, s32 n) {  // fns
  if (n == 0) return x >> base & 1 ? base : ~0u;
  for (s32 i = base, left = std::abs(n); i >= 0 && i < 32; i += n > 0 ? 1 : -1)
    if ((x >> i & 1) && --left == 0) return i;
  return ~0u;
}
void Exec::bitCount(Warp& w, const Instr& in, u32 mk) {  // brev, popc, clz, bfind, fns
  const int bits = tySize(in.t) * 8;
  forLanes(mk, [&](int l) {
    u64 x = rd(w, in.o[1], l), r = 0;
    switch (in.op) {
      case O_BREV:
        for (int i = 0; i < bits; i++) r |= (x >> i & 1) << (bits - 1 - i);
        break;
      case O_POPC:
        r = std::popcount(x);
        break;
      case O_CLZ:
        r = std::countl_zero(x) - (64 - bits);
        break;
      case O_BFIND:  // of signed numbers: the most significant bit that differs from the sign
        if (isSigned(in.t) && (x >> (bits - 1) & 1)) x = ~x & lowMask(bits);
        r = x ? 63 - std::countl_zero(x) : ~0u;
        if (in.flags & F_SHIFTAMT && x) r = bits - 1 - r;
        break;
      default:
        r = nthSet(x, rd(w, in.o[2], l), rd(w, in.o[3], l));
    }
    wr(w, in.o[0], l, r);
  });
}
}  // namespace ptx
