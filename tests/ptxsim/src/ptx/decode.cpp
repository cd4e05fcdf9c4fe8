// The table of instructions, the modifiers they share, and what the targets have. A statement that cannot be decoded
// becomes O_BAD with its reason; a kernel that holds one is refused when it is launched.
#include "decode.h"

#include <algorithm>
#include <set>

namespace ptx {
using std::string;
using std::vector;

const std::map<string, Decoder::Method> Decoder::methods = {
    {"add", &Decoder::basic},
    {"sub", &Decoder::basic},
    {"div", &Decoder::basic},
    {"rem", &Decoder::basic},
    {"min", &Decoder::basic},
    {"max", &Decoder::basic},
    {"neg", &Decoder::basic},
    {"abs", &Decoder::basic},
    {"fma", &Decoder::basic},
    {"sad", &Decoder::basic},
    {"rcp", &Decoder::basic},
    {"sqrt", &Decoder::basic},
    {"rsqrt", &Decoder::basic},
    {"ex2", &Decoder::basic},
    {"lg2", &Decoder::basic},
    {"sin", &Decoder::basic},
    {"cos", &Decoder::basic},
    {"tanh", &Decoder::basic},
    {"copysign", &Decoder::basic},
    {"and", &Decoder::basic},
    {"or", &Decoder::basic},
    {"xor", &Decoder::basic},
    {"not", &Decoder::basic},
    {"cnot", &Decoder::basic},
    {"brev", &Decoder::basic},
    {"popc", &Decoder::basic},
    {"clz", &Decoder::basic},
    {"bfind", &Decoder::basic},
    {"addc", &Decoder::carry},
    {"subc", &Decoder::carry},
    {"mul", &Decoder::mul},
    {"mul24", &Decoder::mul},
    {"mad", &Decoder::mad},
    {"mad24", &Decoder::mad},
    {"madc", &Decoder::mad},
    {"shl", &Decoder::shift},
    {"shr", &Decoder::shift},
    {"shf", &Decoder::shift},
    {"bfe", &Decoder::shift},
    {"bfi", &Decoder::shift},
    {"prmt", &Decoder::prmt},
    {"fns", &Decoder::bits},
    {"bmsk", &Decoder::bits},
    {"szext", &Decoder::bits},
    {"lop3", &Decoder::lop3},
    {"testp", &Decoder::testp},
    {"selp", &Decoder::selp},
    {"slct", &Decoder::slct},
    {"setp", &Decoder::setp},
    {"set", &Decoder::setInstr},
    {"mov", &Decoder::mov},
    {"cvt", &Decoder::cvt},
    {"cvta", &Decoder::cvta},
    {"isspacep", &Decoder::isspacep},
    {"dp4a", &Decoder::dotProduct},
    {"dp2a", &Decoder::dotProduct},
    {"ld", &Decoder::load},
    {"ldu", &Decoder::load},
    {"st", &Decoder::store},
    {"atom", &Decoder::atomic},
    {"red", &Decoder::atomic},
    {"prefetch", &Decoder::hint},
    {"prefetchu", &Decoder::hint},
    {"discard", &Decoder::hint},
    {"applypriority", &Decoder::hint},
    {"createpolicy", &Decoder::createPolicy},
    {"membar", &Decoder::fence},
    {"fence", &Decoder::fence},
    {"griddepcontrol", &Decoder::nothing},
    {"setmaxnreg", &Decoder::nothing},
    {"pmevent", &Decoder::nothing},
    {"mapa", &Decoder::mapa},
    {"getctarank", &Decoder::ctaRank},
    {"cp", &Decoder::copyAsync},
    {"mbarrier", &Decoder::mbarrier},
    {"nanosleep", &Decoder::control},
    {"trap", &Decoder::control},
    {"brkpt", &Decoder::control},
    {"exit", &Decoder::control},
    {"ret", &Decoder::control},
    {"bra", &Decoder::branch},
    {"brx", &Decoder::branchTable},
    {"call", &Decoder::call},
    {"shfl", &Decoder::shfl},
    {"vote", &Decoder::vote},
    {"match", &Decoder::match},
    {"redux", &Decoder::redux},
    {"activemask", &Decoder::activemask},
    {"elect", &Decoder::elect},
    {"bar", &Decoder::barrier},
    {"barrier", &Decoder::barrier},
    {"ldmatrix", &Decoder::matrix},
    {"stmatrix", &Decoder::matrix},
    {"movmatrix", &Decoder::movmatrix},
    {"mma", &Decoder::mma},
    {"wmma", &Decoder::wmma},
    {"wgmma", &Decoder::wgmma},
    {"stacksave", &Decoder::dynamicStack},
    {"stackrestore", &Decoder::dynamicStack},
    {"alloca", &Decoder::dynamicStack},
};

void Decoder::function(Func* fn) {
  f = fn;
  start = k.code.size();
  funcStart[fn->name] = start;
  for (auto& r : fn->code) {
    size_t known = labels.size();
    try {
      statement(r);
    } catch (std::exception& e) {
      labels.resize(known);
      string args;
      for (auto& a : r.args) args += (args.empty() ? "" : ", ") + a;
      string msg = strf("line %u: unsupported '%s %.200s': %s", r.line, r.op.c_str(), args.c_str(), e.what());
      in = Instr();
      in.line = r.line;
      in.msg = k.msgs.size();
      k.msgs.push_back(msg);
      k.unsupported.push_back(msg);
    }
    k.code.push_back(in);
  }
  Instr end;
  end.op = fn->entry ? O_EXIT : O_RET;
  end.line = fn->code.empty() ? fn->line : fn->code.back().line;
  end.cls = S_CTRL;
  k.code.push_back(end);
}

void Decoder::statement(const RawInstr& r) {
  raw = &r;
  sc = r.scope;
  parts = split(r.op, '.');
  name = parts[0];
  na = r.args.size();
  in = Instr();
  in.line = r.line;
  if (!r.pred.empty()) {
    RegInfo* q = findReg(r.pred);
    if (!q || q->sz != 1) bad("bad guard predicate " + r.pred);
    in.hasPred = true;
    in.pneg = r.pneg;
    in.predOff = q->off;
  }
  auto it = methods.find(name);
  if (it == methods.end()) bad("unknown instruction");
  (this->*it->second)();
}

void Decoder::need(int x, const char* what) {
  if (cc && cc < x) bad(strf("%s needs sm_%d, and the module is for sm_%d", what, x, cc));
}
// Arithmetic on the narrow types came later than the instructions themselves.
void Decoder::needForTypes() {
  const bool bf = in.t == BF16 || in.t == BF16X2, half = in.t == F16 || in.t == F16X2;
  const bool minmax = in.op == O_MIN || in.op == O_MAX;
  if (bf) {
    bool first = in.op == O_FMA || in.op == O_NEG || in.op == O_ABS || minmax;  // the others came with Hopper
    need(first ? 80 : 90, "this instruction on bf16");
  }
  if (half && minmax) need(80, "min or max of f16");
  if (minmax && in.flags & F_NAN) need(80, ".NaN");
  if (in.flags & F_XORSIGN) need(86, ".xorsign");
  if (in.flags & F_RELU) need(80, ".relu");
  if (in.t == F32X2) need(100, ".f32x2");
  if (in.op == O_TANH || (half && in.op == O_EX2)) need(75);
}

const string& Decoder::arg(size_t i) {
  if (i >= na) bad("missing operand");
  return raw->args[i];
}
bool Decoder::has(const char* part) const { return std::find(parts.begin(), parts.end(), part) != parts.end(); }
vector<string> Decoder::without(const vector<string>& drop) const {
  vector<string> r;
  for (auto& p : parts)
    if (std::find(drop.begin(), drop.end(), p) == drop.end()) r.push_back(p);
  return r;
}
void Decoder::setWithPredicate(int i, Ty t, int predicate) {
  string d = arg(0);
  size_t bar = d.find('|');
  if (bar != string::npos) set(predicate, d.substr(bar + 1), PRED);
  set(i, d.substr(0, bar), t);
}
void Decoder::asVector(int i) {
  if (in.o[i].k == K_VEC) return;
  Opnd v;
  v.k = K_VEC;
  v.vec = k.vecs.size();
  v.imm = 1;
  k.vecs.push_back({in.o[i]});
  in.o[i] = v;
}

u8 Decoder::classOf(Ty t) { return t == F32 || t == F32X2 ? S_FP32 : t == F64 ? S_FP64 : isFloat(t) ? S_FP16 : S_INT; }
Decoder::Mods Decoder::typed(Op op) {
  Mods q = mods();
  if (q.ty.empty()) bad("missing type");
  in.op = op;
  in.t = q.ty[0];
  in.flags = q.fl;
  in.rnd = q.rnd;
  in.cls = classOf(in.t);
  return q;
}
void Decoder::simple(Op op, int n, u8 b32) {
  typed(op);
  if ((int)na != n) bad(strf("expected %d operands", n));
  for (int i = 0; i < n; i++) set(i, arg(i), b32 >> i & 1 ? B32 : in.t);
}

static u8 cmpOf(const string& s) {
  static const std::map<string, u8> c = {{"eq", C_EQ},   {"ne", C_NE},   {"lt", C_LT},   {"le", C_LE},   {"gt", C_GT},
                                         {"ge", C_GE},   {"lo", C_LT},   {"ls", C_LE},   {"hi", C_GT},   {"hs", C_GE},
                                         {"equ", C_EQU}, {"neu", C_NEU}, {"ltu", C_LTU}, {"leu", C_LEU}, {"gtu", C_GTU},
                                         {"geu", C_GEU}, {"num", C_NUM}, {"nan", C_NAN}};
  auto i = c.find(s);
  return i == c.end() ? 255 : i->second;
}
Decoder::Mods Decoder::mods(size_t from) { return mods(parts, from); }
Decoder::Mods Decoder::mods(const vector<string>& list, size_t from) {
  static const std::map<string, u32> flags = {
      {"ftz", F_FTZ},      {"sat", F_SAT},          {"satfinite", F_SATFINITE}, {"relu", F_RELU},   {"NaN", F_NAN},
      {"cc", F_CC},        {"wide", F_WIDE},        {"xorsign", F_XORSIGN},     {"trans", F_TRANS}, {"wrap", F_WRAP},
      {"mmio", F_VOL},     {"relaxed", F_VOL},      {"acquire", F_VOL},         {"release", F_VOL}, {"acq_rel", F_VOL},
      {"volatile", F_VOL}, {"shiftamt", F_SHIFTAMT}};
  static const std::map<string, std::pair<u8, u32>> roundings = {
      {"rn", {R_RN, 0}},         {"rz", {R_RZ, 0}},         {"rm", {R_RM, 0}},
      {"rp", {R_RP, 0}},         {"rna", {R_RNA, 0}},       {"rni", {R_RN, F_INTRND}},
      {"rzi", {R_RZ, F_INTRND}}, {"rmi", {R_RM, F_INTRND}}, {"rpi", {R_RP, F_INTRND}}};
  static const std::map<string, u8> spaces = {
      {"global", GLOBAL}, {"shared", SHARED}, {"shared::cta", SHARED}, {"shared::cluster", SHARED_CLUSTER},
      {"local", LOCAL},   {"param", PARAM},   {"param::entry", PARAM}, {"param::func", PARAM},
      {"const", CONSTSP}};
  // They change neither what is computed nor what is checked.
  static const std::set<string> ignored = {
      "ca",      "cg",    "cs",  "lu",      "cv",     "wb",    "wt",          "nc",         "weak",
      "sc",      "cta",   "gpu", "sys",     "full",   "noftz", "evict_first", "evict_last", "sync",
      "aligned", "level", "uni", "cluster", "approx", "clamp", "cache_hint"};
  const bool halves =
      name == "mul" || name == "mad" || name == "mul24" || name == "mad24" || name == "madc" || name == "dp2a";
  const bool compares = name == "setp" || name == "set";
  Mods r;
  for (size_t i = from; i < list.size(); i++) {
    const string& s = list[i];
    if (Ty t = parseTy(s); t != NONE)
      r.ty.push_back(t);
    else if (auto fl = flags.find(s); fl != flags.end())
      r.fl |= fl->second;
    else if (auto rnd = roundings.find(s); rnd != roundings.end()) {
      r.rnd = rnd->second.first;
      r.fl |= rnd->second.second;
    } else if (auto sp = spaces.find(s); sp != spaces.end())
      r.sp.push_back(sp->second);
    else if (s == "v2" || s == "v4" || s == "v8")
      r.vn = s[1] - '0';
    else if (halves && (s == "hi" || s == "lo"))
      r.fl |= s == "hi" ? (u32)F_HI : 0u;
    else if (name == "shf" && (s == "l" || s == "r"))
      r.fl |= s == "l" ? (u32)F_LEFT : 0u;
    else if (compares && cmpOf(s) != 255)
      r.cmp = cmpOf(s);
    else if (compares && (s == "and" || s == "or" || s == "xor"))
      r.bop = s == "and" ? B_AND : s == "or" ? B_OR : B_XOR;
    else if (s == "L2::cache_hint" || s == "L2::256B")
      need(80, "this cache modifier");
    else if (s == "abs" && name != "abs") {  // .xorsign.abs
    } else if (!ignored.count(s) && !startsWith(s, "L1::") && !startsWith(s, "L2::") && !startsWith(s, "level::"))
      bad("unknown modifier ." + s);
  }
  return r;
}
}  // namespace ptx
