// A CUDA device that is not there: driver, runtime, cuBLAS and NVML under torch's own CUDA build.
//
// Device memory is host memory, copies and fills are real, kernels and matrix products do nothing.
// Torch's caching allocator, its streams, Inductor and Triton's compiler run as they do on a card.
// What is asked for and not here ends the process, with its name: nothing succeeds by chance.
//
//   STUB_CAPABILITY   80, 90 or 100: which card (default 90)
//   STUB_BYTES        its memory (default 80 GiB)
//   STUB_NUMBERS      1: numbers matter, so that a kernel or a product that would do nothing ends the
//                     process, with its name
//
// Preloaded, it comes before torch's own libcudart and libcublas; it is found as libcuda.so.1, too.

#include <cublas_v2.h>
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#define API extern "C" __attribute__((visibility("default")))

namespace {

[[noreturn]] void missing(const char* name) {
  fprintf(stderr, "stub GPU: %s is not there\n", name);
  fflush(stderr);
  abort();
}

long setting(const char* name, long otherwise) {
  const char* text = getenv(name);
  return text ? strtol(text, nullptr, 10) : otherwise;
}

// A kernel or a product: what it would have computed is missing from here on.
void skip(const char* name) {
  static const bool numbers_matter = setting("STUB_NUMBERS", 0);
  if (numbers_matter) missing(name);
}

int capability() {
  static const int found = setting("STUB_CAPABILITY", 90);
  return found;
}

// -- memory ------------------------------------------------------------------------------------

constexpr size_t kPage = 2 << 20;
size_t whole_pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

class Memory {
 public:
  size_t total() const { return setting("STUB_BYTES", 80L << 30); }
  size_t free_bytes() {
    std::lock_guard<std::mutex> held(mutex_);
    return total() - used_;
  }

  bool take(size_t bytes) {
    std::lock_guard<std::mutex> held(mutex_);
    if (used_ + bytes > total()) return false;
    used_ += bytes;
    return true;
  }
  void give(size_t bytes) {
    std::lock_guard<std::mutex> held(mutex_);
    used_ -= bytes;
  }

  void* allocate(size_t bytes) {
    if (!take(bytes)) return nullptr;
    void* start = mmap(nullptr, whole_pages(bytes), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) {
      give(bytes);
      return nullptr;
    }
    std::lock_guard<std::mutex> held(mutex_);
    blocks_[static_cast<char*>(start)] = bytes;
    return start;
  }
  bool release(void* start) {
    size_t bytes;
    {
      std::lock_guard<std::mutex> held(mutex_);
      auto found = blocks_.find(static_cast<char*>(start));
      if (found == blocks_.end()) return false;
      bytes = found->second;
      blocks_.erase(found);
    }
    munmap(start, whole_pages(bytes));
    give(bytes);
    return true;
  }
  bool has(const void* address) {
    std::lock_guard<std::mutex> held(mutex_);
    auto place = static_cast<const char*>(address);
    auto next = blocks_.upper_bound(const_cast<char*>(place));
    if (next == blocks_.begin()) return false;
    --next;
    return place < next->first + next->second;
  }

 private:
  std::mutex mutex_;
  std::map<char*, size_t> blocks_;
  size_t used_ = 0;
};

Memory& memory() {
  static Memory* found = new Memory;  // outlives whatever is destroyed at exit
  return *found;
}

template <class Handle>
Handle new_handle() {
  static std::uintptr_t last = 0x1000;
  last += 16;
  return (Handle)last;  // a pointer or a number
}

CUcontext only_context() { return reinterpret_cast<CUcontext>(0x77); }

// Both interfaces number attributes alike.
int attribute(int which) {
  const bool large = capability() >= 90;
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y:
      return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z:
      return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X:
      return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z:
      return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
      return 48 << 10;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR:
      return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR:
      return 65536;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
      return 1980000;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      return large ? 132 : 108;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
      return 2619000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH:
      return 5120;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
      return 50 << 20;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
      return 2048;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
      return 1;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      return capability() / 10;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      return capability() % 10;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      return (large ? 228 : 164) << 10;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      return (large ? 227 : 163) << 10;
    default:
      return 0;
  }
}

