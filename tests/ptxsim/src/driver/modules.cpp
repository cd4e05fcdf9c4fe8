// Modules, libraries and their kernels; attributes of functions.
#include "driver.h"

namespace drv {
CUresult loadModule(Context* c, const string& text, ModuleObject*& out) {
  try {
    auto m = std::make_unique<ModuleObject>();
    m->c = c;
    const char* instead = onLoad ? onLoad(text.c_str()) : nullptr;
    m->m.reset(parseModule(instead ? instead : text, &memory));
    out = m.release();
    c->modules.insert(out);
    live[out] = 'm';
  } catch (std::exception& e) {
    return err(CUDA_ERROR_INVALID_PTX, "%s", e.what());
  }
  return CUDA_SUCCESS;
}
void unloadModule(ModuleObject* m) {
  for (auto& f : m->functions) live.erase(f.second.get());
  if (m->library) m->library->modules.erase(m->c);
  m->c->modules.erase(m);
  live.erase(m);
  delete m;
}
static CUresult getFunction(ModuleObject* m, const string& name, Function*& out) {
  auto it = m->m->funcs.find(name);
  if (it == m->m->funcs.end() || !it->second->entry)
    return err(CUDA_ERROR_NOT_FOUND, "no kernel '%s' in the module", name.c_str());
  auto& f = m->functions[name];
  if (!f) {
    f = std::make_unique<Function>();
    f->m = m;
    f->name = name;
    Kernel* k;
    try {
      k = m->m->link(name);
    } catch (std::exception& e) {
      m->functions.erase(name);
      return err(CUDA_ERROR_INVALID_PTX, "%s", e.what());
    }
    f->maxDynamic = std::max(0, SMEM_DEFAULT - (int)k->smemStatic);
    live[f.get()] = 'f';
  }
  out = f.get();
  return CUDA_SUCCESS;
}
static CUresult libraryModule(Library* l, Context* c, ModuleObject*& m) {
  auto it = l->modules.find(c);
  if (it != l->modules.end()) {
    m = it->second;
    return CUDA_SUCCESS;
  }
  string text;
  try {
    TRY(imageText(l->text.data(), devices[c->dev].cc, text));
  } catch (std::exception& e) {
    return err(CUDA_ERROR_INVALID_IMAGE, "%s", e.what());
  }
  TRY(loadModule(c, text, m));
  m->library = l;
  l->modules[c] = m;
  return CUDA_SUCCESS;
}
CUresult resolveFunction(Context* c, CUfunction h, Function*& f) {
  if (isLive(h, 'k')) {
    LibraryKernel* k = (LibraryKernel*)h;
    ModuleObject* m;
    TRY(libraryModule(k->library, c, m));
    TRY(getFunction(m, k->name, f));
    if (k->maxDynamic >= 0) f->maxDynamic = k->maxDynamic;
    if (k->nonPortable >= 0) f->nonPortable = k->nonPortable;
    return CUDA_SUCCESS;
  }
  if (!isLive(h, 'f')) return err(CUDA_ERROR_INVALID_HANDLE, "invalid function handle");
  f = (Function*)h;
  return CUDA_SUCCESS;
}
Kernel* kernelOf(Function* f) { return f->m->m->link(f->name); }
u64 maxThreads(const Kernel* k) {
  const Func& e = *k->entry;
  const u32* v = e.maxntid[0] ? e.maxntid : e.reqntid[0] ? e.reqntid : nullptr;
  return v ? std::min<u64>(1024, (u64)v[0] * v[1] * v[2]) : 1024;
}
}  // namespace drv

