// From an entry to a kernel that can run: which functions it reaches, where its shared memory and parameters lie, and
// the decoded code of all of them.
#include <algorithm>
#include <functional>
#include <set>

#include "decode.h"

namespace ptx {
using std::string;
using std::vector;

void Decoder::placeShared(const Var& v, const string& key) {
  shTop = (shTop + v.align - 1) / v.align * v.align;
  shAddr[key] = shTop;
  shTop += v.size;
}
void Decoder::placeParameters(Func* fn) {
  auto block = [&](const string& key, const vector<Var>& vars) {
    const u32 base = fpBase[key] = fpTop = (fpTop + 15) / 16 * 16;
    for (auto& v : vars) fpTop = std::max<u32>(fpTop, base + v.addr + v.size);
  };
  block(fn->name, fn->params);
  block(fn->name + "#ret", fn->rets);
}

// The functions that an entry reaches, itself first; recursion is refused, since each has one place for its parameters.
static vector<Func*> reachable(Module& m, Func* entry) {
  vector<Func*> order = {entry};
  std::set<string> seen = {entry->name};
  std::map<string, std::set<string>> callees;
  for (size_t i = 0; i < order.size(); i++)
    for (auto& r : order[i]->code)
      if (startsWith(r.op, "call"))
        for (auto& a : r.args)
          if (auto fn = m.funcs.find(a); fn != m.funcs.end() && !fn->second->proto) {
            callees[order[i]->name].insert(a);
            if (seen.insert(a).second) order.push_back(fn->second.get());
          }
  std::set<string> path;
  std::function<void(const string&)> visit = [&](const string& n) {
    if (!path.insert(n).second) throw Error("recursive device function " + n + " is not supported");
    for (auto& c : callees[n]) visit(c);
    path.erase(n);
  };
  visit(entry->name);
  return order;
}
// Every identifier in the operands: which module variables are used.
static std::set<string> mentioned(const vector<Func*>& functions) {
  std::set<string> names;
  for (auto* fn : functions)
    for (auto& r : fn->code)
      for (auto& a : r.args)
        for (size_t q = 0; q < a.size();) {
          while (q < a.size() && !identChar(a[q])) q++;
          size_t b = q;
          while (q < a.size() && identChar(a[q])) q++;
          if (q > b && !isdigit((u8)a[b]) && a[b] != '%') names.insert(a.substr(b, q - b));
        }
  return names;
}

Kernel* Module::link(const string& name) {
  auto known = kernels.find(name);
  if (known != kernels.end()) return known->second.get();
  auto it = funcs.find(name);
  if (it == funcs.end() || !it->second->entry) throw Error("no kernel named " + name);
  auto k = std::make_unique<Kernel>();
  k->entry = it->second.get();
  Decoder d(*this, *k);
  const vector<Func*> functions = reachable(*this, k->entry);
  for (auto* fn : functions)
    for (auto& scope : fn->scopes) scope.alloc.clear();
  for (auto& v : k->entry->params) k->paramBytes = std::max<u32>(k->paramBytes, v.addr + v.size);

  // Shared memory: module variables that are used, variables of functions, then the dynamic part.
  const std::set<string> used = mentioned(functions);
  auto dynamic = [](const Var& v) { return v.sp == SHARED && (!v.size || v.ext); };
  u64 align = 16;
  for (auto& [key, v] : vars) {
    if (!used.count(key)) continue;
    if (dynamic(v))
      align = std::max(align, v.align);
    else if (v.sp == SHARED)
      d.placeShared(v, key);
  }
  for (auto* fn : functions)
    for (size_t q = 0; q < fn->scopes.size(); q++)
      for (auto& [key, v] : fn->scopes[q].vars)
        if (v.sp == SHARED) d.placeShared(v, fn->name + "/" + key + "#" + std::to_string(q));
  k->smemStatic = d.shTop - SMEM_BASE;
  k->dynOff = (d.shTop + align - 1) / align * align;
  for (auto& [key, v] : vars)
    if (dynamic(v)) d.shAddr[key] = k->dynOff;

  for (auto* fn : functions)
    if (!fn->entry) d.placeParameters(fn);
  for (auto* fn : functions) d.function(fn);
  d.resolveLabels();
  k->localBytes = (d.localTop + 63) / 64 * 64;
  k->fparamBytes = (d.fpTop + 63) / 64 * 64;
  k->cpool.resize(k->cpool.size() + 64);
  if (k->granule != 1 && k->granule != 2) k->granule = 4;
  return (kernels[name] = std::move(k)).get();
}
}  // namespace ptx
