// The CUDA driver API on the emulator: what its parts share. Everything is synchronous and serialised by one lock.
// Functions that are not defined are absent on purpose: a null pointer from cuGetProcAddress, not a wrong answer.
//
// devices.cpp   cuInit, devices and their properties     contexts.cpp  primary contexts, the current one
// memory.cpp    allocations, host ranges, copies         images.cpp    PTX text out of fatbins
// modules.cpp   modules, libraries, function attributes  launch.cpp    launches, occupancy, records of launches
// streams.cpp   streams, events                          graphs.cpp    stream capture, graphs
// tensor_map.cpp, entry_points.cpp, errors.cpp           control.cpp   the emulator's own interface: ptxsim_*
#pragma once
#include <cuda.h>

#include <deque>
#include <functional>
#include <set>
#include <thread>
#include <unordered_map>

#include "../exec/launch.h"
// Names with and without version suffix are both defined here.
#undef cuGetProcAddress
#undef cuEventElapsedTime
#undef cuDeviceGetUuid
#undef cuGraphInstantiate

#define API extern "C" __attribute__((visibility("default")))

namespace drv {
using namespace ptx;
using std::string;
using std::vector;

// ---- objects behind the handles
struct Device {
  const char *arch, *name;
  int cc, sms, smemOptin, smemSM, threadsSM, blocksSM, l2, clock, memClock, bus;
  u64 mem;
};
constexpr u64 GB = 1ull << 30;
constexpr int DRIVER_VERSION = 13000, SMEM_DEFAULT = 48 << 10, SMEM_RESERVED = 1024;

struct Context;
struct Stream;
struct ModuleObject;
struct Library;

struct Node {  // of a graph
  const char* kind;
  std::function<CUresult()> run;
};
struct Graph {
  vector<Node> nodes;
};
using Seen = std::map<Stream*, size_t>;  // how many nodes of each stream
struct Capture {
  u64 id;
  Stream* origin;
  CUstreamCaptureMode mode;
  std::thread::id tid;
  Graph* graph;
  bool invalid = false;
  std::map<Stream*, Seen> members = {};  // what each stream has seen of the others
};
struct Stream {
  Context* c;
  unsigned flags;
  int priority;
  Capture* capture = nullptr;
};
struct Event {
  Context* c;
  unsigned flags;
  bool recorded = false;
  double time = 0;
  u64 captureId = 0;
  Seen seen = {};
};
struct Function {
  ModuleObject* m;
  string name;
  int maxDynamic = 0, carveout = -1, nonPortable = 0;
};
struct ModuleObject {
  Context* c;
  std::unique_ptr<Module> m;
  std::map<string, std::unique_ptr<Function>> functions;
  Library* library = nullptr;
};
struct LibraryKernel {
  Library* library;
  string name;
  int maxDynamic = -1, nonPortable = -1;
};
struct Library {
  string text;
  std::map<string, std::unique_ptr<LibraryKernel>> kernels;
  std::map<Context*, ModuleObject*> modules;
};
struct Context {
  int dev;
  int refs = 0;
  u64 id = 0;
  bool active = false;
  unsigned flags = 0;
  CUresult pending = CUDA_SUCCESS;  // error of an earlier launch
  Stream legacy{this, 0, 0}, perThread{this, 0, 0};
  std::set<ModuleObject*> modules;
  std::set<Stream*> streams;
  std::set<Event*> events;
};
struct Allocation {
  Context* c;
  u64 size;
  char kind;  // d device, h pinned host, r cuMemHostRegister
  u64 id;
};
struct LaunchArgs {
  u32 grid[3], block[3], cluster[3] = {1, 1, 1}, dynamicSmem;
  bool cooperative = false, programmatic = false;
};
struct Options {
  long long check_races = 1, check_uninit = 1, check_proxy = 1, strict_warp = 1, allow_exited_at_barrier = 0,
            allow_exited_cta = 0, threads = 2, resident = 1, order = 0, max_instructions = 4000000000ll, poison = 0xff,
            track_uninit = 0, sticky_errors = 0, deferred_errors = 0, host_access = 0, keep_stats = 64, coverage = 0,
            print = 1, verbose = 0;
};

// ---- state of the process
extern std::recursive_mutex lock;
extern bool initialised;
extern Memory memory;
extern vector<Device> devices;
extern vector<std::unique_ptr<Context>> contexts;   // primary ones, by device
extern std::unordered_map<const void*, char> live;  // handle -> m module, f function, l library, k its kernel,
                                                    // s stream, e event, g graph, x executable graph
extern std::map<u64, Allocation> allocations;
extern std::set<Capture*> captures;
extern u64 idCounter, launchCount;
extern string lastError;
extern std::deque<string> statLog;
extern Options opt;
extern const char* (*onLoad)(const char* ptx);
extern thread_local vector<Context*> contextStack;
extern thread_local const char* currentCall;

// ---- how an entry point begins
CUresult err(CUresult r, const char* f, ...) __attribute__((format(printf, 2, 3)));
bool isLive(const void* handle, char kind);
CUresult currentContext(Context*& c);

#define ENTER()                        \
  const std::lock_guard locked_(lock); \
  currentCall = __func__;              \
  if (!initialised) return err(CUDA_ERROR_NOT_INITIALIZED, "cuInit has not been called")
#define CONTEXT()                  \
  [[maybe_unused]] Context* c = 0; \
  TRY(currentContext(c))
#define TRY(call) \
  if (CUresult r_ = call) return r_
#define ARG(x) \
  if (!(x)) return err(CUDA_ERROR_INVALID_VALUE, "invalid argument: " #x)
#define HANDLE(h, kind) \
  if (!isLive(h, kind)) return err(CUDA_ERROR_INVALID_HANDLE, "invalid or destroyed handle '" #h "'")
#define DEVICE(d) \
  if ((d) < 0 || (d) >= (int)devices.size()) return err(CUDA_ERROR_INVALID_DEVICE, "no device %d", (int)(d))

// ---- shared by the parts
CUresult classify(const string& error);  // of a launch
void resetContext(Context* c);
CUresult imageText(const void* image, int cc, string& out);
// memory.cpp
CUresult addRange(const void* p, u64 n, unsigned flags, const string& name, char kind);
CUresult removeRange(const void* p, char kind);
void clearRanges();
CUresult freeAllocation(u64 va, char kind);
void mapHostPages();
// modules.cpp
CUresult loadModule(Context* c, const string& text, ModuleObject*& out);
void unloadModule(ModuleObject* m);
CUresult resolveFunction(Context* c, CUfunction h, Function*& f);
Kernel* kernelOf(Function* f);
u64 maxThreads(const Kernel* k);
int occupancy(Function* f, int block, size_t dynamicSmem);
// streams.cpp, graphs.cpp
double milliseconds();
CUresult streamOf(Context* c, CUstream h, Stream*& s);
CUresult notWhileCapturing(const char* what);  // calls that a capture in progress forbids
CUresult notCapturing(Stream* s, const char* what);
CUresult enqueue(Stream* s, const char* kind, std::function<CUresult()> f);
Capture* findCapture(u64 id);
void dropCaptures();
// control.cpp
int parseOptions(const char* text);
}  // namespace drv

using namespace drv;