static int regGuess(const Kernel* k) {
  return (int)std::min<u64>({255, 65536 / std::max<u64>(32, maxThreads(k)), std::max<u64>(16, k->numRegs)});
}
static CUresult loadData(CUmodule* m, const void* image) {
  ARG(m && image);
  CONTEXT();
  string text;
  try {
    TRY(imageText(image, devices[c->dev].cc, text));
  } catch (std::exception& e) {
    return err(CUDA_ERROR_INVALID_IMAGE, "%s", e.what());
  }
  ModuleObject* o;
  TRY(loadModule(c, text, o));
  *m = (CUmodule)o;
  return CUDA_SUCCESS;
}
API CUresult cuModuleLoadData(CUmodule* m, const void* image) {
  ENTER();
  return loadData(m, image);
}
API CUresult cuModuleLoadDataEx(CUmodule* m, const void* image, unsigned n, CUjit_option* o, void** v) {
  ENTER();
  CUresult r = loadData(m, image);
  size_t esz = 0;
  for (unsigned i = 0; o && v && i < n; i++)
    if (o[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) esz = (size_t)v[i];
  for (unsigned i = 0; o && v && i < n; i++)
    if (o[i] == CU_JIT_ERROR_LOG_BUFFER && v[i] && esz) snprintf((char*)v[i], esz, "%s", r ? lastError.c_str() : "");
  return r;
}
API CUresult cuModuleLoadFatBinary(CUmodule* m, const void* image) {
  ENTER();
  return loadData(m, image);
}
API CUresult cuModuleUnload(CUmodule m) {
  ENTER();
  HANDLE(m, 'm');
  if (((ModuleObject*)m)->library) return err(CUDA_ERROR_NOT_PERMITTED, "the module belongs to a library");
  unloadModule((ModuleObject*)m);
  return CUDA_SUCCESS;
}
API CUresult cuModuleGetFunction(CUfunction* f, CUmodule m, const char* name) {
  ENTER();
  ARG(f && name);
  HANDLE(m, 'm');
  Function* o;
  TRY(getFunction((ModuleObject*)m, name, o));
  *f = (CUfunction)o;
  return CUDA_SUCCESS;
}
API CUresult cuModuleGetGlobal_v2(CUdeviceptr* p, size_t* n, CUmodule m, const char* name) {
  ENTER();
  ARG(name);
  HANDLE(m, 'm');
  auto& vs = ((ModuleObject*)m)->m->vars;
  auto it = vs.find(name);
  if (it == vs.end() || !it->second.addr || (it->second.sp != GLOBAL && it->second.sp != CONSTSP))
    return err(CUDA_ERROR_NOT_FOUND, "no variable '%s'", name);
  if (p) *p = it->second.addr;
  if (n) *n = it->second.size;
  return CUDA_SUCCESS;
}
API CUresult cuLibraryLoadData(CUlibrary* l, const void* code, CUjit_option*, void**, unsigned, CUlibraryOption*,
                               void**, unsigned) {
  ENTER();
  ARG(l && code);
  string text;
  // one image for every device of the process: the first device decides which entry of a fatbin is taken
  try {
    CUresult r = CUDA_SUCCESS;
    for (auto& d : devices)
      if (!(r = imageText(code, d.cc, text))) break;
    if (r) return r;
    std::unique_ptr<Module> probe(parseModule(text, &memory));
    auto* o = new Library;
    o->text = text;
    for (auto& n : probe->order)
      if (probe->funcs[n]->entry) {
        auto k = std::make_unique<LibraryKernel>();
        k->library = o;
        k->name = n;
        live[k.get()] = 'k';
        o->kernels[n] = std::move(k);
      }
    live[o] = 'l';
    *l = (CUlibrary)o;
  } catch (std::exception& e) {
    return err(CUDA_ERROR_INVALID_PTX, "%s", e.what());
  }
  return CUDA_SUCCESS;
}
API CUresult cuLibraryUnload(CUlibrary l) {
  ENTER();
  HANDLE(l, 'l');
  Library* o = (Library*)l;
  while (!o->modules.empty()) unloadModule(o->modules.begin()->second);
  for (auto& k : o->kernels) live.erase(k.second.get());
  live.erase(o);
  delete o;
  return CUDA_SUCCESS;
}
API CUresult cuLibraryGetKernel(CUkernel* k, CUlibrary l, const char* name) {
  ENTER();
  ARG(k && name);
  HANDLE(l, 'l');
  auto it = ((Library*)l)->kernels.find(name);
  if (it == ((Library*)l)->kernels.end()) return err(CUDA_ERROR_NOT_FOUND, "no kernel '%s' in the library", name);
  *k = (CUkernel)it->second.get();
  return CUDA_SUCCESS;
}
API CUresult cuLibraryGetModule(CUmodule* m, CUlibrary l) {
  ENTER();
  ARG(m);
  HANDLE(l, 'l');
  CONTEXT();
  ModuleObject* o;
  TRY(libraryModule((Library*)l, c, o));
  *m = (CUmodule)o;
  return CUDA_SUCCESS;
}
API CUresult cuLibraryGetGlobal(CUdeviceptr* p, size_t* n, CUlibrary l, const char* name) {
  CUmodule m;
  TRY(cuLibraryGetModule(&m, l));
  return cuModuleGetGlobal_v2(p, n, m, name);
}
API CUresult cuKernelGetFunction(CUfunction* f, CUkernel k) {
  ENTER();
  ARG(f);
  HANDLE(k, 'k');
  CONTEXT();
  Function* o;
  TRY(resolveFunction(c, (CUfunction)k, o));
  *f = (CUfunction)o;
  return CUDA_SUCCESS;
}
static CUresult fnAttr(int* v, CUfunction_attribute a, Function* f) {
  Kernel* k = kernelOf(f);
  switch (a) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      *v = maxThreads(k);
      break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
      *v = k->smemStatic;
      break;
    case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
      *v = 0;
      break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
      *v = k->localBytes > 64 ? k->localBytes - 64 : 0;
      break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
      *v = regGuess(k);
      break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
      *v = a == CU_FUNC_ATTRIBUTE_PTX_VERSION ? parseTarget(f->m->m->target).cc : devices[f->m->c->dev].cc;
      break;
    case CU_FUNC_ATTRIBUTE_CACHE_MODE_CA:
      *v = 0;
      break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      *v = f->maxDynamic;
      break;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
      *v = f->carveout;
      break;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
      *v = f->nonPortable;
      break;
    case CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET:
      *v = 0;
      break;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
      *v = k->entry->cluster[0];
      break;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
      *v = k->entry->cluster[1];
      break;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
      *v = k->entry->cluster[2];
      break;
    default:
      return err(CUDA_ERROR_INVALID_VALUE, "function attribute %d", (int)a);
  }
  return CUDA_SUCCESS;
}
static CUresult setFnAttr(Function* f, CUfunction_attribute a, int v) {
  int lim = devices[f->m->c->dev].smemOptin, st = kernelOf(f)->smemStatic;
  switch (a) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      if (v < 0 || v + st > lim)
        return err(CUDA_ERROR_INVALID_VALUE,
                   "%s: %d dynamic + %d static bytes of shared memory exceed the device's %d per block",
                   f->name.c_str(), v, st, lim);
      f->maxDynamic = v;
      break;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
      ARG(v >= -1 && v <= 100);
      f->carveout = v;
      break;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
      f->nonPortable = v;
      break;
    default:
      return err(CUDA_ERROR_INVALID_VALUE, "function attribute %d cannot be set", (int)a);
  }
  return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction h) {
  ENTER();
  ARG(v);
  CONTEXT();
  Function* f;
  TRY(resolveFunction(c, h, f));
  return fnAttr(v, a, f);
}
API CUresult cuFuncSetAttribute(CUfunction h, CUfunction_attribute a, int v) {
  ENTER();
  CONTEXT();
  Function* f;
  TRY(resolveFunction(c, h, f));
  return setFnAttr(f, a, v);
}
API CUresult cuFuncSetCacheConfig(CUfunction h, CUfunc_cache) {
  ENTER();
  CONTEXT();
  Function* f;
  return resolveFunction(c, h, f);
}
API CUresult cuFuncGetName(const char** n, CUfunction h) {
  ENTER();
  ARG(n);
  CONTEXT();
  Function* f;
  TRY(resolveFunction(c, h, f));
  *n = f->name.c_str();
  return CUDA_SUCCESS;
}
API CUresult cuKernelGetAttribute(int* v, CUfunction_attribute a, CUkernel k, CUdevice d) {
  ENTER();
  ARG(v);
  HANDLE(k, 'k');
  DEVICE(d);
  Function* f;
  TRY(resolveFunction(contexts[d].get(), (CUfunction)k, f));
  return fnAttr(v, a, f);
}
API CUresult cuKernelSetAttribute(CUfunction_attribute a, int v, CUkernel k, CUdevice d) {
  ENTER();
  HANDLE(k, 'k');
  DEVICE(d);
  Function* f;
  TRY(resolveFunction(contexts[d].get(), (CUfunction)k, f));
  TRY(setFnAttr(f, a, v));
  if (a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) ((LibraryKernel*)k)->maxDynamic = v;
  if (a == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) ((LibraryKernel*)k)->nonPortable = v;
  return CUDA_SUCCESS;
}
