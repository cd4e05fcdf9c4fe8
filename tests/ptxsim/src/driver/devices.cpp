// cuInit, and the devices that PTXSIM_DEVICE chooses from.
#include "driver.h"

namespace drv {
std::recursive_mutex lock;
bool initialised = false;
vector<Device> devices;
}  // namespace drv

static const Device known[] = {
    {"sm_75", "ptxsim T4", 75, 40, 64 << 10, 64 << 10, 1024, 16, 4 << 20, 1590000, 5001000, 256, 16 * GB},
    {"sm_80", "ptxsim A100", 80, 108, 163 << 10, 164 << 10, 2048, 32, 40 << 20, 1410000, 1593000, 5120, 80 * GB},
    {"sm_86", "ptxsim RTX 3090", 86, 82, 99 << 10, 100 << 10, 1536, 16, 6 << 20, 1695000, 9751000, 384, 24 * GB},
    {"sm_89", "ptxsim RTX 4090", 89, 128, 99 << 10, 100 << 10, 1536, 24, 72 << 20, 2520000, 10501000, 384, 24 * GB},
    {"sm_90", "ptxsim H100", 90, 132, 227 << 10, 228 << 10, 2048, 32, 50 << 20, 1980000, 2619000, 5120, 80 * GB},
    {"sm_100", "ptxsim B200", 100, 148, 227 << 10, 228 << 10, 2048, 32, 126 << 20, 1965000, 3996000, 8192, 180 * GB},
    {"sm_120", "ptxsim RTX 5090", 120, 170, 99 << 10, 100 << 10, 1536, 24, 96 << 20, 2407000, 14001000, 512, 32 * GB},
};

API CUresult cuInit(unsigned flags) {
  const std::lock_guard locked(lock);
  currentCall = __func__;
  ARG(flags == 0);
  if (initialised) return CUDA_SUCCESS;
  parseOptions(getenv("PTXSIM_OPTIONS"));
  const char *e = getenv("PTXSIM_DEVICE"), *ms = getenv("PTXSIM_MEMORY");
  string list = e && *e ? e : "sm_90";
  vector<Device> ds;
  for (size_t i = 0; i <= list.size();) {
    size_t q = std::min(list.find(',', i), list.size());
    string a = list.substr(i, q - i);
    if (!a.empty() && isdigit((u8)a[0])) a = "sm_" + a;
    if (a == "sm_90a") a = "sm_90";
    if (a != "none") {
      const Device* d = nullptr;
      for (auto& x : known)
        if (a == x.arch) d = &x;
      if (!d) return err(CUDA_ERROR_INVALID_DEVICE, "PTXSIM_DEVICE: unknown device '%s'", a.c_str());
      ds.push_back(*d);
      if (ms && *ms) ds.back().mem = strtoull(ms, nullptr, 0);
    }
    i = q + 1;
  }
  if (ds.empty()) return err(CUDA_ERROR_NO_DEVICE, "PTXSIM_DEVICE=none");
  devices = ds;
  for (size_t i = 0; i < devices.size(); i++) {
    contexts.push_back(std::make_unique<Context>());
    contexts[i]->dev = i;
  }
  initialised = true;
  return CUDA_SUCCESS;
}
API CUresult cuDriverGetVersion(int* v) {
  if (!v) return CUDA_ERROR_INVALID_VALUE;
  *v = DRIVER_VERSION;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetCount(int* n) {
  ENTER();
  ARG(n);
  *n = devices.size();
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGet(CUdevice* d, int i) {
  ENTER();
  ARG(d);
  DEVICE(i);
  *d = i;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetName(char* s, int n, CUdevice d) {
  ENTER();
  ARG(s && n > 0);
  DEVICE(d);
  snprintf(s, n, "%s", devices[d].name);
  return CUDA_SUCCESS;
}
API CUresult cuDeviceTotalMem_v2(size_t* b, CUdevice d) {
  ENTER();
  ARG(b);
  DEVICE(d);
  *b = devices[d].mem;
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetUuid(CUuuid* u, CUdevice d) {
  ENTER();
  ARG(u);
  DEVICE(d);
  memset(u, 0, sizeof *u);
  snprintf((char*)u, sizeof *u, "ptxsim-%s-%d", devices[d].arch, d & 15);
  return CUDA_SUCCESS;
}
API CUresult cuDeviceGetUuid_v2(CUuuid* u, CUdevice d) { return cuDeviceGetUuid(u, d); }
API CUresult cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice dev) {
  ENTER();
  ARG(v);
  DEVICE(dev);
  const Device& d = devices[dev];
  bool h = d.cc >= 90;
  switch (a) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *v = d.cc / 10;
      break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *v = d.cc % 10;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      *v = 1024;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y:
      *v = 1024;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z:
      *v = 64;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X:
      *v = 0x7fffffff;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z:
      *v = 65535;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
      *v = SMEM_DEFAULT;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *v = d.smemOptin;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      *v = d.smemSM;
      break;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK:
      *v = SMEM_RESERVED;
      break;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY:
      *v = 65536;
      break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      *v = 32;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH:
      *v = 0x7fffffff;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR:
      *v = 65536;
      break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
      *v = d.clock;
      break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
      *v = d.memClock;
      break;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH:
      *v = d.bus;
      break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
      *v = d.l2;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_PERSISTING_L2_CACHE_SIZE:
      *v = d.l2 / 4 * 3;
      break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *v = d.sms;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
      *v = d.threadsSM;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR:
      *v = d.blocksSM;
      break;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT:
      *v = 512;
      break;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT:
      *v = 3;
      break;
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID:
      *v = dev + 1;
      break;
    case CU_DEVICE_ATTRIBUTE_GPU_OVERLAP:
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_GLOBAL_L1_CACHE_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_LOCAL_L1_CACHE_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
      *v = 1;
      break;
    case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED:
      *v = h;
      break;
    case CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID:
    case CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID:
    case CU_DEVICE_ATTRIBUTE_INTEGRATED:
    case CU_DEVICE_ATTRIBUTE_COMPUTE_MODE:
    case CU_DEVICE_ATTRIBUTE_ECC_ENABLED:
    case CU_DEVICE_ATTRIBUTE_TCC_DRIVER:
    case CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT:
    case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS:
    case CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS:
    case CU_DEVICE_ATTRIBUTE_COMPUTE_PREEMPTION_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MULTI_GPU_BOARD:
      *v = 0;
      break;
    default:
      return err(CUDA_ERROR_INVALID_VALUE, "device attribute %d is not modelled", (int)a);
  }
  return CUDA_SUCCESS;
}
