// Number formats that C++ does not have: bf16, f16, tf32, fp8. Rounding from double, so that it happens once.
#pragma once
#include <bit>

#include "../ptx/instr.h"

namespace ptx {

inline float asF(u32 v) { return std::bit_cast<float>(v); }
inline u32 asU(float v) { return std::bit_cast<u32>(v); }
inline double asD(u64 v) { return std::bit_cast<double>(v); }
inline u64 asU(double v) { return std::bit_cast<u64>(v); }

inline float bf2f(u16 h) { return asF((u32)h << 16); }
inline float h2f(u16 h) { return (float)std::bit_cast<_Float16>(h); }
inline float tf2f(u32 v) { return asF(v & 0xffffe000u); }  // tensor cores ignore the low 13 bits
float fp82f(u8 v, bool e5m2);
inline float half2f(u16 h, Ty t) { return t == BF16 || t == BF16X2 ? bf2f(h) : h2f(h); }

u16 f2bf(float f);
u16 d2bf(double d, int rnd = R_RN);
u16 d2h(double d, int rnd = R_RN);
inline u16 d2half(double d, Ty t, int rnd = R_RN) { return t == BF16 || t == BF16X2 ? d2bf(d, rnd) : d2h(d, rnd); }
u32 toTf32(float f, int rnd);
u8 d2fp8(double d, bool e5m2, bool relu);

double roundInt(double x, int rnd);  // to an integral value
double fmaOdd(double a, double b, double c);

inline s64 sext(u64 v, Ty t) {  // the value of an integer of type t
  switch (tySize(t)) {
    case 1:
      return isSigned(t) ? (s64)(s8)v : (s64)(u8)v;
    case 2:
      return isSigned(t) ? (s64)(s16)v : (s64)(u16)v;
    case 4:
      return isSigned(t) ? (s64)(s32)v : (s64)(u32)v;
    default:
      return v;
  }
}
}  // namespace ptx
