// Loops over the lanes of a warp. With all 32 lanes active they are plain loops over arrays, which the compiler turns
// into vector instructions; map1, map2 and map3 are for results that depend on nothing but the operands of the lane.
#pragma once
#include <xmmintrin.h>

#include <bit>
#include <type_traits>

#include "../ptx/instr.h"

namespace ptx {

template <class F>
inline __attribute__((always_inline)) void forLanes(u32 mask, F f) {
  if (mask == ~0u)
    for (int l = 0; l < 32; l++) f(l);
  else
    for (u32 q = mask; q; q &= q - 1) f(std::countr_zero(q));
}

// Registers are 32 or 64 bits wide; narrower values have zeros above them.
template <class V>
struct Cell {
  using T = std::conditional_t<sizeof(V) == 8, u64, u32>;
  static V get(T x) {
    if constexpr (sizeof(V) == sizeof(T))
      return std::bit_cast<V>(x);
    else
      return (V)x;
  }
  static T put(V v) {
    if constexpr (sizeof(V) == sizeof(T))
      return std::bit_cast<T>(v);
    else
      return (T)(std::make_unsigned_t<V>)v;
  }
};
template <class V>
using CellT = typename Cell<V>::T;

struct Args {  // operand arrays of an instruction, and the lanes that execute it
  u8* d;
  const u8 *a, *b, *c;
  u32 mask;
};

template <class D, class A, class F>
inline void map1(const Args& x, F f) {
  auto* d = (CellT<D>*)x.d;
  auto* a = (const CellT<A>*)x.a;
  auto lane = [=](int l) { d[l] = Cell<D>::put(f(Cell<A>::get(a[l]))); };
  if (x.mask == ~0u)
#pragma GCC ivdep
    for (int l = 0; l < 32; l++) lane(l);
  else
    for (u32 q = x.mask; q; q &= q - 1) lane(std::countr_zero(q));
}
template <class D, class A, class B, class F>
inline void map2(const Args& x, F f) {
  auto* d = (CellT<D>*)x.d;
  auto* a = (const CellT<A>*)x.a;
  auto* b = (const CellT<B>*)x.b;
  auto lane = [=](int l) { d[l] = Cell<D>::put(f(Cell<A>::get(a[l]), Cell<B>::get(b[l]))); };
  if (x.mask == ~0u)
#pragma GCC ivdep
    for (int l = 0; l < 32; l++) lane(l);
  else
    for (u32 q = x.mask; q; q &= q - 1) lane(std::countr_zero(q));
}
template <class D, class A, class B, class C, class F>
inline void map3(const Args& x, F f) {
  auto* d = (CellT<D>*)x.d;
  auto* a = (const CellT<A>*)x.a;
  auto* b = (const CellT<B>*)x.b;
  auto* c = (const CellT<C>*)x.c;
  auto lane = [=](int l) { d[l] = Cell<D>::put(f(Cell<A>::get(a[l]), Cell<B>::get(b[l]), Cell<C>::get(c[l]))); };
  if (x.mask == ~0u)
#pragma GCC ivdep
    for (int l = 0; l < 32; l++) lane(l);
  else
    for (u32 q = x.mask; q; q &= q - 1) lane(std::countr_zero(q));
}

// Calls map(D{}) with the C++ type of an integer PTX type; false if t is none.
template <class F>
inline bool withInt(Ty t, F f) {
  switch (t) {
    case S32:
      f(s32{});
      return true;
    case U32:
    case B32:
      f(u32{});
      return true;
    case S64:
      f(s64{});
      return true;
    case U64:
    case B64:
      f(u64{});
      return true;
    case S16:
      f(s16{});
      return true;
    case U16:
    case B16:
      f(u16{});
      return true;
    default:
      return false;
  }
}

// The processor's rounding mode while it exists, for .rz, .rm and .rp.
struct RoundMode {
  unsigned old;
  bool on;
  explicit RoundMode(u8 r) : on(r > R_RN && r <= R_RP) {
    if (!on) return;
    old = _mm_getcsr();
    unsigned mode = r == R_RZ ? _MM_ROUND_TOWARD_ZERO : r == R_RM ? _MM_ROUND_DOWN : _MM_ROUND_UP;
    set((old & ~_MM_ROUND_MASK) | mode);
  }
  ~RoundMode() {
    if (on) set(old);
  }
  static void set(unsigned csr) {  // the barriers keep arithmetic from moving across
    asm volatile("" ::: "memory");
    _mm_setcsr(csr);
    asm volatile("" ::: "memory");
  }
};
}  // namespace ptx
