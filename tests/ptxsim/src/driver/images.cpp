// Images: the PTX text of a PTX file or a fatbin, plain or compressed. Machine code cannot be run.
#include <dlfcn.h>

#include "driver.h"

static string lz4(const u8* s, size_t n, size_t cap) {
  string o;
  const u8* e = s + n;
  while (s < e) {
    u32 tok = *s++;
    size_t len = tok >> 4;
    if (len == 15) {
      u8 b;
      do {
        if (s >= e) throw Error("corrupt LZ4 data");
        b = *s++;
        len += b;
      } while (b == 255);
    }
    if (len > (size_t)(e - s) || o.size() + len > cap) throw Error("corrupt LZ4 data");
    o.append((const char*)s, len);
    s += len;
    if (s >= e) break;
    if (e - s < 2) throw Error("corrupt LZ4 data");
    size_t off = s[0] | s[1] << 8, ml = tok & 15;
    s += 2;
    if (ml == 15) {
      u8 b;
      do {
        if (s >= e) throw Error("corrupt LZ4 data");
        b = *s++;
        ml += b;
      } while (b == 255);
    }
    ml += 4;
    if (!off || off > o.size() || o.size() + ml > cap) throw Error("corrupt LZ4 data");
    for (size_t i = 0, p = o.size() - off; i < ml; i++) o += o[p + i];
  }
  return o;
}
static string zstd(const u8* s, size_t n, size_t cap) {
  static auto* f = [] {
    void* h = nullptr;
    for (const char* nm : {"libzstd.so.1", "libzstd.so"})
      if (!h) h = dlopen(nm, RTLD_NOW | RTLD_LOCAL);
    return (size_t (*)(void*, size_t, const void*, size_t))(h ? dlsym(h, "ZSTD_decompress") : nullptr);
  }();
  if (!f)
    throw Error(
        "the fatbin is zstd-compressed and libzstd.so.1 is not available (build with nvcc --compress-mode=speed or "
        "none)");
  string o(cap, 0);
  size_t r = f(&o[0], cap, s, n);
  if (r > cap) throw Error("corrupt zstd data");
  o.resize(r);
  return o;
}
static Target targetOf(const string& text) {
  const size_t p = text.find(".target");
  return p == string::npos ? Target() : parseTarget(text.substr(p, 64));
}
template <class T>
static T get(const u8* p) {
  T v;
  memcpy(&v, p, sizeof v);
  return v;
}
// PTX text of an image (PTX, fatbin, fatbin wrapper); throws Error, sets res
namespace drv {
CUresult imageText(const void* img, int cc, string& out) {
  const u8* p = (const u8*)img;
  u32 magic = get<u32>(p);
  if (magic == 0x466243b1) {  // fatbin wrapper: magic, version, data pointer
    p = get<const u8*>(p + 8);
    magic = get<u32>(p);
  }
  if (magic == 0x464c457f)
    return err(CUDA_ERROR_NO_BINARY_FOR_GPU,
               "the image is a cubin; this software device has no machine code and runs PTX only");
  if (magic != 0xba55ed50) {
    for (int i = 0; i < 4; i++)
      if (!(p[i] == '\n' || p[i] == '\r' || p[i] == '\t' || (p[i] >= 32 && p[i] < 127)))
        return err(CUDA_ERROR_INVALID_IMAGE, "the image is neither PTX text, a fatbin nor a cubin");
    out = (const char*)p;
    Target t = targetOf(out);
    if (!t.cc) return err(CUDA_ERROR_INVALID_PTX, "no .target in the PTX text");
    if (!runsOn(t, cc))
      return err(CUDA_ERROR_INVALID_PTX, "PTX for sm_%d%.1s does not run on sm_%d", t.cc, t.suffix ? &t.suffix : "",
                 cc);
    return CUDA_SUCCESS;
  }
  const u8 *q = p + get<u16>(p + 6), *end = q + get<u64>(p + 8);
  Target best;
  string why;
  int nptx = 0, ncubin = 0;
  while (q + 64 <= end) {
    u16 kind = get<u16>(q);
    u32 hs = get<u32>(q + 4);
    u64 size = get<u64>(q + 8);
    u32 csize = get<u32>(q + 16);
    u64 flags = get<u64>(q + 40), usize = hs >= 64 ? get<u64>(q + 56) : 0;
    if (hs < 48 || size > (u64)(end - q)) return err(CUDA_ERROR_INVALID_IMAGE, "corrupt fatbin");
    if (kind == 1) {
      nptx++;
      string t;
      if (flags & 0x2000)
        t = lz4(q + hs, csize ? csize : size, usize);
      else if (flags & 0x8000)
        t = zstd(q + hs, csize ? csize : size, usize);
      else
        t.assign((const char*)q + hs, size);
      t = t.c_str();
      Target g = targetOf(t);
      if (runsOn(g, cc) && (g.cc > best.cc || (g.cc == best.cc && g.suffix))) {
        best = g;
        out = t;
      }
    } else
      ncubin++;
    q += hs + size;
  }
  if (!best.cc)
    return err(CUDA_ERROR_NO_BINARY_FOR_GPU, "the fatbin holds no PTX that runs on sm_%d (%d PTX and %d other entries)",
               cc, nptx, ncubin);
  return CUDA_SUCCESS;
}
}  // namespace drv
