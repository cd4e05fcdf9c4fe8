// A parsed PTX module: functions as raw statements, variables, and the kernels that have been decoded so far.
#pragma once
#include <map>
#include <memory>
#include <vector>

#include "instr.h"
#include "memory.h"

namespace ptx {

struct RegInfo {
  u32 off;
  Ty t;
  u8 sz;
};
struct RegDecl {
  Ty t;
  s64 count;  // .reg .b32 %r<count>; negative for a single name
};
struct Reloc {  // the address of `symbol` + `add` goes to byte `at` of a variable
  u64 at;
  std::string symbol;
  s64 add;
};
struct Var {
  std::string name;
  Space sp;
  Ty t;
  u64 size = 0, align = 1, addr = 0;
  bool ext = false, hasInit = false;
  std::vector<u8> init;
  std::vector<Reloc> relocs;
};
struct RawInstr {  // one statement, split but not understood yet
  u32 line;
  int scope;
  bool pneg = false;
  std::string pred, op;
  std::vector<std::string> args;
};
struct Scope {
  int parent;
  std::map<std::string, RegDecl> regs;
  std::map<std::string, RegInfo> alloc;
  std::map<std::string, int> labels;
  std::map<std::string, std::vector<std::string>> targets;
  std::map<std::string, Var> vars;
};
struct Func {
  std::string name;
  bool entry = false, proto = false;
  u32 line = 0;
  std::vector<Var> params, rets;
  std::vector<RawInstr> code;
  std::vector<Scope> scopes;
  u32 reqntid[3] = {0, 0, 0}, maxntid[3] = {0, 0, 0}, cluster[3] = {0, 0, 0};
};

struct ParamCopy {  // of a call, between offsets of the per-lane parameter area
  u32 from, to, size;
};
struct CallRec {
  std::string name;
  s32 target;
  std::vector<ParamCopy> in, out;
};
struct SregInit {  // a special register that the kernel reads, kept in an ordinary one
  std::string name;
  u32 off;
  u8 size;
};
// An entry with everything it calls, decoded and laid out.
struct Kernel {
  Func* entry;
  std::vector<Instr> code;
  std::vector<std::vector<Opnd>> vecs;
  std::vector<std::string> msgs;
  std::vector<std::vector<s32>> targets;
  std::vector<CallRec> calls;
  std::vector<u8> cpool;
  u32 regBytes = 0, localBytes = 0, fparamBytes = 0, paramBytes = 0;
  u32 smemStatic = 0, dynOff = 0;  // static shared memory, and where the dynamic part starts
  std::vector<SregInit> sregs;
  u32 granule = 4;  // bytes per entry of the race detector: the narrowest shared access
  bool usesWgmma = false, usesAsyncProxy = false;
  std::vector<std::string> unsupported;
  u32 numRegs = 0;
  mutable std::vector<u8> executed;  // by instruction, where somebody wants to know
};

struct Target {  // .target sm_90a: 90, 'a'
  int cc = 0;
  char suffix = 0;
};
Target parseTarget(const std::string& line);  // "sm_90a"; cc is 0 if there is none
bool runsOn(Target t, int cc);

struct Module {
  Module() = default;
  Module(const Module&) = delete;
  ~Module();
  Kernel* link(const std::string& name);  // decodes on first use

  std::map<std::string, std::unique_ptr<Func>> funcs;
  std::vector<std::string> order;
  std::map<std::string, Var> vars;
  std::map<std::string, std::unique_ptr<Kernel>> kernels;
  std::string target;
  Memory* mem;
  std::vector<std::unique_ptr<u8[]>> store;
};
Module* parseModule(const std::string& text, Memory* mem);
}  // namespace ptx
