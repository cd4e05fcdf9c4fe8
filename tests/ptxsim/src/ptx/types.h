// Vocabulary of the whole emulator: integer names, PTX types, state spaces, and the layout of generic addresses.
#pragma once
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

// Everything that can be wrong with a program or its run; the message is meant for the user.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
std::string strf(const char* f, ...) __attribute__((format(printf, 1, 2)));

enum Ty : u8 {
  NONE,
  PRED,
  B8,
  B16,
  B32,
  B64,
  B128,
  U8,
  U16,
  U32,
  U64,
  S8,
  S16,
  S32,
  S64,
  F16,
  F16X2,
  BF16,
  BF16X2,
  F32,
  F32X2,
  F64,
  TF32,
  E4M3,
  E5M2,
  E4M3X2,
  E5M2X2,
  S4,
  U4,
  B1
};
int tySize(Ty t);  // bytes as held in memory
inline bool isFloat(Ty t) { return t >= F16 && t <= TF32; }
inline bool isSigned(Ty t) { return t >= S8 && t <= S64; }
Ty parseTy(const std::string& s);

enum Space : u8 { GENERIC, GLOBAL, SHARED, SHARED_CLUSTER, LOCAL, PARAM, CONSTSP };

// generic address windows (16 GiB each); global allocation i lives in window 16+i

// Generic addresses are split into windows of 16 GiB, so that an access just outside a buffer never lands in another
// one. Windows 1 to 3 are shared memory, local memory and parameters; global allocation i lives in window 16 + i.
// Window 0 is left to host memory that is registered at its own address.
constexpr int WSHIFT = 34;
constexpr u64 SHARED_WIN = 1ull << WSHIFT, LOCAL_WIN = 2ull << WSHIFT, PARAM_WIN = 3ull << WSHIFT;
constexpr u64 GLOBAL_WIN0 = 16, MAX_ALLOCATIONS = 4000;
constexpr u32 SMEM_BASE = 1024;  // first shared address: null pointers into shared memory are caught
constexpr u32 LOCAL_BASE = 64;
constexpr u32 FPARAM_BASE = 0x40000000;  // per-lane parameters of .func, inside the parameter window
}  // namespace ptx
