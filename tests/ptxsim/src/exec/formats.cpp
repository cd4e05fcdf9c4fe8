// Rounding to the formats that C++ does not have.
#include "formats.h"

#include <cmath>

namespace ptx {

double roundInt(double x, int rnd) {
  switch (rnd) {
    case R_RZ:
      return std::trunc(x);
    case R_RM:
      return std::floor(x);
    case R_RP:
      return std::ceil(x);
    case R_RNA:
      return std::round(x);
    default:
      return std::nearbyint(x);
  }
}
// To `eb` bits of exponent and `mb` stored bits of mantissa; the result is exact in double and may exceed the range.
static double roundFormat(double d, int eb, int mb, int rnd) {
  if (std::isnan(d) || std::isinf(d) || d == 0) return d;
  int bias = (1 << (eb - 1)) - 1, e;
  std::frexp(d, &e);
  e = std::max(e - 1, 1 - bias);
  const double ulp = std::ldexp(1.0, e - mb);
  return roundInt(d / ulp, rnd) * ulp;
}
static double overflow(double rounded, double d, double max, int rnd) {
  if (std::fabs(rounded) <= max || std::isinf(d)) return rounded;
  const bool stays = rnd == R_RZ || (rnd == R_RM && d > 0) || (rnd == R_RP && d < 0);
  return std::copysign(stays ? max : INFINITY, d);
}

u16 d2bf(double d, int rnd) {
  if (std::isnan(d)) return 0x7fff;
  return asU((float)overflow(roundFormat(d, 8, 7, rnd), d, 0x1.fep127, rnd)) >> 16;
}
u16 f2bf(float f) {
  u32 u = asU(f);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
u16 d2h(double d, int rnd) {
  if (std::isnan(d)) return 0x7fff;
  double r = overflow(roundFormat(d, 5, 10, rnd), d, 65504, rnd);
  if (r == 0) r = std::copysign(0.0, d);
  return std::bit_cast<u16>((_Float16)(float)r);
}
u32 toTf32(float f, int rnd) {
  u32 u = asU(f);
  if ((u & 0x7f800000) == 0x7f800000) return (u & 0x7fffff) ? 0x7fffffff : u;
  if (rnd == R_RZ) return u & ~0x1fffu;
  if (rnd == R_RN) return (u + 0xfff + ((u >> 13) & 1)) & ~0x1fffu;
  return (u + 0x1000) & ~0x1fffu;
}
u8 d2fp8(double d, bool e5, bool relu) {  // .satfinite, to nearest even
  if (std::isnan(d)) return 0x7f;
  if (relu && d < 0) d = 0;
  const int mb = e5 ? 2 : 3, bias = e5 ? 15 : 7, sign = std::signbit(d) << 7;
  const double max = e5 ? 57344.0 : 448.0;
  const double a = std::min(std::fabs(roundFormat(d, e5 ? 5 : 4, mb, R_RN)), max);
  if (a == 0) return sign;
  int e;
  std::frexp(a, &e);
  e -= 1;
  if (e < 1 - bias) return sign | (u8)(a / std::ldexp(1.0, 1 - bias - mb));
  return sign | (u8)((e + bias) << mb) | (u8)((a / std::ldexp(1.0, e) - 1) * (1 << mb));
}
float fp82f(u8 v, bool e5) {
  const int mb = e5 ? 2 : 3, bias = e5 ? 15 : 7, e = (v & 0x7f) >> mb, m = v & ((1 << mb) - 1);
  const float s = v & 0x80 ? -1 : 1;
  if (!e5 && (v & 0x7f) == 0x7f) return NAN;
  if (e5 && e == 31) return m ? NAN : s * INFINITY;
  return s * (e ? std::ldexp(1.0f + (float)m / (1 << mb), e - bias) : std::ldexp((float)m / (1 << mb), 1 - bias));
}
// a * b + c with a * b exact in double and the sum rounded to odd: a second rounding, to half precision, is then right.
double fmaOdd(double a, double b, double c) {
  double p = a * b, s = p + c;
  if (!std::isfinite(s)) return s;
  double bb = s - p, e = (p - (s - bb)) + (c - bb);
  if (e != 0 && !(asU(s) & 1)) s = std::nextafter(s, e > 0 ? INFINITY : -INFINITY);
  return s;
}
}  // namespace ptx
