// Device printf and assert: calls of vprintf and __assertfail, which the CUDA runtime would provide.
#include "exec.h"

namespace ptx {

std::string Exec::text(Warp& w, int l, u64 va) {  // a C string in global memory
  std::string s;
  for (int i = 0; i < 4096; i++) {
    const char c = *global(w, l, va + i, 1, false);
    if (!c) break;
    s += c;
  }
  return s;
}
void Exec::vprintf_(Warp& w, const Instr& in, u32 mk) {
  const CallRec& c = k.calls[in.msg];
  forLanes(mk, [&](int l) {
    u8* fp = w.fparam + (size_t)l * k.fparamBytes;
    u64 a[5] = {};
    for (size_t i = 0; i < c.in.size() && i < 5; i++) memcpy(&a[i], fp + c.in[i].from, c.in[i].size);
    if (in.sub)
      fail(w, l, "device assertion failed: %s (%s:%u)", text(w, l, a[0]).c_str(), text(w, l, a[1]).c_str(), (u32)a[2]);
    u64 at = a[1];  // the values, each aligned to its size
    auto value = [&](u32 n) {
      at = (at + n - 1) / n * n;
      u64 v = 0;
      const bool local = (at >> WSHIFT) == (LOCAL_WIN >> WSHIFT);
      memcpy(&v, local ? w.local + (size_t)l * k.localBytes + (at - LOCAL_WIN) : global(w, l, at, n, false), n);
      at += n;
      return v;
    };
    const std::string f = text(w, l, a[0]);
    std::string o;
    for (size_t i = 0; i < f.size(); i++) {
      if (f[i] != '%') {
        o += f[i];
        continue;
      }
      size_t j = f.find_first_not_of("-+ #0123456789.", i + 1), kind = f.find_first_not_of("lhzjt", j);
      if (kind == std::string::npos) break;
      const std::string spec = f.substr(i, j - i), length = f.substr(j, kind - j);
      const bool wide = length.find_first_of("lz") != std::string::npos;
      const char conv = f[kind];
      i = kind;
      char buf[256];
      if (conv == '%') {
        o += '%';
        continue;
      }
      if (conv == 's') {
        o += text(w, l, value(8));
        continue;
      }
      if (strchr("fFeEgGaA", conv))
        snprintf(buf, sizeof buf, (spec + conv).c_str(), asD(value(8)));
      else if (conv == 'p')
        snprintf(buf, sizeof buf, "0x%llx", (unsigned long long)value(8));
      else if (wide)
        snprintf(buf, sizeof buf, (spec + "ll" + conv).c_str(), (long long)value(8));
      else
        snprintf(buf, sizeof buf, (spec + conv).c_str(), (int)value(4));
      o += buf;
    }
    std::lock_guard<std::mutex> lock(*omu);
    if (out->size() < (1 << 20)) *out += o;
    if (c.out.size()) memset(fp + c.out[0].from, 0, 4);
  });
}
}  // namespace ptx
