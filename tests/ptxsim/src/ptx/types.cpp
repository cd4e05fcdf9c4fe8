// Names and sizes of PTX types; formatted strings.
#include "types.h"

#include <cstdarg>
#include <map>

namespace ptx {
using std::string;

string strf(const char* f, ...) {
  va_list a;
  va_start(a, f);
  char b[4096];
  vsnprintf(b, sizeof b, f, a);
  va_end(a);
  return b;
}

static const std::map<string, Ty> tyMap = {
    {"pred", PRED},     {"b8", B8},         {"b16", B16}, {"b32", B32},     {"b64", B64},   {"b128", B128},
    {"u8", U8},         {"u16", U16},       {"u32", U32}, {"u64", U64},     {"s8", S8},     {"s16", S16},
    {"s32", S32},       {"s64", S64},       {"f16", F16}, {"f16x2", F16X2}, {"bf16", BF16}, {"bf16x2", BF16X2},
    {"f32", F32},       {"f32x2", F32X2},   {"f64", F64}, {"tf32", TF32},   {"e4m3", E4M3}, {"e5m2", E5M2},
    {"e4m3x2", E4M3X2}, {"e5m2x2", E5M2X2}, {"s4", S4},   {"u4", U4},       {"b1", B1}};
Ty parseTy(const string& s) {
  auto i = tyMap.find(s);
  return i == tyMap.end() ? NONE : i->second;
}
int tySize(Ty t) {
  switch (t) {
    case B8:
    case U8:
    case S8:
    case E4M3:
    case E5M2:
    case S4:
    case U4:
      return 1;
    case B16:
    case U16:
    case S16:
    case F16:
    case BF16:
    case E4M3X2:
    case E5M2X2:
      return 2;
    case B64:
    case U64:
    case S64:
    case F64:
    case F32X2:
      return 8;
    case B128:
      return 16;
    default:
      return 4;
  }
}
}  // namespace ptx
