// Entry points by name, as cuGetProcAddress gives them: for each name the newest version that the caller knows.
#include "driver.h"

// Not declared in cuda.h under these names, or renamed there by macros.
API CUresult cuDeviceGetUuid(CUuuid* u, CUdevice d);
API CUresult cuGraphInstantiate_v2(CUgraphExec* x, CUgraph g, CUgraphNode* bad, char* log, size_t n);
API CUresult cuEventElapsedTime(float* ms, CUevent a, CUevent b);

API CUresult cuProfilerStart(void) { return CUDA_SUCCESS; }
API CUresult cuProfilerStop(void) { return CUDA_SUCCESS; }

API CUresult cuGetProcAddress(const char* symbol, void** pfn, int cudaVersion, cuuint64_t flags);
struct Entry {
  int version;  // of CUDA, that brought it
  void* f;
};
#define P(n, v) std::pair<const string, Entry>(#n, {v, (void*)n})
#define P2(n, v) std::pair<const string, Entry>(#n, {v, (void*)n##_v2})
API CUresult cuGetProcAddress_v2(const char* symbol, void** pfn, int version, cuuint64_t,
                                 CUdriverProcAddressQueryResult* st) {
  static const std::multimap<string, Entry> tab = {
      P(cuInit, 2000),
      P(cuDriverGetVersion, 2020),
      P(cuGetErrorName, 6000),
      P(cuGetErrorString, 6000),
      P(cuDeviceGetCount, 2000),
      P(cuDeviceGet, 2000),
      P(cuDeviceGetName, 2000),
      P2(cuDeviceTotalMem, 3020),
      P(cuDeviceGetUuid, 9020),
      P2(cuDeviceGetUuid, 11040),
      P(cuDeviceGetAttribute, 2000),
      P(cuDevicePrimaryCtxRetain, 7000),
      P2(cuDevicePrimaryCtxRelease, 11000),
      P2(cuDevicePrimaryCtxReset, 11000),
      P(cuDevicePrimaryCtxGetState, 7000),
      P(cuCtxGetCurrent, 4000),
      P(cuCtxSetCurrent, 4000),
      P2(cuCtxPushCurrent, 4000),
      P2(cuCtxPopCurrent, 4000),
      P(cuCtxGetDevice, 2000),
      P(cuCtxSynchronize, 2000),
      P(cuCtxGetId, 12000),
      P(cuCtxGetStreamPriorityRange, 5050),
      P(cuModuleLoadData, 2000),
      P(cuModuleLoadDataEx, 2010),
      P(cuModuleLoadFatBinary, 2000),
      P(cuModuleUnload, 2000),
      P(cuModuleGetFunction, 2000),
      P2(cuModuleGetGlobal, 3020),
      P(cuLibraryLoadData, 12000),
      P(cuLibraryUnload, 12000),
      P(cuLibraryGetKernel, 12000),
      P(cuLibraryGetModule, 12000),
      P(cuLibraryGetGlobal, 12000),
      P(cuKernelGetFunction, 12000),
      P(cuKernelGetAttribute, 12000),
      P(cuKernelSetAttribute, 12000),
      P(cuFuncGetAttribute, 2020),
      P(cuFuncSetAttribute, 9000),
      P(cuFuncSetCacheConfig, 3000),
      P(cuFuncGetName, 12030),
      P(cuOccupancyMaxActiveBlocksPerMultiprocessor, 6050),
      P(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, 7000),
      P(cuLaunchKernel, 4000),
      P(cuLaunchKernelEx, 11060),
      P(cuLaunchCooperativeKernel, 9000),
      P2(cuMemAlloc, 3020),
      P2(cuMemFree, 3020),
      P(cuMemAllocAsync, 11020),
      P(cuMemFreeAsync, 11020),
      P(cuMemHostAlloc, 2020),
      P2(cuMemAllocHost, 3020),
      P(cuMemFreeHost, 2000),
      P2(cuMemHostRegister, 6050),
      P(cuMemHostUnregister, 4000),
      P2(cuMemHostGetDevicePointer, 3020),
      P2(cuMemGetInfo, 3020),
      P2(cuMemGetAddressRange, 3020),
      P2(cuMemcpyHtoD, 3020),
      P2(cuMemcpyDtoH, 3020),
      P2(cuMemcpyDtoD, 3020),
      P(cuMemcpy, 4000),
      P2(cuMemcpyHtoDAsync, 3020),
      P2(cuMemcpyDtoHAsync, 3020),
      P2(cuMemcpyDtoDAsync, 3020),
      P(cuMemcpyAsync, 4000),
      P2(cuMemsetD8, 3020),
      P2(cuMemsetD16, 3020),
      P2(cuMemsetD32, 3020),
      P(cuMemsetD8Async, 3020),
      P(cuMemsetD16Async, 3020),
      P(cuMemsetD32Async, 3020),
      P(cuPointerGetAttribute, 4000),
      P(cuPointerGetAttributes, 7000),
      P(cuStreamCreate, 2000),
      P(cuStreamCreateWithPriority, 5050),
      P2(cuStreamDestroy, 4000),
      P(cuStreamSynchronize, 2000),
      P(cuStreamQuery, 2000),
      P(cuStreamGetFlags, 5050),
      P(cuStreamGetPriority, 5050),
      P(cuStreamGetCtx, 9020),
      P(cuStreamWaitEvent, 3020),
      P2(cuStreamBeginCapture, 10010),
      P(cuStreamEndCapture, 10000),
      P(cuStreamIsCapturing, 10000),
      P(cuGraphInstantiateWithFlags, 11040),
      P2(cuGraphInstantiate, 11000),
      std::pair<const string, Entry>("cuGraphInstantiate", {12000, (void*)cuGraphInstantiateWithFlags}),
      P(cuGraphLaunch, 10000),
      P(cuGraphGetNodes, 10000),
      P(cuGraphDestroy, 10000),
      P(cuGraphExecDestroy, 10000),
      P(cuEventCreate, 2000),
      P(cuEventRecord, 2000),
      P(cuEventRecordWithFlags, 11010),
      P(cuEventSynchronize, 2000),
      P(cuEventQuery, 2000),
      P(cuEventElapsedTime, 2000),
      P2(cuEventElapsedTime, 12080),
      P2(cuEventDestroy, 4000),
      P(cuTensorMapEncodeTiled, 12000),
      P(cuProfilerStart, 4000),
      P(cuProfilerStop, 4000),
      P(cuGetProcAddress, 11030),
      P2(cuGetProcAddress, 12000)};
#undef P
#undef P2
  if (!symbol || !pfn || version > DRIVER_VERSION) return CUDA_ERROR_INVALID_VALUE;
  *pfn = nullptr;
  auto r = tab.equal_range(symbol);
  int best = -1;
  for (auto it = r.first; it != r.second; ++it)
    if (it->second.version <= version && it->second.version > best) {
      best = it->second.version;
      *pfn = it->second.f;
    }
  if (st)
    *st = *pfn                  ? CU_GET_PROC_ADDRESS_SUCCESS
          : r.first == r.second ? CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND
                                : CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
  return CUDA_SUCCESS;
}
API CUresult cuGetProcAddress(const char* symbol, void** pfn, int version, cuuint64_t flags) {
  return cuGetProcAddress_v2(symbol, pfn, version, flags, nullptr);
}