std::map<unsigned long long, size_t>& physical() {
  static auto* found = new std::map<unsigned long long, size_t>;
  return *found;
}

}  // namespace

// -- the runtime -------------------------------------------------------------------------------

#define RUNTIME(name, ...) API cudaError_t name(__VA_ARGS__)
#define NOTHING(name, ...) \
  RUNTIME(name, __VA_ARGS__) { return cudaSuccess; }

RUNTIME(cudaGetDeviceCount, int* count) { return *count = 1, cudaSuccess; }
RUNTIME(cudaGetDevice, int* device) { return *device = 0, cudaSuccess; }
NOTHING(cudaSetDevice, int)
RUNTIME(cudaDriverGetVersion, int* version) { return *version = 13000, cudaSuccess; }
RUNTIME(cudaRuntimeGetVersion, int* version) { return *version = 13000, cudaSuccess; }
NOTHING(cudaGetLastError, void)
NOTHING(cudaPeekAtLastError, void)
NOTHING(cudaDeviceSynchronize, void)
RUNTIME(cudaDeviceCanAccessPeer, int* can, int, int) { return *can = 0, cudaSuccess; }
RUNTIME(cudaDeviceGetStreamPriorityRange, int* least, int* most) {
  return *least = 0, *most = -5, cudaSuccess;
}
RUNTIME(cudaDeviceGetAttribute, int* value, cudaDeviceAttr which, int) {
  return *value = attribute(which), cudaSuccess;
}
RUNTIME(cudaDeviceGetPCIBusId, char* text, int size, int) {
  return snprintf(text, size, "0000:00:00.0"), cudaSuccess;
}
RUNTIME(cudaGetDeviceProperties, cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p);
  const char* name = capability() >= 100  ? "NVIDIA B200 stub"
                     : capability() >= 90 ? "NVIDIA H100 80GB HBM3 stub"
                                          : "NVIDIA A100-SXM4-80GB stub";
  strcpy(p->name, name);
  p->totalGlobalMem = memory().total();
  p->major = capability() / 10;
  p->minor = capability() % 10;
  p->multiProcessorCount = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  p->warpSize = 32;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerBlockOptin = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  p->sharedMemPerMultiprocessor = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->l2CacheSize = 50 << 20;
  p->totalConstMem = 65536;
  p->textureAlignment = 512;
  p->memoryBusWidth = 5120;
  p->unifiedAddressing = p->concurrentKernels = p->cooperativeLaunch = 1;
  return cudaSuccess;
}

RUNTIME(cudaMalloc, void** start, size_t bytes) {
  *start = memory().allocate(bytes);
  return *start ? cudaSuccess : cudaErrorMemoryAllocation;
}
RUNTIME(cudaFree, void* start) {
  return !start || memory().release(start) ? cudaSuccess : cudaErrorInvalidValue;
}
RUNTIME(cudaMemGetInfo, size_t* free_bytes, size_t* total) {
  return *free_bytes = memory().free_bytes(), *total = memory().total(), cudaSuccess;
}
RUNTIME(cudaHostAlloc, void** start, size_t bytes, unsigned) {
  return *start = malloc(bytes), cudaSuccess;
}
RUNTIME(cudaFreeHost, void* start) { return free(start), cudaSuccess; }
NOTHING(cudaHostRegister, void*, size_t, unsigned)
NOTHING(cudaHostUnregister, void*)
RUNTIME(cudaPointerGetAttributes, cudaPointerAttributes* found, const void* address) {
  memset(found, 0, sizeof *found);
  void* place = const_cast<void*>(address);
  const bool ours = memory().has(address);
  found->type = ours ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  (ours ? found->devicePointer : found->hostPointer) = place;
  return cudaSuccess;
}
RUNTIME(cudaMemcpy, void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return memmove(to, from, bytes), cudaSuccess;
}
RUNTIME(cudaMemcpyAsync, void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  return memmove(to, from, bytes), cudaSuccess;
}
RUNTIME(cudaMemset, void* to, int value, size_t bytes) {
  return memset(to, value, bytes), cudaSuccess;
}
RUNTIME(cudaMemsetAsync, void* to, int value, size_t bytes, cudaStream_t) {
  return memset(to, value, bytes), cudaSuccess;
}

