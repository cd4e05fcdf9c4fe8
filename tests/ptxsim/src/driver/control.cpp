// The emulator's own interface: options, registered host memory, the last error, records of launches.
#include "driver.h"

namespace drv {
Options opt;
const char* (*onLoad)(const char* ptx) = nullptr;

static const std::map<string, long long Options::*> optNames = {
    {"check_races", &Options::check_races},
    {"check_uninit", &Options::check_uninit},
    {"check_proxy", &Options::check_proxy},
    {"strict_warp", &Options::strict_warp},
    {"allow_exited_at_barrier", &Options::allow_exited_at_barrier},
    {"allow_exited_cta", &Options::allow_exited_cta},
    {"threads", &Options::threads},
    {"resident", &Options::resident},
    {"order", &Options::order},
    {"max_instructions", &Options::max_instructions},
    {"poison", &Options::poison},
    {"track_uninit", &Options::track_uninit},
    {"sticky_errors", &Options::sticky_errors},
    {"deferred_errors", &Options::deferred_errors},
    {"host_access", &Options::host_access},
    {"keep_stats", &Options::keep_stats},
    {"coverage", &Options::coverage},
    {"print", &Options::print},
    {"verbose", &Options::verbose}};

int parseOptions(const char* s) {  // name=value,name=value
  int bad = 0;
  string t = s ? s : "";
  for (size_t i = 0; i < t.size();) {
    size_t e = std::min(t.find(',', i), t.size()), q = t.find('=', i);
    if (q != string::npos && q < e) {
      auto it = optNames.find(t.substr(i, q - i));
      if (it == optNames.end()) {
        fprintf(stderr, "ptxsim: unknown option '%s'\n", t.substr(i, q - i).c_str());
        bad++;
      } else
        opt.*(it->second) = strtoll(t.c_str() + q + 1, nullptr, 0);
    }
    i = e + 1;
  }
  return bad;
}
}  // namespace drv

// Makes host memory addressable by kernels at its own address. flags: 1 read-only, 2 contents count as never written.
// The same range may be registered repeatedly; overlapping ranges are merged. Returns a CUresult.
API int ptxsim_register_named(void* p, size_t n, unsigned flags, const char* name) {
  const std::lock_guard locked(lock);
  currentCall = "ptxsim_register";
  string nm = name ? name : "";
  if (nm.empty()) nm = strf("registered memory %p", p);
  return addRange(p, n, flags, nm, 'x');
}
API int ptxsim_register(void* p, size_t n, unsigned flags) { return ptxsim_register_named(p, n, flags, nullptr); }
API int ptxsim_unregister(void* p) {
  const std::lock_guard locked(lock);
  currentCall = __func__;
  return removeRange(p, 'x');
}
// Bytes of a range registered with flag 2 (or allocated with track_uninit) that were never written; -1: not tracked
API long long ptxsim_unwritten(const void* p) {
  const std::lock_guard locked(lock);
  Alloc* a = memory.find((u64)p);
  if (!a || !a->track) return -1;
  long long n = 0;
  for (u8 b : a->written) n += !b;
  return n;
}
API const char* ptxsim_last_error(void) {
  const std::lock_guard locked(lock);
  static thread_local string s;
  s = lastError;
  return s.c_str();
}
API void ptxsim_clear_error(void) {
  const std::lock_guard locked(lock);
  lastError.clear();
  for (auto& c : contexts) c->pending = CUDA_SUCCESS;
}
API const char* ptxsim_last_stats(void) {
  const std::lock_guard locked(lock);
  static thread_local string s;
  s = strf("{\"launch_count\":%llu,\"launches\":[", (unsigned long long)launchCount);
  for (size_t i = 0; i < statLog.size(); i++) s += (i ? "," : "") + statLog[i];
  s += "]}";
  return s.c_str();
}
API void ptxsim_clear_stats(void) {
  const std::lock_guard locked(lock);
  statLog.clear();
  launchCount = 0;
}
// What was executed since the last call while the option coverage was set, a kernel a line: its target, its name and
// the lines of its module's PTX.
API const char* ptxsim_executed(void) {
  const std::lock_guard locked(lock);
  static thread_local string s;
  s.clear();
  for (auto& c : contexts)
    for (ModuleObject* m : c->modules)
      for (auto& [name, k] : m->m->kernels) {
        std::set<u32> lines;
        for (size_t i = 0; i < k->executed.size(); i++)
          if (k->executed[i]) lines.insert(k->code[i].line);
        if (lines.empty()) continue;
        std::fill(k->executed.begin(), k->executed.end(), 0);
        s += m->m->target + " " + name;
        for (u32 line : lines) s += strf(" %u", line);
        s += "\n";
      }
  return s.c_str();
}
// What is asked for other PTX when a module is loaded: it gets the PTX and returns what to load instead, or null.
API void ptxsim_on_load(const char* (*function)(const char* ptx)) {
  const std::lock_guard locked(lock);
  onLoad = function;
}
API int ptxsim_set_option(const char* name, long long value) {
  const std::lock_guard locked(lock);
  currentCall = __func__;
  auto it = optNames.find(name ? name : "");
  if (it == optNames.end()) return err(CUDA_ERROR_INVALID_VALUE, "unknown option '%s'", name ? name : "");
  opt.*(it->second) = value;
  return 0;
}
API int ptxsim_get_option(const char* name, long long* value) {
  const std::lock_guard locked(lock);
  auto it = optNames.find(name ? name : "");
  if (it == optNames.end() || !value) return CUDA_ERROR_INVALID_VALUE;
  *value = opt.*(it->second);
  return 0;
}
// Back to the state before cuInit (destroys every object), so that one process can test several devices.
API void ptxsim_reset(void) {
  const std::lock_guard locked(lock);
  dropCaptures();
  for (auto& c : contexts) resetContext(c.get());
  vector<std::pair<const void*, char>> rest(live.begin(), live.end());
  for (auto& h : rest)
    if (h.second == 'l')
      delete (Library*)h.first;
    else if (h.second == 'g' || h.second == 'x')
      delete (Graph*)h.first;
  live.clear();
  clearRanges();
  devices.clear();
  for (auto& c : contexts) c.release();  // other threads may still hold the pointer; isCtx() then refuses it
  contexts.clear();
  contextStack.clear();
  statLog.clear();
  lastError.clear();
  launchCount = 0;
  opt = Options();
  initialised = false;
}
