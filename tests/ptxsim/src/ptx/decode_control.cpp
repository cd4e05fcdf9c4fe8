// Branches, calls, operations between the lanes of a warp, barriers.
#include <algorithm>

#include "decode.h"

namespace ptx {
using std::string;
using std::vector;

void Decoder::control() {
  static const std::map<string, Op> ops = {
      {"nanosleep", O_NANOSLEEP}, {"trap", O_TRAP}, {"brkpt", O_TRAP}, {"exit", O_EXIT}, {"ret", O_RET}};
  in.op = ops.at(name);
  in.cls = name == "nanosleep" || name == "brkpt" ? S_OTHER : S_CTRL;
  in.sub = name == "brkpt";
  if (in.op == O_RET && f->entry) in.op = O_EXIT;
}
void Decoder::branch() {
  in.op = O_BRA;
  in.cls = S_CTRL;
  labels.push_back({arg(0), sc, f, start, (s32)k.code.size()});
}
void Decoder::branchTable() {
  in.op = O_BRX;
  in.cls = S_CTRL;
  set(0, arg(0), U32);
  const vector<string>* list = nullptr;
  for (int q = sc; q >= 0 && !list; q = f->scopes[q].parent) {
    auto i = f->scopes[q].targets.find(arg(1));
    if (i != f->scopes[q].targets.end()) list = &i->second;
  }
  if (!list || list->empty()) bad("unknown branch target list " + arg(1));
  in.msg = k.targets.size();
  k.targets.push_back(vector<s32>(list->size(), -1));
  for (size_t i = 0; i < list->size(); i++)
    labels.push_back({(*list)[i], sc, f, start, (s32)k.code.size(), in.msg, (s32)i});
}
void Decoder::resolveLabels() {
  for (auto& x : labels) {
    s32 at = -1;
    for (int q = x.scope; q >= 0 && at < 0; q = x.f->scopes[q].parent) {
      auto i = x.f->scopes[q].labels.find(x.name);
      if (i != x.f->scopes[q].labels.end()) at = x.start + i->second;
    }
    if (at < 0) throw Error("undefined label " + x.name);
    if (x.list < 0)
      k.code[x.pc].target = at;
    else
      k.targets[x.list][x.index] = at;
  }
  for (auto& c : k.calls)
    if (auto it = funcStart.find(c.name); it != funcStart.end()) c.target = it->second;
}
void Decoder::call() {  // call (results), function, (arguments): all of them variables in .param space
  in.op = O_CALL;
  in.cls = S_CTRL;
  size_t i = 0;
  auto list = [&](const string& s) { return splitTop(s.substr(1, s.rfind(')') - 1)); };
  vector<string> rets, args;
  if (arg(0)[0] == '(') rets = list(arg(i++));
  const string fn = arg(i++);
  if (i < na && arg(i)[0] == '(') args = list(arg(i++));
  auto slot = [&](const string& nm) -> std::pair<u32, u32> {  // offset and size
    for (int q = sc; q >= 0; q = f->scopes[q].parent) {
      auto v = f->scopes[q].vars.find(nm);
      if (v == f->scopes[q].vars.end()) continue;
      u64 a;
      Space sp;
      symAddr(nm, a, sp);
      return {a - FPARAM_BASE, v->second.size};
    }
    bad("unknown call parameter " + nm);
  };
  CallRec rec;
  rec.name = fn;
  rec.target = -1;
  if (fn == "malloc" || fn == "free") bad("device " + fn + " is not supported");
  if (fn == "vprintf" || fn == "__assertfail") {  // what the CUDA runtime provides
    auto same = [&](const string& x) -> ParamCopy {
      auto [a, size] = slot(x);
      return {a, a, size};
    };
    for (auto& x : args) rec.in.push_back(same(x));
    for (auto& x : rets) rec.out.push_back(same(x));
    in.op = O_VPRINTF;
    in.sub = fn == "__assertfail";
  } else {
    auto it = m.funcs.find(fn);
    if (it == m.funcs.end() || it->second->proto) bad("call of undefined or indirect function " + fn);
    const Func& callee = *it->second;
    if (args.size() != callee.params.size() || rets.size() != callee.rets.size())
      bad("call argument count mismatch for " + fn);
    for (size_t j = 0; j < args.size(); j++) {
      auto [a, size] = slot(args[j]);
      const Var& v = callee.params[j];
      rec.in.push_back({a, fpBase[fn] + (u32)v.addr, std::min<u32>(size, v.size)});
    }
    for (size_t j = 0; j < rets.size(); j++) {
      auto [a, size] = slot(rets[j]);
      const Var& v = callee.rets[j];
      rec.out.push_back({fpBase[fn + "#ret"] + (u32)v.addr, a, std::min<u32>(size, v.size)});
    }
  }
  in.msg = k.calls.size();
  k.calls.push_back(rec);
}
void Decoder::dynamicStack() { bad("dynamic stack is not supported"); }

// ---- between the lanes of a warp
void Decoder::shfl() {
  static const std::map<string, u8> modes = {
      {"up", SHFL_UP}, {"down", SHFL_DOWN}, {"bfly", SHFL_BFLY}, {"idx", SHFL_IDX}};
  if (parts.size() != 4 || parts[1] != "sync") bad("only shfl.sync is supported");
  auto mode = modes.find(parts[2]);
  if (mode == modes.end()) bad("shfl mode");
  in.op = O_SHFL;
  in.cls = S_SHFL;
  in.t = B32;
  in.sub = mode->second;
  setWithPredicate(0, B32, 5);
  for (int i = 1; i < 5; i++) set(i, arg(i), B32);
}
void Decoder::vote() {
  static const std::map<string, u8> modes = {
      {"all", VOTE_ALL}, {"any", VOTE_ANY}, {"uni", VOTE_UNI}, {"ballot", VOTE_BALLOT}};
  if (parts.size() < 3 || parts[1] != "sync" || !modes.count(parts[2])) bad("only vote.sync is supported");
  in.op = O_VOTE;
  in.cls = S_VOTE;
  in.sub = modes.at(parts[2]);
  set(0, arg(0), in.sub == VOTE_BALLOT ? B32 : PRED);
  set(1, arg(1), PRED);
  set(2, arg(2), B32);
}
void Decoder::match() {
  in.op = O_MATCH;
  in.cls = S_VOTE;
  in.sub = has("all");
  in.t = parseTy(parts.back());
  setWithPredicate(0, B32, 3);
  set(1, arg(1), in.t);
  set(2, arg(2), B32);
}
void Decoder::redux() {
  static const std::map<string, u8> ops = {{"add", A_ADD}, {"min", A_MIN}, {"max", A_MAX},
                                           {"and", A_AND}, {"or", A_OR},   {"xor", A_XOR}};
  in.t = parseTy(parts.back());
  if (parts.size() < 4 || !ops.count(parts[2]) || in.t == F32) bad("redux form");
  need(80, "redux.sync");
  in.op = O_REDUX;
  in.cls = S_VOTE;
  in.sub = ops.at(parts[2]);
  set(0, arg(0), in.t);
  set(1, arg(1), in.t);
  set(2, arg(2), B32);
}
void Decoder::activemask() {
  in.op = O_ACTIVEMASK;
  in.cls = S_VOTE;
  set(0, arg(0), B32);
}
void Decoder::elect() {
  need(90);
  if (arg(0).find('|') == string::npos) bad("elect.sync form");
  in.op = O_ELECT;
  in.cls = S_VOTE;
  setWithPredicate(0, B32, 1);
  set(2, arg(1), B32);
}

// ---- barriers
void Decoder::barrier() {
  in.cls = S_BAR;
  size_t q = parts.size() > 1 && parts[1] == "cta" ? 2 : 1;
  if (q >= parts.size()) bad("barrier form");
  const string what = parts[q], next = q + 1 < parts.size() ? parts[q + 1] : "";
  if (what == "cluster") {
    if (next != "arrive" && next != "wait") bad("barrier.cluster form");
    need(90);
    in.op = O_CLBAR;
    in.sub = next == "wait";
    return;
  }
  if (what == "warp") {
    in.op = O_BARWARP;
    set(0, arg(0), B32);
    return;
  }
  static const std::map<string, u8> modes = {{"sync", BAR_SYNC}, {"arrive", BAR_ARRIVE}, {"red", BAR_RED}};
  auto mode = modes.find(what);
  if (mode == modes.end()) bad("barrier form");
  in.op = O_BAR;
  in.sub = mode->second;
  if (name == "barrier" && !has("aligned")) in.flags |= F_NOALIGN;
  const bool red = in.sub == BAR_RED;
  if (red) {
    in.bop = has("popc") ? B_POPC : has("and") ? B_AND : B_OR;
    set(0, arg(0), in.bop == B_POPC ? B32 : PRED);
    set(3, arg(na - 1), PRED);
  }
  set(1, arg(red), U32);
  if (na > (red ? 3u : 1u)) set(2, arg(1 + red), U32);
}
}  // namespace ptx
