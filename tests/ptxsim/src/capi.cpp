// The C interface of libptxsim.so, which ptxsim/ calls through ctypes. Functions that can fail return null or 0 and
// leave a message for ps_error. Strings live until the next call on the same thread.
#include "exec/launch.h"

using namespace ptx;

static thread_local std::string lastError, result;
static Memory memory;

template <class F>
static auto guarded(F f) -> decltype(f()) {
  try {
    return f();
  } catch (std::exception& e) {
    lastError = e.what();
    return {};
  }
}
static std::string triple(const u32* v) { return strf("[%u,%u,%u]", v[0], v[1], v[2]); }
template <class List, class F>
static std::string jsonList(const List& list, F item) {  // item returns "" for what is left out
  std::string s;
  for (auto& x : list)
    if (std::string t = item(x); !t.empty()) s += (s.empty() ? "" : ",") + t;
  return "[" + s + "]";
}
static unsigned long long ull(u64 x) { return x; }

#pragma GCC visibility push(default)
extern "C" {
const char* ps_error() { return lastError.c_str(); }
void* ps_parse(const char* text) {
  return guarded([&] { return parseModule(text, &memory); });
}
void ps_free_module(Module* m) { delete m; }
u64 ps_add(void* host, u64 size, const char* name, int readonly, int track) {
  return guarded([&] { return memory.add(host, size, false, name, readonly, track); });
}
void ps_del(u64 va) { memory.free(va); }
u64 ps_unwritten(u64 va) {
  const Alloc* a = memory.find(va);
  u64 n = 0;
  if (a && a->track)
    for (u8 b : a->written) n += !b;
  return n;
}
const char* ps_info(Module* m) {
  const std::string kernels = jsonList(m->order, [&](const std::string& name) -> std::string {
    const Func& f = *m->funcs[name];
    if (!f.entry) return "";
    const std::string params = jsonList(f.params, [](const Var& v) {
      return strf("{\"offset\":%llu,\"size\":%llu,\"float\":%s,\"bits\":%s}", ull(v.addr), ull(v.size),
                  v.t == F32 || v.t == F64 ? "true" : "false", v.t == B32 || v.t == B64 ? "true" : "false");
    });
    return "{\"name\":" + jsonStr(name) + ",\"params\":" + params + ",\"reqntid\":" + triple(f.reqntid) +
           ",\"maxntid\":" + triple(f.maxntid) + ",\"cluster\":" + triple(f.cluster) + "}";
  });
  const std::string vars = jsonList(m->vars, [](auto& entry) -> std::string {
    const Var& v = entry.second;
    if (v.sp != GLOBAL && v.sp != CONSTSP) return "";
    return strf("{\"name\":%s,\"addr\":%llu,\"size\":%llu}", jsonStr(v.name).c_str(), ull(v.addr), ull(v.size));
  });
  result = "{\"target\":" + jsonStr(m->target) + ",\"kernels\":" + kernels + ",\"vars\":" + vars + "}";
  return result.c_str();
}
const char* ps_kernel_info(Module* m, const char* name) {
  return guarded([&]() -> const char* {
    const Kernel& k = *m->link(name);
    result =
        strf("{\"instructions\":%zu,\"static_smem\":%u,\"registers\":%u,\"granule\":%u,\"unsupported\":", k.code.size(),
             k.smemStatic, k.numRegs, k.granule) +
        jsonList(k.unsupported, jsonStr) + "}";
    return result.c_str();
  });
}
const char* ps_launch(Module* m, const char* name, const LaunchCfg* cfg, const u8* params, u64 size) {
  return guarded([&]() -> const char* {
    Kernel& k = *m->link(name);
    if (size < k.paramBytes)
      throw Error(strf("kernel %s takes %u parameter bytes, got %llu", name, k.paramBytes, ull(size)));
    LaunchResult r;
    launch(*m, k, *cfg, params, r);
    if (!r.error.empty()) throw Error(r.error);
    result = statsJson(r, k);
    return result.c_str();
  });
}
}
#pragma GCC visibility pop
