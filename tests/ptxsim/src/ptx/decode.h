// The decoder turns the raw statements of a kernel, and of the functions it calls, into Instr. One object serves one
// kernel; while a statement is decoded, its parts are members, so that each instruction is one small method.
//
// decode.cpp          the table of instructions, modifiers, what targets have
// operands.cpp        registers, variables, literals
// decode_arith.cpp    arithmetic, comparisons, conversions
// decode_memory.cpp   loads, stores, atomics, asynchronous copies, mbarriers
// decode_control.cpp  branches, calls, warp operations, barriers
// decode_tensor.cpp   ldmatrix, mma, wmma, wgmma
// link.cpp            what a kernel consists of, and where its variables lie
#pragma once
#include <map>
#include <string>
#include <vector>

#include "module.h"
#include "text.h"

namespace ptx {

struct Decoder {
  Module& m;
  Kernel& k;
  int cc;  // what the module was compiled for; 0 if it does not say

  Decoder(Module& module, Kernel& kernel) : m(module), k(kernel), cc(parseTarget(module.target).cc) {}
  void function(Func* fn);
  void resolveLabels();
  void placeShared(const Var& v, const std::string& key);
  void placeParameters(Func* fn);

  u32 localTop = LOCAL_BASE, fpTop = 16;
  u64 shTop = SMEM_BASE;
  std::map<std::string, u64> shAddr;     // "name", or "function/name#scope"
  std::map<std::string, s32> funcStart;  // first instruction of a function
  std::map<std::string, u32> fpBase;     // parameter block of a .func, and "name#ret" for its results

 private:
  struct Label {  // to be replaced by an instruction index once all functions are decoded
    std::string name;
    int scope;
    Func* f;
    s32 start;
    s32 pc, list = -1, index = 0;  // of a branch, or an entry of a target list
  };
  struct Mods {
    std::vector<Ty> ty;
    u32 fl = 0;
    u8 rnd = R_NONE, cmp = 255, bop = 0;
    int vn = 1;
    std::vector<u8> sp;
    u8 space() const { return sp.empty() ? (u8)GENERIC : sp[0]; }
  };
  using Method = void (Decoder::*)();
  static const std::map<std::string, Method> methods;

  std::map<std::string, u32> srOff;
  std::map<std::pair<u64, u8>, u32> constants;
  std::map<std::pair<Func*, std::string>, u32> locAddr, parAddr;
  std::vector<Label> labels;

  // The statement that is being decoded.
  Func* f = nullptr;
  s32 start = 0;
  const RawInstr* raw = nullptr;
  int sc = 0;                      // its scope
  std::vector<std::string> parts;  // of the opcode: "mad", "lo", "s32"
  std::string name;                // parts[0]
  size_t na = 0;                   // number of operands
  Instr in;

  void statement(const RawInstr& r);
  [[noreturn]] void bad(const std::string& s) { throw Error(s); }
  // The PTX target has to be at least sm_<x>; modules that name no target are not checked.
  void need(int x, const char* what = "the instruction");
  void needForTypes();
  const std::string& arg(size_t i);
  bool has(const char* part) const;
  void set(int i, const std::string& a, Ty t) { in.o[i] = operand(a, t); }
  void setAll(int n, Ty t) {
    for (int i = 0; i < n; i++) set(i, arg(i), t);
  }
  void setWithPredicate(int i, Ty t, int predicate);  // the first operand, in the form "d|p"
  void asVector(int i);                               // a single register as a vector of one
  void narrowest(u32 bytes) { k.granule = std::min(k.granule, bytes); }
  u8 sharedSpace() const { return has("shared") || has("shared::cta") ? SHARED : GENERIC; }
  Mods mods(size_t from = 1);
  Mods mods(const std::vector<std::string>& list, size_t from);
  std::vector<std::string> without(const std::vector<std::string>& drop) const;
  void shape(size_t from, std::vector<Ty>& types);  // .m16n8k16, .row/.col, types
  Mods typed(Op op);                                // op, type, flags, rounding and class from the modifiers
  void simple(Op op, int n, u8 b32 = 0);            // n operands of one type; those in the bit mask b32 are .b32
  static u8 classOf(Ty t);

  // operands.cpp
  u32 regAlloc(u32 size);
  RegInfo* findReg(const std::string& n);
  bool symAddr(const std::string& n, u64& a, Space& sp);
  Opnd constant(u64 v, u8 size);
  Opnd literal(const Num& n, Ty t);
  Opnd sreg(const std::string& n);
  Opnd address(const std::string& a);
  Opnd operand(const std::string& a, Ty t);

  void basic();
  void carry();
  void mul();
  void mad();
  void shift();
  void prmt();
  void bits();
  void lop3();
  void testp();
  void selp();
  void slct();
  void setp();
  void setInstr();
  void mov();
  void cvt();
  void cvta();
  void isspacep();
  void dotProduct();
  void load();
  void store();
  void atomic();
  void hint();
  void createPolicy();
  void fence();
  void nothing();
  void mapa();
  void ctaRank();
  void copyAsync();
  void cpAsync();
  void bulk();
  void bulkCopy(size_t from);
  void mbarrier();
  void control();
  void branch();
  void branchTable();
  void call();
  void shfl();
  void vote();
  void match();
  void redux();
  void activemask();
  void elect();
  void barrier();
  void matrix();
  void movmatrix();
  void mma();
  void wmma();
  void wgmma();
  void wgmmaAsync();
  void dynamicStack();
};
}  // namespace ptx
