// Launches: what the hardware would refuse, parameters, the run itself, and the record of it.
#include <cstdio>

#include "driver.h"

namespace drv {
u64 launchCount = 0;
std::deque<string> statLog;

int occupancy(Function* f, int block, size_t dyn) {
  const Device& d = devices[f->m->c->dev];
  Kernel* k = kernelOf(f);
  size_t s = k->smemStatic + dyn;
  if (block <= 0 || block > (int)maxThreads(k) || s > (size_t)d.smemOptin) return 0;
  int n = std::min(d.blocksSM, d.threadsSM / ((block + 31) / 32 * 32));
  return std::min<int>(n, d.smemSM / ((s + SMEM_RESERVED + 127) / 128 * 128));
}
}  // namespace drv

static CUresult runKernel(Context* c, Function* f, const LaunchArgs& L, const string& params) {
  Kernel* k = kernelOf(f);
  LaunchCfg g{};
  memcpy(g.grid, L.grid, 12);
  memcpy(g.block, L.block, 12);
  memcpy(g.cluster, L.cluster, 12);
  g.dynSmem = L.dynamicSmem;
  g.checkRaces = opt.check_races;
  g.checkUninit = opt.check_uninit;
  g.checkProxy = opt.check_proxy;
  g.allowExitedCta = opt.allow_exited_cta;
  g.exitedAtBarrier = opt.allow_exited_at_barrier;
  g.threads = opt.threads;
  g.resident = L.cooperative ? -1 : opt.resident;
  g.maxInstr = opt.max_instructions;
  g.maxSmem = devices[c->dev].smemOptin;
  g.order = opt.order;
  g.strictWarp = opt.strict_warp;
  g.coverage = opt.coverage != 0;
  if (g.coverage) k->executed.resize(k->code.size());
  mapHostPages();
  LaunchResult r;
  double t0 = milliseconds();
  try {
    launch(*f->m->m, *k, g, (const u8*)params.data(), r);
  } catch (std::exception& e) {
    r.error = e.what();
  }
  memory.mapped.clear();
  launchCount++;
  if (!r.out.empty() && opt.print) {
    fwrite(r.out.data(), 1, r.out.size(), stdout);
    fflush(stdout);
  }
  string j =
      strf(
          "{\"kernel\":%s,\"target\":%s,\"grid\":[%u,%u,%u],\"block\":[%u,%u,%u],\"cluster\":[%u,%u,%u],\"dynamic_"
          "smem\":%u,"
          "\"cooperative\":%d,\"programmatic\":%d,\"milliseconds\":%.3f,\"error\":%s,\"stats\":",
          jsonStr(f->name).c_str(), jsonStr(f->m->m->target).c_str(), L.grid[0], L.grid[1], L.grid[2], L.block[0],
          L.block[1], L.block[2], L.cluster[0], L.cluster[1], L.cluster[2], L.dynamicSmem, L.cooperative,
          L.programmatic, milliseconds() - t0, r.error.empty() ? "null" : jsonStr(r.error).c_str()) +
      statsJson(r, *k) + "}";
  statLog.push_back(j);
  while ((long long)statLog.size() > std::max(1ll, opt.keep_stats)) statLog.pop_front();
  if (r.error.empty()) return CUDA_SUCCESS;
  CUresult e = classify(r.error);
  lastError = r.error;
  if (opt.verbose) fprintf(stderr, "ptxsim: %s\n", r.error.c_str());
  if (opt.sticky_errors || opt.deferred_errors) c->pending = e;
  return opt.deferred_errors ? CUDA_SUCCESS : e;
}
static CUresult doLaunch(Context* c, CUfunction h, CUstream hs, LaunchArgs L, void** kp, void** extra) {
  Function* f;
  Stream* s;
  TRY(resolveFunction(c, h, f));
  TRY(streamOf(c, hs, s));
  if (f->m->c != c) return err(CUDA_ERROR_INVALID_HANDLE, "function '%s' belongs to another context", f->name.c_str());
  const Device& d = devices[c->dev];
  Kernel* k = kernelOf(f);
  const char* nm = f->name.c_str();
  u64 nt = (u64)L.block[0] * L.block[1] * L.block[2];
  if (!L.grid[0] || !L.grid[1] || !L.grid[2] || !nt)
    return err(CUDA_ERROR_INVALID_VALUE, "%s: empty grid (%u,%u,%u) or block (%u,%u,%u)", nm, L.grid[0], L.grid[1],
               L.grid[2], L.block[0], L.block[1], L.block[2]);
  if (L.grid[0] > 0x7fffffffu || L.grid[1] > 65535 || L.grid[2] > 65535)
    return err(CUDA_ERROR_INVALID_VALUE, "%s: grid too large", nm);
  if (L.block[0] > 1024 || L.block[1] > 1024 || L.block[2] > 64 || nt > 1024)
    return err(CUDA_ERROR_INVALID_VALUE, "%s: block too large", nm);
  if (nt > maxThreads(k))
    return err(CUDA_ERROR_INVALID_VALUE, "%s: %llu threads exceed the kernel's launch bounds (%llu)", nm,
               (unsigned long long)nt, (unsigned long long)maxThreads(k));
  if (k->smemStatic + L.dynamicSmem > (u32)d.smemOptin)
    return err(CUDA_ERROR_INVALID_VALUE,
               "%s: %u static + %u dynamic bytes of shared memory exceed the device's %d per block", nm, k->smemStatic,
               L.dynamicSmem, d.smemOptin);
  if (L.dynamicSmem > (u32)f->maxDynamic)
    return err(CUDA_ERROR_INVALID_VALUE,
               "%s: %u bytes of dynamic shared memory exceed CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES (%d); set "
               "the attribute first",
               nm, L.dynamicSmem, f->maxDynamic);
  u32 *pc = k->entry->cluster, csz = 1;
  for (int i = 0; i < 3; i++) {
    if (pc[0] && L.cluster[0] * L.cluster[1] * L.cluster[2] > 1 && L.cluster[i] != pc[i])
      return err(CUDA_ERROR_INVALID_CLUSTER_SIZE, "%s: cluster differs from the kernel's own cluster dimensions", nm);
    u32 x = pc[0] ? pc[i] : std::max(1u, L.cluster[i]);
    csz *= x;
    if (L.grid[i] % x) return err(CUDA_ERROR_INVALID_VALUE, "%s: grid is not a multiple of the cluster", nm);
  }
  if (csz > 1 && d.cc < 90) return err(CUDA_ERROR_INVALID_CLUSTER_SIZE, "%s: clusters need sm_90", nm);
  if (csz > (f->nonPortable ? 16u : 8u))
    return err(CUDA_ERROR_INVALID_CLUSTER_SIZE, "%s: cluster of %u blocks", nm, csz);
  if (L.cooperative) {
    u64 nb = (u64)L.grid[0] * L.grid[1] * L.grid[2], cap = (u64)occupancy(f, nt, L.dynamicSmem) * d.sms;
    if (nb > cap)
      return err(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, "%s: %llu blocks, at most %llu resident", nm,
                 (unsigned long long)nb, (unsigned long long)cap);
  }
  string params(std::max<u32>(k->paramBytes, 16), 0);
  auto& ps = k->entry->params;
  if (kp) {
    for (size_t i = 0; i < ps.size(); i++) {
      if (!kp[i])
        return err(CUDA_ERROR_INVALID_VALUE, "%s: kernelParams[%zu] is null (the kernel has %zu parameters)", nm, i,
                   ps.size());
      memcpy(&params[ps[i].addr], kp[i], ps[i].size);
    }
  } else if (extra) {
    void* buf = nullptr;
    size_t n = 0;
    for (int i = 0; extra[i] != CU_LAUNCH_PARAM_END; i += 2)
      if (extra[i] == CU_LAUNCH_PARAM_BUFFER_POINTER)
        buf = extra[i + 1];
      else if (extra[i] == CU_LAUNCH_PARAM_BUFFER_SIZE)
        n = *(size_t*)extra[i + 1];
      else
        return err(CUDA_ERROR_INVALID_VALUE, "%s: unknown entry in 'extra'", nm);
    if (!buf || n < k->paramBytes)
      return err(CUDA_ERROR_INVALID_VALUE, "%s: parameter buffer of %zu bytes, the kernel takes %u", nm, n,
                 k->paramBytes);
    memcpy(&params[0], buf, k->paramBytes);
  } else if (!ps.empty())
    return err(CUDA_ERROR_INVALID_VALUE, "%s takes %zu parameters, none given", nm, ps.size());
  return enqueue(s, "kernel", [=, params = std::move(params)] {
    if (!isLive(f, 'f')) return err(CUDA_ERROR_INVALID_HANDLE, "a captured kernel's module was unloaded");
    return runKernel(c, f, L, params);
  });
}
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, CUfunction h, int block, size_t dyn,
                                                                  unsigned) {
  ENTER();
  ARG(n && block > 0);
  CONTEXT();
  Function* f;
  TRY(resolveFunction(c, h, f));
  *n = occupancy(f, block, dyn);
  return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction h, int block, size_t dyn) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, h, block, dyn, 0);
}
API CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                            unsigned smem, CUstream s, void** params, void** extra) {
  ENTER();
  CONTEXT();
  LaunchArgs L{{gx, gy, gz}, {bx, by, bz}, {1, 1, 1}, smem};
  return doLaunch(c, f, s, L, params, extra);
}
API CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                       unsigned bz, unsigned smem, CUstream s, void** params) {
  ENTER();
  CONTEXT();
  LaunchArgs L{{gx, gy, gz}, {bx, by, bz}, {1, 1, 1}, smem, true};
  return doLaunch(c, f, s, L, params, nullptr);
}
API CUresult cuLaunchKernelEx(const CUlaunchConfig* g, CUfunction f, void** params, void** extra) {
  ENTER();
  CONTEXT();
  ARG(g);
  LaunchArgs L{{g->gridDimX, g->gridDimY, g->gridDimZ},
               {g->blockDimX, g->blockDimY, g->blockDimZ},
               {1, 1, 1},
               g->sharedMemBytes};
  ARG(!g->numAttrs || g->attrs);
  for (unsigned i = 0; i < g->numAttrs; i++) {
    const CUlaunchAttribute& a = g->attrs[i];
    switch ((int)a.id) {
      case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
        L.cluster[0] = a.value.clusterDim.x;
        L.cluster[1] = a.value.clusterDim.y;
        L.cluster[2] = a.value.clusterDim.z;
        if (!L.cluster[0] || !L.cluster[1] || !L.cluster[2])
          return err(CUDA_ERROR_INVALID_VALUE, "cluster dimension 0");
        break;
      case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
        L.cooperative = a.value.cooperative;
        break;
      case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
        L.programmatic = a.value.programmaticStreamSerializationAllowed;
        break;
      case CU_LAUNCH_ATTRIBUTE_IGNORE:
      case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
      case CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY:
      case CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
      case CU_LAUNCH_ATTRIBUTE_PRIORITY:
      case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP:
      case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
        break;
      default:
        return err(CUDA_ERROR_NOT_SUPPORTED, "launch attribute %d", (int)a.id);
    }
  }
  return doLaunch(c, f, g->hStream, L, params, extra);
}
