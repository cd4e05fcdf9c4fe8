// Arithmetic, bit operations, comparisons, moves and conversions.
#include <algorithm>

#include "decode.h"

namespace ptx {
using std::string;
using std::vector;

void Decoder::basic() {
  struct Form {
    Op op;
    int operands;
  };
  static const std::map<string, Form> forms = {
      {"add", {O_ADD, 3}},     {"sub", {O_SUB, 3}},   {"div", {O_DIV, 3}},   {"rem", {O_REM, 3}},
      {"min", {O_MIN, 3}},     {"max", {O_MAX, 3}},   {"neg", {O_NEG, 2}},   {"abs", {O_ABS, 2}},
      {"fma", {O_FMA, 4}},     {"rcp", {O_RCP, 2}},   {"sqrt", {O_SQRT, 2}}, {"ex2", {O_EX2, 2}},
      {"rsqrt", {O_RSQRT, 2}}, {"lg2", {O_LG2, 2}},   {"sin", {O_SIN, 2}},   {"cos", {O_COS, 2}},
      {"tanh", {O_TANH, 2}},   {"and", {O_AND, 3}},   {"or", {O_OR, 3}},     {"xor", {O_XOR, 3}},
      {"not", {O_NOT, 2}},     {"cnot", {O_CNOT, 2}}, {"brev", {O_BREV, 2}}, {"copysign", {O_COPYSIGN, 3}},
      {"sad", {O_SAD, 4}},     {"popc", {O_POPC, 2}}, {"clz", {O_CLZ, 2}},   {"bfind", {O_BFIND, 2}}};
  const Form& form = forms.at(name);
  const bool three = na == 4 && (form.op == O_MIN || form.op == O_MAX);  // of three values
  simple(form.op, three ? 4 : form.operands);
  if (three) {
    need(100, "min or max of three values");
    in.vn = 3;
  }
  const bool special = in.op >= O_RCP && in.op <= O_TANH;
  if (special || (in.op == O_DIV && isFloat(in.t))) in.cls = in.t == F64 ? S_FP64 : S_SFU;
  if (isFloat(in.t)) needForTypes();
}
void Decoder::carry() {
  simple(name == "addc" ? O_ADD : O_SUB, 3);
  in.flags |= F_CARRY;
}
static Ty wider(Ty t) { return t == U16 ? U32 : t == S16 ? S32 : t == U32 ? U64 : S64; }
void Decoder::mul() {
  typed(O_MUL);
  if (name == "mul24") in.sub = 24;
  if (na != 3) bad("expected 3 operands");
  set(0, arg(0), in.flags & F_WIDE ? wider(in.t) : in.t);
  set(1, arg(1), in.t);
  set(2, arg(2), in.t);
  if (isFloat(in.t)) needForTypes();
}
void Decoder::mad() {
  typed(O_MAD);
  if (isFloat(in.t)) in.op = O_FMA;
  if (name == "madc") in.flags |= F_CARRY;
  if (name == "mad24") in.sub = 24;
  if (na != 4) bad("expected 4 operands");
  const Ty sum = in.flags & F_WIDE ? wider(in.t) : in.t;
  set(0, arg(0), sum);
  set(1, arg(1), in.t);
  set(2, arg(2), in.t);
  set(3, arg(3), sum);
  if (isFloat(in.t)) needForTypes();
}
void Decoder::shift() {
  if (name == "shf")
    simple(O_SHF, 4);
  else if (name == "bfe")
    simple(O_BFE, 4, 1 << 2 | 1 << 3);
  else if (name == "bfi")
    simple(O_BFI, 5, 1 << 3 | 1 << 4);
  else
    simple(name == "shl" ? O_SHL : O_SHR, 3, 1 << 2);
}
void Decoder::prmt() {
  static const std::map<string, u8> modes = {{"", 0},    {"f4e", 1}, {"b4e", 2}, {"rc8", 3},
                                             {"ecl", 4}, {"ecr", 5}, {"rc16", 6}};
  auto mode = modes.find(parts.size() == 3 ? parts[2] : "");
  if (mode == modes.end()) bad("unknown prmt mode");
  in.op = O_PRMT;
  in.t = B32;
  in.sub = mode->second;
  setAll(4, B32);
}
void Decoder::bits() {  // fns, bmsk, szext
  Mods q = mods();
  in.op = name == "fns" ? O_FNS : name == "bmsk" ? O_BMSK : O_SZEXT;
  in.flags = q.fl;
  in.t = in.op == O_SZEXT ? q.ty.at(0) : B32;
  setAll(in.op == O_FNS ? 4 : 3, B32);
}
void Decoder::lop3() {
  if (parts.size() != 2) bad("lop3 with BoolOp is not supported");
  in.op = O_LOP3;
  in.t = B32;
  setAll(5, B32);
  if (in.o[4].k != K_CONST) bad("lop3 table must be a literal");
}
void Decoder::testp() {
  static const vector<string> tests = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};
  auto it = std::find(tests.begin(), tests.end(), parts.at(1));
  if (it == tests.end()) bad("testp");
  in.op = O_TESTP;
  in.sub = it - tests.begin();
  in.t = parseTy(parts.at(2));
  in.cls = classOf(in.t);
  set(0, arg(0), PRED);
  set(1, arg(1), in.t);
}
void Decoder::selp() {
  typed(O_SELP);
  if (na != 4) bad("expected 4 operands");
  setAll(3, in.t);
  set(3, arg(3), PRED);
  in.cls = S_MOVE;
}
void Decoder::slct() {
  in.t2 = typed(O_SLCT).ty.at(1);
  in.cls = S_INT;
  setAll(3, in.t);
  set(3, arg(3), in.t2);
}
void Decoder::setp() {
  Mods q = typed(O_SETP);
  in.cmp = q.cmp;
  in.bop = q.bop;
  if (q.cmp == 255) bad("setp without comparison");
  if (na != (q.bop ? 4u : 3u)) bad("setp operand count");
  setWithPredicate(0, PRED, 4);
  set(1, arg(1), in.t);
  set(2, arg(2), in.t);
  if (q.bop) set(3, arg(3), PRED);
  if (isFloat(in.t)) needForTypes();
}
void Decoder::setInstr() {
  Mods q = typed(O_SET);
  in.t2 = q.ty.at(0);
  in.t = q.ty.at(1);
  in.cmp = q.cmp;
  in.bop = q.bop;
  in.cls = classOf(in.t);
  set(0, arg(0), in.t2);
  set(1, arg(1), in.t);
  set(2, arg(2), in.t);
  if (q.bop) set(3, arg(3), PRED);
  if (isFloat(in.t)) needForTypes();
}
void Decoder::mov() {
  in.t = parseTy(parts.size() == 2 ? parts[1] : "");
  if (in.t == NONE) bad("mov type");
  if (na != 2) bad("mov operands");
  in.op = O_MOV;
  in.cls = S_MOVE;
  const string src = trim(arg(1));
  if (m.funcs.count(src)) bad("taking the address of a function is not supported");
  set(0, arg(0), in.t);
  if (startsWith(src, "%clock") || startsWith(src, "%globaltimer")) {
    in.op = O_CLOCK;
    in.sub = src == "%clock_hi" || src == "%globaltimer_hi";
  } else
    set(1, arg(1), in.t);
}
void Decoder::cvt() {
  if (has("scaled::n2::ue8m0") || has("rs") || has("pack")) bad("unsupported cvt form");
  Mods q = mods();
  if (q.ty.size() < 2) bad("cvt needs two types");
  in.op = O_CVT;
  in.cls = S_CVT;
  in.flags = q.fl;
  in.rnd = q.rnd;
  in.t = q.ty[0];
  in.t2 = q.ty[1];
  set(0, arg(0), in.t);
  for (size_t i = 1; i < na; i++) set(i, arg(i), i == 3 ? B32 : in.t2);
  auto narrow = [](Ty t) { return t == BF16 || t == BF16X2; };
  const bool fp8 = in.t == E4M3X2 || in.t == E5M2X2 || in.t2 == E4M3X2 || in.t2 == E5M2X2;
  if (fp8) need(89, "a conversion of fp8");
  if (in.t == TF32) need(in.rnd == R_RNA ? 80 : 90, "this conversion to tf32");
  if (in.t == F16X2 && in.t2 == F32) need(80, "a conversion to f16x2");
  if (narrow(in.t)) need(in.t2 == F32 ? 80 : 90, "a conversion to bf16");
  if (narrow(in.t2)) need(in.t == F32 ? 80 : 90, "a conversion from bf16");
  if (in.flags & F_RELU) need(80, ".relu");
}
void Decoder::cvta() {
  Mods q = mods(without({"to"}), 1);
  in.op = O_CVTA;
  in.sub = has("to");
  in.space = q.space();
  in.t = q.ty.at(0);
  in.cls = S_INT;
  setAll(2, in.t);
}
void Decoder::isspacep() {
  in.op = O_ISSPACEP;
  in.space = mods().space();
  set(0, arg(0), PRED);
  set(1, arg(1), U64);
}
void Decoder::dotProduct() {
  in.t2 = typed(name == "dp4a" ? O_DP4A : O_DP2A).ty.at(1);
  setAll(4, B32);
}
}  // namespace ptx