RUNTIME(cudaStreamCreate, cudaStream_t* made) { return *made = new_handle<cudaStream_t>(), cudaSuccess; }
RUNTIME(cudaStreamCreateWithFlags, cudaStream_t* made, unsigned) { return cudaStreamCreate(made); }
RUNTIME(cudaStreamCreateWithPriority, cudaStream_t* made, unsigned, int) {
  return cudaStreamCreate(made);
}
NOTHING(cudaStreamDestroy, cudaStream_t)
NOTHING(cudaStreamSynchronize, cudaStream_t)
NOTHING(cudaStreamQuery, cudaStream_t)
NOTHING(cudaStreamWaitEvent, cudaStream_t, cudaEvent_t, unsigned)
RUNTIME(cudaStreamGetPriority, cudaStream_t, int* found) { return *found = 0, cudaSuccess; }
RUNTIME(cudaStreamIsCapturing, cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
RUNTIME(cudaStreamGetCaptureInfo, cudaStream_t, cudaStreamCaptureStatus* status,
        unsigned long long* id, cudaGraph_t*, const cudaGraphNode_t**, const cudaGraphEdgeData**,
        size_t*) {
  *status = cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  return cudaSuccess;
}
RUNTIME(cudaStreamBeginCapture, cudaStream_t, cudaStreamCaptureMode) {
  return cudaErrorNotSupported;  // nothing is launched that a graph could record
}
NOTHING(cudaThreadExchangeStreamCaptureMode, cudaStreamCaptureMode*)

RUNTIME(cudaEventCreate, cudaEvent_t* made) { return *made = new_handle<cudaEvent_t>(), cudaSuccess; }
RUNTIME(cudaEventCreateWithFlags, cudaEvent_t* made, unsigned) { return cudaEventCreate(made); }
NOTHING(cudaEventDestroy, cudaEvent_t)
NOTHING(cudaEventRecord, cudaEvent_t, cudaStream_t)
NOTHING(cudaEventRecordWithFlags, cudaEvent_t, cudaStream_t, unsigned)
NOTHING(cudaEventQuery, cudaEvent_t)
NOTHING(cudaEventSynchronize, cudaEvent_t)
RUNTIME(cudaEventElapsedTime, float* ms, cudaEvent_t, cudaEvent_t) { return *ms = 1, cudaSuccess; }

RUNTIME(cudaLaunchKernel, const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  return skip("cudaLaunchKernel"), cudaSuccess;
}
RUNTIME(cudaLaunchKernelExC, const cudaLaunchConfig_t*, const void*, void**) {
  return skip("cudaLaunchKernelExC"), cudaSuccess;
}
RUNTIME(cudaLaunchHostFunc, cudaStream_t, cudaHostFn_t run, void* data) {
  return run(data), cudaSuccess;
}
NOTHING(cudaFuncSetAttribute, const void*, cudaFuncAttribute, int)
RUNTIME(cudaFuncGetAttributes, cudaFuncAttributes* found, const void*) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024;
  found->binaryVersion = found->ptxVersion = capability();
  found->numRegs = 64;
  found->maxDynamicSharedSizeBytes = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  return cudaSuccess;
}
RUNTIME(cudaOccupancyMaxActiveBlocksPerMultiprocessor, int* blocks, const void*, int, size_t) {
  return *blocks = 2, cudaSuccess;
}
RUNTIME(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, int* blocks, const void*, int, size_t,
        unsigned) {
  return *blocks = 2, cudaSuccess;
}

// -- the driver --------------------------------------------------------------------------------

#define DRIVER(name, ...) API CUresult name(__VA_ARGS__)
#define IDLE(name, ...) \
  DRIVER(name, __VA_ARGS__) { return CUDA_SUCCESS; }

