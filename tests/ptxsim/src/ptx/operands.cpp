// Operands: registers get their place in the register file on first sight, variables their address, literals a slot in
// the pool of constants.
#include <set>

#include "decode.h"

namespace ptx {
using std::string;
using std::vector;

static u64 roundUp(u64 x, u64 to) { return (x + to - 1) / to * to; }
static u8 regSize(Ty t) { return t == PRED ? 1 : tySize(t) <= 4 ? 4 : tySize(t); }

u32 Decoder::regAlloc(u32 size) {  // 32 lanes; predicates are one mask
  u32 n = size == 1 ? 4 : size * 32;
  u32 at = roundUp(k.regBytes, n >= 64 ? 64 : 4);
  k.regBytes = at + n;
  k.numRegs++;
  return at;
}
RegInfo* Decoder::findReg(const string& n) {
  string base = n;
  while (!base.empty() && isdigit((u8)base.back())) base.pop_back();
  for (int q = sc; q >= 0; q = f->scopes[q].parent) {
    Scope& scope = f->scopes[q];
    auto known = scope.alloc.find(n);
    if (known != scope.alloc.end()) return &known->second;
    auto d = scope.regs.find(n);
    if (d == scope.regs.end() || d->second.count >= 0) {
      d = base.size() < n.size() ? scope.regs.find(base) : scope.regs.end();
      if (d == scope.regs.end() || (s64)std::stoull(n.substr(base.size())) >= d->second.count) continue;
    }
    u8 size = regSize(d->second.t);
    return &(scope.alloc[n] = {regAlloc(size), d->second.t, size});
  }
  return nullptr;
}

bool Decoder::symAddr(const string& n, u64& a, Space& sp) {
  auto place = [](auto& map, const std::pair<Func*, string>& key, u32& top, u64 align, u64 size) {
    auto it = map.find(key);
    if (it != map.end()) return it->second;
    u32 at = roundUp(top, align);
    top = at + size;
    return map[key] = at;
  };
  auto shared = [&](const string& key) {
    auto it = shAddr.find(key);
    if (it == shAddr.end()) bad("internal: shared variable not placed: " + n);
    return it->second;
  };
  for (int q = sc; q >= 0; q = f->scopes[q].parent) {
    auto it = f->scopes[q].vars.find(n);
    if (it == f->scopes[q].vars.end()) continue;
    const Var& v = it->second;
    const string key = n + "#" + std::to_string(q);
    sp = v.sp;
    a = sp == SHARED  ? shared(f->name + "/" + key)
        : sp == LOCAL ? place(locAddr, {f, key}, localTop, v.align, v.size)
        : sp == PARAM ? FPARAM_BASE + place(parAddr, {f, key}, fpTop, 16, v.size)
                      : v.addr;
    return true;
  }
  for (bool results : {false, true})
    for (auto& v : results ? f->rets : f->params)
      if (v.name == n) {
        sp = PARAM;
        a = f->entry ? v.addr : FPARAM_BASE + fpBase[results ? f->name + "#ret" : f->name] + v.addr;
        return true;
      }
  auto it = m.vars.find(n);
  if (it == m.vars.end()) return false;
  const Var& v = it->second;
  sp = v.sp;
  a = sp == SHARED ? shared(n) : sp == LOCAL ? place(locAddr, {nullptr, n}, localTop, 16, v.size) : v.addr;
  return true;
}

Opnd Decoder::constant(u64 v, u8 size) {
  Opnd o;
  o.k = K_CONST;
  o.sz = size;
  o.imm = v;
  if (size == 1) {  // predicate: the mask itself
    o.off = (u32)v;
    return o;
  }
  if (size == 4) v &= 0xffffffffu;
  auto [it, fresh] = constants.insert({{v, size}, 0});
  if (fresh) {
    u32 at = it->second = roundUp(k.cpool.size(), 64);
    k.cpool.resize(at + size * 32, 0);
    for (int l = 0; l < 32; l++) memcpy(&k.cpool[at + l * size], &v, std::min<int>(size, 8));
  }
  o.off = it->second;
  return o;
}
Opnd Decoder::literal(const Num& n, Ty t) {
  const int s = tySize(t);
  u64 v = n.i;
  if (t == PRED) return constant(n.i ? ~0u : 0u, 1);
  if (t == F64) {
    double x = n.isF ? n.f : (double)(s64)n.i;
    memcpy(&v, &x, 8);
  } else if (n.f32)
    v = n.f32bits;
  else if (n.isF && s == 4) {
    float x = n.f;
    v = 0;
    memcpy(&v, &x, 4);
  } else if (n.isF)
    memcpy(&v, &n.f, 8);
  if (s <= 2) v &= (1u << 8 * s) - 1;
  return constant(v, s <= 4 ? 4 : s);
}

static const std::set<string> specialRegisters = {"%tid.x",
                                                  "%tid.y",
                                                  "%tid.z",
                                                  "%ntid.x",
                                                  "%ntid.y",
                                                  "%ntid.z",
                                                  "%ctaid.x",
                                                  "%ctaid.y",
                                                  "%ctaid.z",
                                                  "%nctaid.x",
                                                  "%nctaid.y",
                                                  "%nctaid.z",
                                                  "%laneid",
                                                  "%warpid",
                                                  "%nwarpid",
                                                  "%smid",
                                                  "%nsmid",
                                                  "%gridid",
                                                  "%lanemask_eq",
                                                  "%lanemask_le",
                                                  "%lanemask_lt",
                                                  "%lanemask_ge",
                                                  "%lanemask_gt",
                                                  "%dynamic_smem_size",
                                                  "%total_smem_size",
                                                  "%aggr_smem_size",
                                                  "%cluster_ctaid.x",
                                                  "%cluster_ctaid.y",
                                                  "%cluster_ctaid.z",
                                                  "%cluster_nctaid.x",
                                                  "%cluster_nctaid.y",
                                                  "%cluster_nctaid.z",
                                                  "%clusterid.x",
                                                  "%clusterid.y",
                                                  "%clusterid.z",
                                                  "%nclusterid.x",
                                                  "%nclusterid.y",
                                                  "%nclusterid.z",
                                                  "%cluster_ctarank",
                                                  "%cluster_nctarank",
                                                  "%is_explicit_cluster",
                                                  "%clock",
                                                  "%clock_hi",
                                                  "%clock64",
                                                  "%globaltimer",
                                                  "%globaltimer_lo",
                                                  "%globaltimer_hi",
                                                  "%reserved_smem_offset_begin",
                                                  "%reserved_smem_offset_end",
                                                  "%reserved_smem_offset_cap",
                                                  "%reserved_smem_offset_0",
                                                  "%current_graph_exec",
                                                  "%envreg0"};
Opnd Decoder::sreg(const string& n) {  // kept in an ordinary register, which the executor fills (special_registers.cpp)
  static const std::set<string> wide = {"%clock64", "%globaltimer", "%gridid", "%current_graph_exec"};
  Opnd o;
  o.k = K_REG;
  o.sz = wide.count(n) ? 8 : n == "%is_explicit_cluster" ? 1 : 4;
  auto it = srOff.find(n);
  if (it == srOff.end()) {
    it = srOff.insert({n, regAlloc(o.sz)}).first;
    k.sregs.push_back({n, it->second, o.sz});
  }
  o.off = it->second;
  return o;
}

Opnd Decoder::address(const string& a) {  // [base+displacement], [tensor map, {coordinates}]
  auto pieces = splitTop(a.substr(1, a.rfind(']') - 1));
  if (pieces.empty() || pieces.size() > 2) bad("address with more than two parts");
  Opnd o;
  o.k = K_ADDR;
  if (pieces.size() == 2) {
    Opnd c = operand(pieces[1], B32);
    o.vec = c.vec;
    if (c.k != K_VEC) {
      o.vec = k.vecs.size();
      k.vecs.push_back({c});
    }
  }
  const string& b = pieces[0];
  size_t q = b.find_first_of("+-", 1);
  const string base = trim(b.substr(0, q));
  if (q != string::npos) {
    string d = trim(b.substr(b[q] == '+' ? q + 1 : q));
    Num n = parseNum(d);
    if (!n.ok) bad("bad address displacement " + d);
    o.imm = n.i;
  }
  if (RegInfo* r = findReg(base)) {
    o.hasBase = true;
    o.off = r->off;
    o.sz = r->sz;
  } else if (Num n = parseNum(base); n.ok)
    o.imm += n.i;
  else {
    u64 ad;
    Space sp;
    if (!symAddr(base, ad, sp)) bad("unknown symbol in address: " + base);
    o.imm += ad;
    o.symSpace = sp;
  }
  return o;
}
Opnd Decoder::operand(const string& text, Ty t) {  // t: the type that literals are written in
  string a = trim(text);
  if (a.empty()) bad("empty operand");
  Opnd o;
  if (a == "_") {
    o.k = K_SINK;
    return o;
  }
  if (a[0] == '{') {
    vector<Opnd> v;
    for (auto& x : splitTop(a.substr(1, a.rfind('}') - 1))) v.push_back(operand(x, t));
    o.k = K_VEC;
    o.vec = k.vecs.size();
    o.imm = v.size();
    k.vecs.push_back(v);
    return o;
  }
  if (a[0] == '[') return address(a);
  if (a[0] == '!') {
    o.neg = true;
    a = trim(a.substr(1));
  }
  if (a.find('|') != string::npos) bad("unexpected '|' in operand " + a);
  if (RegInfo* r = findReg(a)) {
    o.k = K_REG;
    o.off = r->off;
    o.sz = r->sz;
    return o;
  }
  if (specialRegisters.count(a)) return sreg(a);
  if (Num n = parseNum(a); n.ok) return literal(n, t);
  size_t plus = a.find('+');
  string sym = trim(a.substr(0, plus));
  s64 disp = plus == string::npos ? 0 : (s64)parseNum(a.substr(plus + 1)).i;
  if (startsWith(sym, "generic(")) sym = sym.substr(8, sym.find(')') - 8);
  u64 ad;
  Space sp;
  if (!symAddr(sym, ad, sp)) bad("unknown operand '" + a + "'");
  return constant(ad + disp, tySize(t) <= 4 ? 4 : 8);
}
}  // namespace ptx
