// Matrices: ldmatrix, stmatrix, movmatrix, mma, wmma, wgmma.
#include "decode.h"

namespace ptx {
using std::string;
using std::vector;

static int bitsOf(Ty t) {
  return t == F64 ? 64 : t == BF16 || t == F16 ? 16 : t == TF32 || t == F32 || t == S32 ? 32 : 8;
}

void Decoder::matrix() {
  const bool st = name == "stmatrix";
  need(st ? 90 : 75);
  in.op = st ? O_STMATRIX : O_LDMATRIX;
  in.cls = st ? S_STMATRIX : S_LDMATRIX;
  in.sub = has("x1") ? 1 : has("x2") ? 2 : has("x4") ? 4 : 0;
  if (!in.sub || !has("m8n8") || !has("b16")) bad("matrix form not supported");
  if (has("trans")) in.flags |= F_TRANS;
  in.space = sharedSpace();
  set(0, arg(st), B32);
  set(1, arg(!st), B32);
  asVector(0);
  if (in.o[0].imm != in.sub) bad("register count");
  narrowest(4);
}
void Decoder::movmatrix() {
  need(75);
  in.op = O_MOVMATRIX;
  in.cls = S_SHFL;
  setAll(2, B32);
}

void Decoder::shape(size_t from, vector<Ty>& types) {
  int layouts = 0;
  for (size_t i = from; i < parts.size(); i++) {
    const string& s = parts[i];
    unsigned a, b, c;
    if (s == "sync" || s == "aligned" || s == "rn") continue;
    if (sscanf(s.c_str(), "m%un%uk%u", &a, &b, &c) == 3) {
      in.m = a;
      in.n = b;
      in.k = c;
    } else if (s == "row" || s == "col")
      (layouts++ ? in.rowB : in.rowA) = s == "row";
    else if (s == "global")
      in.space = GLOBAL;
    else if (s == "shared" || s == "shared::cta")
      in.space = SHARED;
    else if (parseTy(s) != NONE)
      types.push_back(parseTy(s));
    else if (s == "satfinite")
      in.flags |= F_SATFINITE;
    else
      bad("unknown modifier ." + s);
  }
}

// The shapes of mma.sync that are modelled, with the target each one needs.
static int mmaNeeds(const Instr& in) {
  const Ty a = in.t2, b = in.t3;
  const int k = in.k;
  auto pair = [&](Ty x, Ty y) { return (a == x || a == y) && (b == x || b == y); };
  if (a == F64 && b == F64) {
    if (in.m == 8 && in.n == 8 && k == 4) return 80;
    return in.m == 16 && in.n == 8 && (k == 4 || k == 8 || k == 16) ? 90 : 0;
  }
  if (in.m != 16 || in.n != 8) return 0;
  if (a == F16 && b == F16) return k == 8 ? 75 : k == 16 ? 80 : 0;
  if (a == BF16 && b == BF16) return k == 8 || k == 16 ? 80 : 0;
  if (a == TF32 && b == TF32) return k == 4 || k == 8 ? 80 : 0;
  if (pair(S8, U8)) return k == 16 || k == 32 ? 80 : 0;
  if (pair(E4M3, E5M2)) return k == 16 || k == 32 ? 89 : 0;
  return 0;
}
void Decoder::mma() {
  in.op = O_MMA;
  in.cls = S_MMA;
  vector<Ty> ty;
  shape(1, ty);
  if (ty.size() != 4) bad("mma types");
  in.t = ty[0];
  in.t2 = ty[1];
  in.t3 = ty[2];
  in.t4 = ty[3];
  if (!in.rowA || in.rowB) bad("mma layout must be row.col");
  const int needs = mmaNeeds(in);
  if (!needs) bad("mma shape/type not supported");
  need(needs, "this shape and type of mma");
  for (int i = 0; i < 4; i++) {
    set(i, arg(i), in.t2 == F64 ? F64 : B32);
    asVector(i);
  }
  const int reg = in.t2 == F64 ? 64 : 32, bits = bitsOf(in.t2);
  auto count = [&](int elements, int b) { return elements * b / 32 / reg; };
  if (in.o[1].imm != count(in.m * in.k, bits) || in.o[2].imm != count(in.n * in.k, bits))
    bad("mma fragment register count");
  if (in.o[0].imm != count(in.m * in.n, bitsOf(in.t)) || in.o[3].imm != count(in.m * in.n, bitsOf(in.t4)))
    bad("mma accumulator register count");
}

void Decoder::wmma() {
  static const std::map<string, Op> ops = {{"load", O_WMMALD}, {"store", O_WMMAST}, {"mma", O_WMMA}};
  auto op = ops.find(parts.at(1));
  if (op == ops.end()) bad("wmma form");
  in.op = op->second;
  in.cls = S_MMA;
  const bool mma = in.op == O_WMMA;
  if (!mma) in.sub = parts.at(2)[0];  // which matrix: a, b, c or d
  vector<Ty> ty;
  shape(mma ? 2 : 3, ty);
  for (Ty t : ty)
    if (t == BF16 || t == TF32) need(80, "this type of wmma");
  if (ty.empty()) bad("wmma types");
  in.t = ty[0];
  if (!mma) {
    const bool st = in.op == O_WMMAST;
    set(0, arg(st), B32);
    set(1, arg(!st), B64);
    if (na > 2) set(2, arg(2), U32);
    narrowest(tySize(in.t));
  } else if (ty.size() == 2) {
    in.t2 = in.t3 = F16;
    in.t4 = ty[1];
  } else if (ty.size() == 4) {
    in.t2 = ty[1];
    in.t3 = ty[2];
    in.t4 = ty[3];
  } else
    bad("wmma types");
  if (in.t == F64 || in.t2 == F64) bad("wmma f64 is not supported");
  for (int i = 0; mma && i < 4; i++) {
    set(i, arg(i), B32);
    asVector(i);
  }
}

void Decoder::wgmma() {
  if (cc && (cc != 90 || parseTarget(m.target).suffix != 'a')) bad("wgmma needs sm_90a");
  k.usesWgmma = k.usesAsyncProxy = true;
  in.cls = S_WGMMA;
  const string& what = parts.at(1);
  if (what == "fence")
    in.op = O_WGFENCE;
  else if (what == "commit_group")
    in.op = O_WGCOMMIT;
  else if (what == "wait_group") {
    in.op = O_WGWAIT;
    set(0, arg(0), U32);
  } else if (what == "mma_async")
    wgmmaAsync();
  else
    bad("wgmma operation");
}
void Decoder::wgmmaAsync() {
  in.op = O_WGMMA;
  vector<Ty> ty;
  shape(2, ty);
  if (ty.size() != 3) bad("wgmma types");
  in.t = ty[0];
  in.t2 = ty[1];
  in.t3 = ty[2];
  const int bits = bitsOf(in.t2);
  if (in.m != 64 || in.n % 8 || in.n > 256 || in.k * bits != 256) bad("wgmma shape");
  if (in.t != F32 && in.t != F16 && in.t != S32) bad("wgmma accumulator type");
  set(0, arg(0), B32);
  set(1, arg(1), arg(1)[0] == '{' ? B32 : B64);
  set(2, arg(2), B64);
  set(3, arg(3), PRED);          // scale-d
  in.rowA = in.o[1].k != K_VEC;  // A from shared memory
  if (in.o[0].k != K_VEC || in.o[0].imm != (in.t == F16 ? in.n / 4 : in.n / 2)) bad("wgmma accumulator register count");
  int imm[4] = {1, 1, 0, 0}, given = 0;  // signs of A and B, then transpositions
  for (size_t q = 4; q < na; q++) {
    Num n = parseNum(arg(q));
    if (!n.ok) bad("wgmma immediate expected");
    if (given < 4) imm[given++] = (int)(s64)n.i;
  }
  if (in.t != S32 && given < 2) bad("wgmma immediates");
  in.rnd = (imm[0] == -1) | (imm[1] == -1) << 1;
  in.cmp = in.rowA ? imm[2] : 0;
  in.bop = in.rowA ? imm[3] : imm[2];
  if (bits != 16 && (in.cmp || in.bop)) bad("wgmma transpose needs 16-bit types");
}
}  // namespace ptx
