// Loads and stores, atomics, asynchronous copies, bulk copies and mbarriers.
#include <set>

#include "decode.h"

namespace ptx {
using std::string;
using std::vector;

static bool isShared(u8 space) { return space == SHARED || space == SHARED_CLUSTER; }

void Decoder::load() {  // and the common part of store
  const bool st = name == "st";
  Mods q = typed(st ? O_ST : O_LD);
  in.vn = q.vn;
  in.space = q.space();
  set(0, arg(st ? 1 : 0), in.t);
  set(1, arg(st ? 0 : 1), in.t);
  in.cls = isShared(in.space)                         ? (st ? S_STS : S_LDS)
           : in.space == LOCAL                        ? (st ? S_STL : S_LDL)
           : in.space == PARAM || in.space == CONSTSP ? S_LDPARAM
                                                      : (st ? S_STG : S_LDG);
  Opnd& at = in.o[1];
  if (at.k != K_ADDR) bad("address operand expected");
  if ((in.o[0].k == K_VEC ? in.o[0].imm : 1) != in.vn) bad("vector width mismatch");
  if (in.vn == 8 || in.t == B128) need(in.vn == 8 ? 100 : 70, "this vector width");
  if (in.space == GENERIC || isShared(in.space)) narrowest(tySize(in.t));
  // A variable in an instruction without state space: its generic address.
  if (in.space == GENERIC && at.symSpace == SHARED) at.imm += SHARED_WIN;
  if (in.space == GENERIC && at.symSpace == LOCAL) at.imm += LOCAL_WIN;
}
void Decoder::store() { load(); }

static const std::map<string, u8> atomOps = {{"add", A_ADD},   {"min", A_MIN}, {"max", A_MAX}, {"cas", A_CAS},
                                             {"exch", A_EXCH}, {"and", A_AND}, {"or", A_OR},   {"xor", A_XOR},
                                             {"inc", A_INC},   {"dec", A_DEC}};
void Decoder::atomic() {
  const bool red = name == "red";
  if (parts.size() > 1 && parts[1] == "async") bad("red.async is not supported");
  vector<string> rest;
  for (auto& x : parts)
    if (auto i = atomOps.find(x); i != atomOps.end())
      in.sub = i->second;
    else
      rest.push_back(x);
  if (!in.sub) bad("atomic operation missing");
  Mods q = mods(rest, 1);
  in.op = O_ATOM;
  in.t = q.ty.at(0);
  in.vn = q.vn;
  in.space = q.space();
  if (red) in.flags = F_RED;
  const int first = red ? 0 : 1;
  if (red)
    in.o[0].k = K_SINK;
  else
    set(0, arg(0), in.t);
  set(1, arg(first), in.t);
  set(2, arg(first + 1), in.t);
  if (in.sub == A_CAS) set(3, arg(first + 2), in.t);
  in.cls = isShared(in.space) ? S_ATOMS : S_ATOMG;
  if (in.space != GLOBAL) narrowest(tySize(in.t));
  if (in.t == BF16 || in.t == BF16X2 || in.t == B128 || in.vn > 1) need(90, "this type of atomic");
}
void Decoder::hint() {
  if (name == "discard" || name == "applypriority") need(80);
  in.op = O_NOP;
  in.cls = S_OTHER;
}
void Decoder::nothing() {  // setmaxnreg, griddepcontrol, pmevent
  if (name != "pmevent") need(90);
  in.op = O_NOP;
  in.cls = S_OTHER;
}
void Decoder::createPolicy() {
  need(80);
  in.op = O_MOV;
  in.t = B64;
  in.cls = S_OTHER;
  set(0, arg(0), B64);
  in.o[1] = constant(0, 8);
}
void Decoder::fence() {
  in.op = O_NOP;  // memory is sequentially consistent here; only the order between proxies is checked
  in.cls = S_FENCE;
  if (name == "fence" && parts.size() > 2 && parts[1] == "proxy" && startsWith(parts[2], "async")) {
    need(90);
    in.op = O_FENCEPROXY;
    k.usesAsyncProxy = true;
  }
}
void Decoder::mapa() {
  need(90);
  Mods q = typed(O_MAPA);
  in.space = q.sp.empty() ? GENERIC : SHARED;
  set(0, arg(0), in.t);
  set(1, arg(1), in.t);
  set(2, arg(2), U32);
}
void Decoder::ctaRank() {
  need(90);
  Mods q = typed(O_CTARANK);
  in.space = q.sp.empty() ? GENERIC : SHARED;
  set(0, arg(0), U32);
  set(1, arg(1), in.t);
}

// ---- cp.async, cp.async.bulk, cp.reduce.async.bulk
void Decoder::copyAsync() {
  auto part = [&](size_t i) { return i < parts.size() ? parts[i] : string(); };
  const bool reduce = part(1) == "reduce";
  if (part(reduce ? 2 : 1) != "async") bad("unknown instruction");
  if (part(reduce ? 3 : 2) == "bulk") return bulk();
  if (reduce) bad("unknown instruction");
  need(80, "cp.async");
  in.cls = S_CPASYNC;
  const string what = part(2);
  if (what == "commit_group")
    in.op = O_CPCOMMIT;
  else if (what == "wait_group" || what == "wait_all") {
    in.op = O_CPWAIT;
    in.sub = what == "wait_all";
    if (!in.sub) set(0, arg(0), U32);
  } else if (what == "mbarrier") {
    in.op = O_CPMBAR;
    if (has("noinc")) in.flags |= F_NOINC;
    set(0, arg(0), B64);
    in.space = sharedSpace();
  } else
    cpAsync();
}
void Decoder::cpAsync() {
  static const std::set<string> known = {"ca", "cg", "shared", "shared::cta", "global"};
  for (size_t i = 2; i < parts.size(); i++)
    if (!known.count(parts[i]) && !startsWith(parts[i], "L2::")) bad("unknown modifier ." + parts[i]);
  in.op = O_CPASYNC;
  set(0, arg(0), B32);
  set(1, arg(1), B64);
  set(2, arg(2), U32);
  const bool hint = has("L2::cache_hint");
  if (na > (hint ? 4 : 3)) {  // bytes to read, or a predicate that says to read none
    const string& a = arg(3);
    RegInfo* r = findReg(trim(a[0] == '!' ? a.substr(1) : a));
    const bool ignore = !hint && r && r->sz == 1;
    set(ignore ? 4 : 3, a, ignore ? PRED : U32);
  }
  const s64 size = in.o[2].imm;
  if (has("cg") && size != 16) bad("cp.async.cg needs size 16");
  if (size != 4 && size != 8 && size != 16) bad("cp.async size");
}
void Decoder::bulk() {
  need(90, "cp.async.bulk");
  k.usesAsyncProxy = true;
  in.cls = S_TMA;
  const bool reduce = parts[1] == "reduce";
  const size_t from = reduce ? 4 : 3;
  const string what = !reduce && parts.size() > from ? parts[from] : "";
  if (what == "commit_group")
    in.op = O_BULKCOMMIT;
  else if (what == "wait_group") {
    in.op = O_BULKWAIT;
    set(0, arg(0), U32);
    if (has("read")) in.flags |= F_READ;
  } else if (has("prefetch"))
    in.op = O_NOP;
  else
    bulkCopy(from);
}
void Decoder::bulkCopy(size_t from) {
  static const std::set<string> ignored = {"tile", "bulk_group", "mbarrier::complete_tx::bytes", "cta_group::1",
                                           "noftz"};
  const bool reduce = parts[1] == "reduce";
  in.op = O_BULK;
  if (reduce) in.flags |= F_RED;
  bool tensor = false, hint = false;
  vector<string> spaces;
  for (size_t i = from; i < parts.size(); i++) {
    const string& s = parts[i];
    if (s == "tensor")
      tensor = true;
    else if (s.size() == 2 && s[1] == 'd' && isdigit((u8)s[0]))
      in.n = s[0] - '0';
    else if (startsWith(s, "shared") || s == "global")
      spaces.push_back(s);
    else if (s == "multicast::cluster")
      in.flags |= F_MULTICAST;
    else if (s == "L2::cache_hint")
      hint = true;
    else if (auto op = atomOps.find(s); reduce && op != atomOps.end())
      in.bop = op->second;
    else if (reduce && parseTy(s) != NONE)
      in.t = parseTy(s);
    else if (!ignored.count(s))
      bad("unknown modifier ." + s);
  }
  if (spaces.size() != 2) bad("bulk copy spaces");
  const bool load = spaces[1] == "global";
  if (!load && spaces[0] != "global") bad("shared to shared::cluster bulk copy is not supported");
  in.sub = load ? BULK_LOAD : BULK_STORE;
  in.m = tensor;
  size_t q = 2;
  set(load ? 0 : 1, arg(0), load ? B32 : B64);
  set(load ? 1 : 0, arg(1), load ? B64 : B32);
  if (!tensor) set(2, arg(q++), U32);
  if (load) set(3, arg(q++), B32);
  if (load && in.flags & F_MULTICAST) set(4, arg(q++), B16);
  if (q + hint != na) bad("bulk operand count");
}

void Decoder::mbarrier() {
  static const std::set<string> known = {"shared",     "shared::cta", "shared::cluster", "b64",     "expect_tx",
                                         "noComplete", "parity",      "release",         "acquire", "relaxed",
                                         "cta",        "cluster",     "phase_type",      "sem"};
  need(80, "mbarrier");
  in.op = O_MBAR;
  in.cls = S_MBAR;
  in.space = has("shared::cluster") ? (u8)SHARED_CLUSTER : sharedSpace();
  k.usesAsyncProxy = true;
  narrowest(4);
  for (size_t i = 2; i < parts.size(); i++)
    if (!known.count(parts[i])) bad("unknown modifier ." + parts[i]);
  const string& what = parts.at(1);
  if (what == "init" || what == "expect_tx" || what == "complete_tx") {
    in.sub = what == "init" ? MB_INIT : what == "expect_tx" ? MB_EXPECT_TX : MB_COMPLETE_TX;
    if (in.sub != MB_INIT) need(90, "mbarrier with a transaction count");
    set(1, arg(0), B64);
    set(2, arg(1), U32);
  } else if (what == "inval") {
    in.sub = MB_INVAL;
    set(1, arg(0), B64);
  } else if (what == "arrive" || what == "arrive_drop") {
    in.sub = what == "arrive" ? MB_ARRIVE : MB_ARRIVE_DROP;
    if (has("noComplete")) bad("mbarrier.arrive.noComplete is not supported");
    const bool state = na && arg(0)[0] != '[';  // returned
    if (state)
      set(0, arg(0), B64);
    else
      in.o[0].k = K_SINK;
    set(1, arg(state), B64);
    if (na > 1u + state) set(2, arg(1 + state), U32);
    if (has("expect_tx")) {
      need(90, "mbarrier with a transaction count");
      in.vn = 2;
    }
  } else if (what == "test_wait" || what == "try_wait") {
    if (what == "try_wait") need(90, "mbarrier.try_wait");
    in.sub = what == "test_wait" ? MB_TEST_WAIT : MB_TRY_WAIT;
    in.vn = has("parity") ? 2 : 1;
    set(0, arg(0), PRED);
    set(1, arg(1), B64);
    set(2, arg(2), has("parity") ? B32 : B64);
  } else
    bad("mbarrier operation");
}
}  // namespace ptx
