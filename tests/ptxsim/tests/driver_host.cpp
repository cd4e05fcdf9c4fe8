#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <vector>
#define OK(x)                    \
  do {                           \
    CUresult r_ = (x);           \
    if (r_) {                    \
      const char* s = 0;         \
      cuGetErrorName(r_, &s);    \
      printf("%s: %s\n", #x, s); \
      exit(1);                   \
    }                            \
  } while (0)
#define WANT(x, e)                    \
  do {                                \
    CUresult r_ = (x);                \
    if (r_ != e) {                    \
      printf("%s: got %d\n", #x, r_); \
      exit(1);                        \
    }                                 \
  } while (0)
int main(int, char** v) {
  FILE* f = fopen(v[1], "rb");
  std::vector<char> img(1 << 20);
  img[fread(img.data(), 1, img.size() - 1, f)] = 0;
  CUdevice d;
  CUcontext c;
  CUmodule m;
  CUfunction k;
  CUdeviceptr x;
  CUstream s, s2;
  CUevent a, b, j;
  CUgraph g;
  CUgraphExec ge;
  float ms;
  WANT(cuCtxGetCurrent(&c), CUDA_ERROR_NOT_INITIALIZED);
  OK(cuInit(0));
  OK(cuDeviceGet(&d, 0));
  OK(cuDevicePrimaryCtxRetain(&c, d));
  WANT(cuCtxSynchronize(), CUDA_ERROR_INVALID_CONTEXT);
  OK(cuCtxPushCurrent(c));
  OK(cuModuleLoadData(&m, img.data()));
  OK(cuModuleGetFunction(&k, m, "scale"));
  WANT(cuModuleGetFunction(&k, m, "nope"), CUDA_ERROR_NOT_FOUND);
  const int n = 1000;
  std::vector<float> h(n, 1.f);
  float two = 2;
  int N = n;
  OK(cuMemAlloc(&x, n * 4));
  OK(cuMemcpyHtoD(x, h.data(), n * 4));
  OK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
  OK(cuStreamCreate(&s2, 1));
  OK(cuEventCreate(&a, 0));
  OK(cuEventCreate(&b, 0));
  OK(cuEventCreate(&j, CU_EVENT_DISABLE_TIMING));
  void* p[] = {&x, &two, &N};
  OK(cuEventRecord(a, s));
  OK(cuLaunchKernel(k, 8, 1, 1, 128, 1, 1, 0, s, p, 0));
  OK(cuEventRecord(b, s));
  OK(cuEventElapsedTime(&ms, a, b));
  if (!(ms > 0)) return 2;
  CUlaunchAttribute at[2];
  at[0].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  at[0].value.programmaticStreamSerializationAllowed = 1;
  at[1].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
  at[1].value.clusterDim.x = 1;
  at[1].value.clusterDim.y = 1;
  at[1].value.clusterDim.z = 1;
  CUlaunchConfig q = {8, 1, 1, 128, 1, 1, 0, s, at, 2};
  OK(cuLaunchKernelEx(&q, k, p, 0));  // x = 4
  OK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_GLOBAL));
  OK(cuLaunchKernel(k, 8, 1, 1, 128, 1, 1, 0, s, p, 0));
  OK(cuEventRecord(j, s));
  OK(cuStreamWaitEvent(s2, j, 0));
  OK(cuLaunchKernel(k, 8, 1, 1, 128, 1, 1, 0, s2, p, 0));
  OK(cuEventRecord(j, s2));
  OK(cuStreamWaitEvent(s, j, 0));
  CUstreamCaptureStatus st;
  OK(cuStreamIsCapturing(s2, &st));
  if (st != CU_STREAM_CAPTURE_STATUS_ACTIVE) return 3;
  OK(cuStreamEndCapture(s, &g));
  size_t nn;
  OK(cuGraphGetNodes(g, 0, &nn));
  if (nn != 2) return 4;
  OK(cuGraphInstantiate(&ge, g, 0));
  OK(cuGraphDestroy(g));
  OK(cuMemcpyDtoH(h.data(), x, n * 4));
  if (h[999] != 4) return 5;  // capture ran nothing
  OK(cuGraphLaunch(ge, s));
  OK(cuGraphLaunch(ge, s));
  OK(cuStreamSynchronize(s));
  OK(cuGraphExecDestroy(ge));
  OK(cuMemcpyDtoH(h.data(), x, n * 4));
  if (h[0] != 64 || h[999] != 64) return 6;
  CUdeviceptr gv;
  size_t gn;
  OK(cuModuleGetGlobal(&gv, &gn, m, "counter"));
  int cv;
  OK(cuMemcpyDtoH(&cv, gv, 4));
  if (cv != 5 || gn != 4) return 7;
  void* fp = 0;
  CUdriverProcAddressQueryResult qr;
  OK(cuGetProcAddress("cuMemAlloc", &fp, 12000, 0, &qr));
  if (fp != (void*)cuMemAlloc || qr) return 8;
  OK(cuGetProcAddress("cuMemAlloc", &fp, 2000, 0, &qr));
  if (fp || qr != CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT) return 9;
  OK(cuGetProcAddress("cuTexRefCreate", &fp, 12000, 0, &qr));
  if (fp || qr != CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND) return 10;
  void* hp;
  OK(cuMemAllocHost(&hp, 4 * n));
  CUdeviceptr hd;
  OK(cuMemHostGetDevicePointer(&hd, hp, 0));
  if ((void*)hd != hp) return 11;
  for (int i = 0; i < n; i++) ((float*)hp)[i] = i;
  void* p2[] = {&hd, &two, &N};
  OK(cuLaunchKernel(k, 8, 1, 1, 128, 1, 1, 0, s, p2, 0));
  if (((float*)hp)[999] != 1998) return 12;
  unsigned mt;
  OK(cuPointerGetAttribute(&mt, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, hd));
  if (mt != CU_MEMORYTYPE_HOST) return 13;
  OK(cuMemFreeHost(hp));
  OK(cuMemFree(x));
  WANT(cuMemFree(x), CUDA_ERROR_INVALID_VALUE);
  WANT(cuLaunchKernel(k, 8, 1, 1, 128, 1, 1, 0, s, p, 0),
       CUDA_ERROR_ILLEGAL_ADDRESS);  // freed memory
  OK(cuEventDestroy(a));
  WANT(cuEventQuery(a), CUDA_ERROR_INVALID_HANDLE);
  OK(cuStreamDestroy(s));
  WANT(cuStreamSynchronize(s), CUDA_ERROR_INVALID_HANDLE);
  OK(cuModuleUnload(m));
  CUcontext o;
  OK(cuCtxPopCurrent(&o));
  if (o != c) return 14;
  OK(cuDevicePrimaryCtxRelease(d));
  unsigned fl;
  int act;
  OK(cuDevicePrimaryCtxGetState(d, &fl, &act));
  if (act) return 15;
  puts("done");
}