IDLE(cuInit, unsigned)
IDLE(cuLogsRegisterCallback, CUlogsCallback, void*, CUlogsCallbackHandle*)
IDLE(cuLogsUnregisterCallback, CUlogsCallbackHandle)
// cuBLASLt's own copy of the runtime, which has nothing to do here, asks for this and takes a no.
DRIVER(cuGetExportTable, const void**, const CUuuid*) { return CUDA_ERROR_NOT_SUPPORTED; }
DRIVER(cuDriverGetVersion, int* version) { return *version = 13000, CUDA_SUCCESS; }
DRIVER(cuGetErrorString, CUresult, const char** text) { return *text = "stub", CUDA_SUCCESS; }
DRIVER(cuGetErrorName, CUresult, const char** text) { return *text = "stub", CUDA_SUCCESS; }
DRIVER(cuCtxGetCurrent, CUcontext* found) { return *found = only_context(), CUDA_SUCCESS; }
IDLE(cuCtxSetCurrent, CUcontext)
IDLE(cuCtxPushCurrent_v2, CUcontext)
DRIVER(cuCtxPopCurrent_v2, CUcontext* found) { return cuCtxGetCurrent(found); }
DRIVER(cuCtxGetDevice, CUdevice* found) { return *found = 0, CUDA_SUCCESS; }
DRIVER(cuCtxGetLimit, size_t* found, CUlimit) { return *found = 0, CUDA_SUCCESS; }
IDLE(cuCtxSetLimit, CUlimit, size_t)
DRIVER(cuDeviceGet, CUdevice* found, int) { return *found = 0, CUDA_SUCCESS; }
DRIVER(cuDeviceGetCount, int* count) { return *count = 1, CUDA_SUCCESS; }
DRIVER(cuDeviceGetAttribute, int* value, CUdevice_attribute which, CUdevice) {
  return *value = attribute(which), CUDA_SUCCESS;
}
DRIVER(cuDevicePrimaryCtxGetState, CUdevice, unsigned* flags, int* active) {
  return *flags = 0, *active = 1, CUDA_SUCCESS;
}
DRIVER(cuDevicePrimaryCtxRetain, CUcontext* found, CUdevice) { return cuCtxGetCurrent(found); }
DRIVER(cuModuleLoad, CUmodule* made, const char*) {
  return *made = new_handle<CUmodule>(), CUDA_SUCCESS;
}
DRIVER(cuModuleLoadData, CUmodule* made, const void*) { return cuModuleLoad(made, nullptr); }
DRIVER(cuModuleLoadDataEx, CUmodule* made, const void*, unsigned, CUjit_option*, void**) {
  return cuModuleLoad(made, nullptr);
}
IDLE(cuModuleUnload, CUmodule)
DRIVER(cuModuleGetFunction, CUfunction* made, CUmodule, const char*) {
  return *made = new_handle<CUfunction>(), CUDA_SUCCESS;
}
DRIVER(cuFuncGetAttribute, int* value, CUfunction_attribute which, CUfunction) {
  *value = which == CU_FUNC_ATTRIBUTE_NUM_REGS                ? 64
           : which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
                                                              : 0;
  return CUDA_SUCCESS;
}
IDLE(cuFuncSetAttribute, CUfunction, CUfunction_attribute, int)
IDLE(cuFuncSetCacheConfig, CUfunction, CUfunc_cache)
DRIVER(cuLaunchKernel, CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
       CUstream, void**, void**) {
  return skip("cuLaunchKernel"), CUDA_SUCCESS;
}
DRIVER(cuStreamIsCapturing, CUstream, CUstreamCaptureStatus* status) {
  return *status = CU_STREAM_CAPTURE_STATUS_NONE, CUDA_SUCCESS;
}
DRIVER(cuLaunchKernelEx, const CUlaunchConfig*, CUfunction, void**, void**) {
  return skip("cuLaunchKernelEx"), CUDA_SUCCESS;
}
DRIVER(cuLaunchCooperativeKernel, CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
       unsigned, CUstream, void**) {
  return skip("cuLaunchCooperativeKernel"), CUDA_SUCCESS;
}
DRIVER(cuOccupancyMaxActiveBlocksPerMultiprocessor, int* blocks, CUfunction, int, size_t) {
  return *blocks = 2, CUDA_SUCCESS;
}
DRIVER(cuOccupancyMaxActiveClusters, int* clusters, CUfunction, const CUlaunchConfig*) {
  return *clusters = 8, CUDA_SUCCESS;
}
DRIVER(cuPointerGetAttribute, void* value, CUpointer_attribute which, CUdeviceptr address) {
  if (which == CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
    memcpy(value, &address, sizeof address);
  else
    memset(value, 0, 4);
  return CUDA_SUCCESS;
}
IDLE(cuStreamSynchronize, CUstream)
DRIVER(cuTensorMapEncodeTiled, CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
       const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
       CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  return CUDA_SUCCESS;
}
DRIVER(cuMemGetAddressRange_v2, CUdeviceptr* start, size_t* bytes, CUdeviceptr address) {
  return *start = address, *bytes = 0, CUDA_SUCCESS;
}

// Expandable segments: addresses are reserved at once, memory is mapped to them as it is needed.
DRIVER(cuMemGetAllocationGranularity, size_t* bytes, const CUmemAllocationProp*,
       CUmemAllocationGranularity_flags) {
  return *bytes = kPage, CUDA_SUCCESS;
}
DRIVER(cuMemAddressReserve, CUdeviceptr* start, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
  void* found = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  *start = reinterpret_cast<CUdeviceptr>(found);
  return found == MAP_FAILED ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}
DRIVER(cuMemAddressFree, CUdeviceptr start, size_t bytes) {
  return munmap(reinterpret_cast<void*>(start), bytes), CUDA_SUCCESS;
}
DRIVER(cuMemCreate, CUmemGenericAllocationHandle* made, size_t bytes, const CUmemAllocationProp*,
       unsigned long long) {
  if (!memory().take(bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  *made = new_handle<CUmemGenericAllocationHandle>();
  return physical()[*made] = bytes, CUDA_SUCCESS;
}
DRIVER(cuMemRelease, CUmemGenericAllocationHandle handle) {
  memory().give(physical()[handle]);
  return physical().erase(handle), CUDA_SUCCESS;
}
DRIVER(cuMemMap, CUdeviceptr start, size_t bytes, size_t, CUmemGenericAllocationHandle,
       unsigned long long) {
  return mprotect(reinterpret_cast<void*>(start), bytes, PROT_READ | PROT_WRITE), CUDA_SUCCESS;
}
DRIVER(cuMemUnmap, CUdeviceptr start, size_t bytes) {
  void* place = reinterpret_cast<void*>(start);
  return madvise(place, bytes, MADV_DONTNEED), mprotect(place, bytes, PROT_NONE), CUDA_SUCCESS;
}
IDLE(cuMemSetAccess, CUdeviceptr, size_t, const CUmemAccessDesc*, size_t)

// Torch and the runtime ask for driver functions by name, each with or without a version.
static void* entry_point(const char* name) {
  static void* self = dlopen(getenv("STUB_LIBRARY"), RTLD_NOW);
  if (!self) missing("STUB_LIBRARY");
  void* found = dlsym(self, name);
  return found ? found : dlsym(self, (std::string(name) + "_v2").c_str());
}
// Of one that is not there, asking is allowed: hundreds are looked up and few are called. Each gets
// a function of its own, which knows the name.
constexpr size_t kMostNames = 1024;
static std::array<std::string, kMostNames> asked_for;
template <size_t N>
static CUresult not_there() {
  missing(asked_for[N].c_str());
}
template <size_t... N>
static constexpr std::array<CUresult (*)(), sizeof...(N)> traps(std::index_sequence<N...>) {
  return {not_there<N>...};
}
static void* entry_point_or_trap(const char* name) {
  if (void* found = entry_point(name)) return found;
  static constexpr auto kTraps = traps(std::make_index_sequence<kMostNames>());
  static std::mutex mutex;
  static size_t count = 0;
  std::lock_guard<std::mutex> held(mutex);
  if (count == kMostNames) missing("room for another name");
  asked_for[count] = name;
  return reinterpret_cast<void*>(kTraps[count++]);
}
API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** found, unsigned,
                                                 unsigned long long,
                                                 cudaDriverEntryPointQueryResult* result) {
  *found = entry_point_or_trap(name);
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
DRIVER(cuGetProcAddress_v2, const char* name, void** found, int, cuuint64_t,
       CUdriverProcAddressQueryResult* result) {
  *found = entry_point_or_trap(name);
  if (result) *result = CU_GET_PROC_ADDRESS_SUCCESS;
  return CUDA_SUCCESS;
}

// -- cuBLAS ------------------------------------------------------------------------------------

#define BLAS(name, ...) \
  API cublasStatus_t name(__VA_ARGS__) { return CUBLAS_STATUS_SUCCESS; }
#define PRODUCT(name, ...) \
  API cublasStatus_t name(__VA_ARGS__) { return skip(#name), CUBLAS_STATUS_SUCCESS; }

API cublasStatus_t cublasCreate_v2(cublasHandle_t* made) {
  return *made = new_handle<cublasHandle_t>(), CUBLAS_STATUS_SUCCESS;
}
BLAS(cublasDestroy_v2, cublasHandle_t)
BLAS(cublasSetStream_v2, cublasHandle_t, cudaStream_t)
BLAS(cublasSetWorkspace_v2, cublasHandle_t, void*, size_t)
BLAS(cublasSetMathMode, cublasHandle_t, cublasMath_t)
API cublasStatus_t cublasGetMathMode(cublasHandle_t, cublasMath_t* mode) {
  return *mode = CUBLAS_DEFAULT_MATH, CUBLAS_STATUS_SUCCESS;
}
BLAS(cublasSetPointerMode_v2, cublasHandle_t, cublasPointerMode_t)
API cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t, cublasPointerMode_t* mode) {
  return *mode = CUBLAS_POINTER_MODE_HOST, CUBLAS_STATUS_SUCCESS;
}
BLAS(cublasSetSmCountTarget, cublasHandle_t, int)

#define GEMM(name, T)                                                                             \
  PRODUCT(name, cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const T*,    \
          const T*, int, const T*, int, const T*, T*, int)
#define GEMM_BATCHED(name, T)                                                                     \
  PRODUCT(name, cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const T*,    \
          const T*, int, long long, const T*, int, long long, const T*, T*, int, long long, int)
GEMM(cublasSgemm_v2, float)
GEMM(cublasDgemm_v2, double)
GEMM_BATCHED(cublasSgemmStridedBatched, float)
GEMM_BATCHED(cublasDgemmStridedBatched, double)
PRODUCT(cublasGemmEx, cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void*,
     const void*, cudaDataType, int, const void*, cudaDataType, int, const void*, void*, cudaDataType,
     int, cublasComputeType_t, cublasGemmAlgo_t)
PRODUCT(cublasGemmStridedBatchedEx, cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
     const void*, const void*, cudaDataType, int, long long, const void*, cudaDataType, int, long long,
     const void*, void*, cudaDataType, int, long long, int, cublasComputeType_t, cublasGemmAlgo_t)
#define GEMV(name, T)                                                                             \
  PRODUCT(name, cublasHandle_t, cublasOperation_t, int, int, const T*, const T*, int, const T*,   \
          int, const T*, T*, int)
#define DOT(name, T) PRODUCT(name, cublasHandle_t, int, const T*, int, const T*, int, T*)
GEMV(cublasSgemv_v2, float)
GEMV(cublasDgemv_v2, double)
DOT(cublasSdot_v2, float)
DOT(cublasDdot_v2, double)

// Of cuBLASLt what torch calls; descriptions are the real library's. One algorithm is found.
struct Heuristic {
  unsigned long long algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
API int cublasLtCreate(void** made) { return *made = new_handle<void*>(), 0; }
API int cublasLtDestroy(void*) { return 0; }
API int cublasLtMatmul() { return skip("cublasLtMatmul"), 0; }
API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int,
                                       Heuristic* found, int* count) {
  memset(found, 0, sizeof *found);
  found->waves = 1;
  return *count = 1, 0;
}
