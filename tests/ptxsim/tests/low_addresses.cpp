#include <cuda.h>

#include <cstdio>
#include <vector>
extern "C" int ptxsim_register(void*, size_t, unsigned);
extern "C" const char* ptxsim_last_error();
int y[128];
int main(int, char** v) {
  FILE* f = fopen(v[1], "rb");
  std::vector<char> img(1 << 20);
  img[fread(img.data(), 1, img.size() - 1, f)] = 0;
  CUcontext c;
  CUmodule m;
  CUfunction k;
  void *p = y + 32, *a[] = {&p};
  if ((size_t)p >> 34 || cuInit(0) || cuDevicePrimaryCtxRetain(&c, 0) || cuCtxSetCurrent(c) ||
      cuModuleLoadData(&m, img.data()) || cuModuleGetFunction(&k, m, "generic"))
    return 2;
  if (cuLaunchKernel(k, 1, 1, 1, 32, 1, 1, 0, 0, a, 0) != CUDA_ERROR_ILLEGAL_ADDRESS || ptxsim_register(p, 128, 0))
    return 3;
  if (cuLaunchKernel(k, 1, 1, 1, 32, 1, 1, 0, 0, a, 0) || y[32] != 7 || y[63] != 7) return puts(ptxsim_last_error()), 4;
  return cuLaunchKernel(k, 1, 1, 1, 33, 1, 1, 0, 0, a, 0) == CUDA_ERROR_ILLEGAL_ADDRESS ? 0 : 5;
}
